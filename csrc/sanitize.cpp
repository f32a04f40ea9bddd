// SPDX-License-Identifier: Apache-2.0
// Runs every kernel of this CPU's level on awkward sizes, for the sanitizers (`make sanitize`): memory that is touched
// outside its allocation, undefined arithmetic, races; for every type of activations. Fails itself where 1 and 3 threads
// give different bits or a result is not finite. That results are right is tested from Python.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

#include "cpu/kernels.h"

using namespace ditn;

namespace {

void run_alone(int64_t, void (*work)(void*), void* argument) { work(argument); }

void run_on_three(int64_t most, void (*work)(void*), void* argument) {
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < 3 && i < most; ++i) threads.emplace_back(work, argument);
  for (std::thread& thread : threads) thread.join();
}

// The names of the types, and for 16 bits what makes a number of either sign in [1/16, 1/8) of random ones.
template <class T>
struct Type;
template <>
struct Type<float> {
  static constexpr const char* kName = "float";
};
template <>
struct Type<bfloat16> {
  static constexpr const char* kName = "bfloat16";
  static constexpr uint16_t kRandom = 0x807f, kExponent = 0x7f80, kSixteenth = 0x3d80;
};
template <>
struct Type<float16> {
  static constexpr const char* kName = "float16";
  static constexpr uint16_t kRandom = 0x83ff, kExponent = 0x7c00, kSixteenth = 0x2c00;
};

bool finite(float value) { return std::isfinite(value); }

template <class T>
bool finite(T value) {
  return (value.bits & Type<T>::kExponent) != Type<T>::kExponent;
}

// Pseudo-random tensors, weights in [-0.2, 0.2); each its own allocation, with nothing behind its end.
class Tensors {
 public:
  const float* operator()(int64_t count) { return make<float>(count); }

  template <class T>
  const T* make(int64_t count) {
    auto* values = new std::vector<T>(static_cast<size_t>(count));
    all_.emplace_back(values, [](void* p) { delete static_cast<std::vector<T>*>(p); });
    for (T& value : *values) {
      state_ = state_ * 1664525u + 1013904223u;
      if constexpr (std::is_same_v<T, float>) {
        value = (static_cast<float>(state_ >> 8) / (1 << 24) - 0.5f) * 0.4f;
      } else {
        value.bits = static_cast<uint16_t>((state_ >> 16 & Type<T>::kRandom) | Type<T>::kSixteenth);
      }
    }
    return values->data();
  }

 private:
  std::vector<std::shared_ptr<void>> all_;
  uint32_t state_ = 1;
};

template <class T>
void check(const char* name, const Shape& shape, int64_t count, const std::function<void(Threads, T*)>& kernel) {
  std::vector<T> alone(static_cast<size_t>(count)), together(alone);
  std::memset(static_cast<void*>(alone.data()), 0xff, alone.size() * sizeof(T));  // NaN
  kernel({run_alone, [] { return int64_t{1}; }}, alone.data());
  kernel({run_on_three, [] { return int64_t{3}; }}, together.data());
  bool good = std::memcmp(alone.data(), together.data(), alone.size() * sizeof(T)) == 0;
  for (const T value : alone) good = good && finite(value);
  if (good) return;
  std::printf("%s %ldx%ldx%ldx%d %s: results differ or are not finite\n", name, static_cast<long>(shape.batch),
              static_cast<long>(shape.height), static_cast<long>(shape.width), shape.channels, Type<T>::kName);
  std::exit(1);
}

Attention attention(Tensors& t, int64_t c) { return {t(c * 3 * c), t(3 * c), t(1), t(c * c), t(c)}; }

Ffn ffn(Tensors& t, int64_t c, int64_t e) {
  return {t(c * 2 * e), t(2 * e), t(9 * 2 * e), t(2 * e), t(e * c), t(c), static_cast<int>(e)};
}

Gate gate(Tensors& t, int64_t c) {
  return {t(c * 2 * c), t(2 * c), t(25 * c), t(c), t(49 * c), t(c), t(c * c), t(c), t(c * c), t(c)};
}

template <class T>
void patches(const Kernels<T>& kernels, Shape shape, int patch, Norm norm) {
  Tensors t;
  const int64_t c = shape.channels, count = shape.batch * shape.height * shape.width * c;
  const T* x = t.make<T>(count);
  const Attention attentions[] = {attention(t, c), attention(t, c)};
  const Ffn ffns[] = {ffn(t, c, 2 * c), ffn(t, c, 2 * c)};
  check<T>("inner_patch", shape, count, [&](Threads threads, T* y) {
    kernels.inner_patch(threads, shape, x, y, attentions, ffns, 2, norm, patch);
  });
}

template <class T>
void map(const Kernels<T>& kernels, Shape shape, Norm norm) {
  Tensors t;
  const int64_t c = shape.channels, pixels = shape.batch * shape.height * shape.width;
  const T *x = t.make<T>(pixels * c), *skip = t.make<T>(pixels * c);
  const Gate gates[] = {gate(t, c), gate(t, c)};
  const Ffn ffns[] = {ffn(t, c, 2 * c + 1), ffn(t, c, 2 * c + 1)};
  check<T>("spatial", shape, pixels * c, [&](Threads threads, T* y) {
    kernels.spatial(threads, shape, x, y, gates, ffns, 2, norm);
  });
  const int outputs = 27, upscale = 3;
  const float *head_weight = t(9 * c * outputs), *head_bias = t(outputs), *weight = t(c * outputs), *bias = t(outputs);
  check<T>("image_head", shape, pixels * outputs, [&](Threads threads, T* y) {
    kernels.image_head(threads, shape, x, y, head_weight, head_bias, outputs);
  });
  const Tail tail{t(9 * c * c), t(c), t(9 * c * outputs), t(outputs), outputs, upscale};
  check<T>("image_tail", shape, pixels * outputs, [&](Threads threads, T* y) {
    kernels.image_tail(threads, shape, x, skip, y, tail);
  });
  check<T>("tanh_affine", shape, pixels * outputs, [&](Threads threads, T* y) {
    kernels.tanh_affine(threads, shape, x, y, weight, bias, outputs);
  });
  const float *scale = t(c), *offset = t(c);
  check<T>("layer_norm2d", shape, pixels * c, [&](Threads threads, T* y) {
    kernels.layer_norm2d(threads, shape, x, y, scale, offset, 1e-5f);
  });
}

template <class T>
void every_size(const Kernels<T>& kernels) {
  for (const Norm norm : {Norm::kNone, Norm::kTanh, Norm::kLayerNorm}) {
    for (const int channels : {1, 7, 60, 128}) {
      for (const int patch : {4, 8, 16}) patches(kernels, {2, patch, 2 * patch, channels}, patch, norm);
      for (const auto& [height, width] : {std::pair<int, int>{1, 1}, {3, 99}, {17, 31}, {37, 5}}) {
        map(kernels, {2, height, width, channels}, norm);
      }
    }
  }
}

}  // namespace

int main() {
  every_size(level().for_float);
  every_size(level().for_bfloat16);
  every_size(level().for_float16);
  for (const char* name : {"exp", "tanh", "erf"}) {
    const std::vector<float> x{-INFINITY, -1e30f, -1.0f, 0.0f, NAN, 1e-40f, 1.0f, 1e30f, INFINITY};
    std::vector<float> y(x.size());
    level().function(name, x.data(), y.data(), static_cast<int64_t>(x.size()));
  }
  std::printf("%s: clean\n", level().name);
}
