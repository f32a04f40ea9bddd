// SPDX-License-Identifier: Apache-2.0
// Runs every kernel of this CPU's level on awkward sizes, for the sanitizers (`make sanitize`): memory that is touched
// outside its allocation, undefined arithmetic, races; for every type of activations. Fails itself where 1 and 3 threads
// give different bits or a result is not finite. That results are right is tested from Python: on the levels that the machine
// has through torch, on others by what `sanitize --digest CHANNELS` prints, which two levels must agree on.
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

double number(float value) { return value; }

double number(bfloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof(wide));
  return wide;
}

double number(float16 value) {
  const int exponent = value.bits >> 10 & 31, mantissa = value.bits & 1023;
  const double size = exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24);
  return value.bits >> 15 ? -size : size;
}

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

bool digest = false;

// The sum of a result's sizes, and one in which each value counts by its place.
template <class T>
void print_digest(const char* name, const Shape& shape, const std::vector<T>& values) {
  double sizes = 0, places = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    sizes += std::abs(number(values[i]));
    places += number(values[i]) * (static_cast<double>(i * 37 % 101) / 50 - 1);
  }
  std::printf("%s %ldx%ldx%ld %s %.9g %.9g\n", name, static_cast<long>(shape.height), static_cast<long>(shape.width),
              static_cast<long>(shape.channels), Type<T>::kName, sizes, places);
}

// Where a kernel writes its results.
template <class T>
using Results = std::vector<T*>;

// Results of so many values each, for a kernel to write; one allocation per result.
template <class T>
class Written {
 public:
  explicit Written(const std::vector<int64_t>& counts) {
    for (const int64_t count : counts) {
      std::vector<T>& values = all_.emplace_back(static_cast<size_t>(count));
      std::memset(static_cast<void*>(values.data()), 0xff, values.size() * sizeof(T));  // NaN
      results.push_back(values.data());
    }
  }
  bool finite_and_the_same(const Written& other) const {
    bool good = true;
    for (size_t i = 0; i < all_.size(); ++i) {
      good = good && std::memcmp(all_[i].data(), other.all_[i].data(), all_[i].size() * sizeof(T)) == 0;
      for (const T value : all_[i]) good = good && finite(value);
    }
    return good;
  }
  void print(const char* name, const Shape& shape) const {
    for (const std::vector<T>& values : all_) print_digest(name, shape, values);
  }

  Results<T> results;

 private:
  std::vector<std::vector<T>> all_;
};

// The kernel writes activations of type T and, if it is a gradient, floats for each weight, of so many values each.
template <class T>
void check(const char* name, const Shape& shape, const std::vector<int64_t>& activations, const std::vector<int64_t>& weights,
           const std::function<void(Threads, const Results<T>&, const Results<float>&)>& kernel) {
  Written<T> alone(activations), together(activations);
  Written<float> alone_of_weights(weights), together_of_weights(weights);
  kernel({run_alone, [] { return int64_t{1}; }}, alone.results, alone_of_weights.results);
  kernel({run_on_three, [] { return int64_t{3}; }}, together.results, together_of_weights.results);
  if (digest) {
    alone.print(name, shape);
    alone_of_weights.print(name, shape);
  }
  if (alone.finite_and_the_same(together) && alone_of_weights.finite_and_the_same(together_of_weights)) return;
  std::printf("%s %ldx%ldx%ldx%d %s: results differ or are not finite\n", name, static_cast<long>(shape.batch),
              static_cast<long>(shape.height), static_cast<long>(shape.width), shape.channels, Type<T>::kName);
  std::exit(1);
}

// Checks an operator, whose weights are released at the end, on such a map; a result has so many values.
template <class T>
void check(const char* name, const Shape& shape, int64_t count, const Prepared& prepared, const T* x, const T* skip = nullptr) {
  check<T>(name, shape, {count}, {}, [&](Threads threads, const Results<T>& y, const Results<float>&) {
    prepared.run(prepared.weights, threads, shape, x, skip, y[0]);
  });
  prepared.release(prepared.weights);
}

Attention attention(Tensors& t, int64_t c) { return {t(c * 3 * c), t(3 * c), t(1), t(c * c), t(c)}; }

Ffn ffn(Tensors& t, int64_t c, int64_t e) {
  return {t(c * 2 * e), t(2 * e), t(9 * 2 * e), t(2 * e), t(e * c), t(c), static_cast<int>(e)};
}

Gate gate(Tensors& t, int64_t c) {
  return {t(c * 2 * c), t(2 * c), t(25 * c), t(c), t(49 * c), t(c), t(c * c), t(c), t(c * c), t(c)};
}

template <class T>
void patches(const Kernels& kernels, Shape shape, int patch, Norm norm) {
  Tensors t;
  const int64_t c = shape.channels, count = shape.batch * shape.height * shape.width * c;
  const T* x = t.make<T>(count);
  const Attention attentions[] = {attention(t, c), attention(t, c)};
  const Ffn ffns[] = {ffn(t, c, 2 * c), ffn(t, c, 2 * c)};
  check("inner_patch", shape, count, kernels.inner_patch(shape.channels, attentions, ffns, 2, norm, patch), x);
}

template <class T>
void map(const Kernels& kernels, Shape shape, Norm norm) {
  Tensors t;
  const int64_t c = shape.channels, pixels = shape.batch * shape.height * shape.width;
  const T *x = t.make<T>(pixels * c), *skip = t.make<T>(pixels * c);
  const Gate gates[] = {gate(t, c), gate(t, c)};
  const Ffn ffns[] = {ffn(t, c, 2 * c + 1), ffn(t, c, 2 * c + 1)};
  check("spatial", shape, pixels * c, kernels.spatial(shape.channels, gates, ffns, 2, norm), x);
  const int outputs = 27, upscale = 3;
  const float *head_weight = t(9 * c * outputs), *head_bias = t(outputs), *weight = t(c * outputs), *bias = t(outputs);
  check("image_head", shape, pixels * outputs, kernels.image_head(shape.channels, head_weight, head_bias, outputs), x);
  const Tail tail{t(9 * c * c), t(c), t(9 * c * outputs), t(outputs), outputs, upscale};
  check("image_tail", shape, pixels * outputs, kernels.image_tail(shape.channels, tail), x, skip);
  check("tanh_affine", shape, pixels * outputs, kernels.tanh_affine(shape.channels, weight, bias, outputs), x);
  const float *scale = t(c), *offset = t(c);
  check("layer_norm2d", shape, pixels * c, kernels.layer_norm2d(shape.channels, scale, offset, 1e-5f), x);
}

template <class T>
void check_ffn_backward(const Backward<T>& backward, Shape shape, const T* grad, const T* x, const Ffn& ffn, int patch,
                        Norm norm) {
  const int64_t c = shape.channels, e = ffn.expanded, count = shape.batch * shape.height * shape.width * c;
  check<T>("gated_ffn_backward", shape, {count}, {c * 2 * e, 2 * e, 18 * e, 2 * e, e * c, c},
           [&](Threads threads, const Results<T>& dx, const Results<float>& d) {
             backward.gated_ffn(threads, shape, grad, x, ffn, norm, patch, dx[0],
                                {d[0], d[1], d[2], d[3], d[4], d[5], ffn.expanded});
           });
}

template <class T>
void patches_backward(const Backward<T>& backward, Shape shape, int patch, Norm norm) {
  Tensors t;
  const int64_t c = shape.channels, count = shape.batch * shape.height * shape.width * c;
  const T *x = t.make<T>(count), *grad = t.make<T>(count);
  const Attention weights = attention(t, c);
  check<T>("inner_patch_attention_backward", shape, {count}, {c * 3 * c, 3 * c, 1, c * c, c},
           [&](Threads threads, const Results<T>& dx, const Results<float>& d) {
             backward.inner_patch_attention(threads, shape, grad, x, weights, norm, patch, dx[0],
                                            {d[0], d[1], d[2], d[3], d[4]});
           });
  check_ffn_backward(backward, shape, grad, x, ffn(t, c, 2 * c), patch, norm);
}

template <class T>
void map_backward(const Backward<T>& backward, Shape shape, Norm norm) {
  const int outputs = 27, upscale = 3;
  Tensors t;
  const int64_t c = shape.channels, pixels = shape.batch * shape.height * shape.width;
  const T *x = t.make<T>(pixels * c), *skip = t.make<T>(pixels * c), *grad = t.make<T>(pixels * c),
          *grad_outputs = t.make<T>(pixels * outputs);
  const Gate weights = gate(t, c);
  check<T>("dilated_gate_backward", shape, {pixels * c}, {c * 2 * c, 2 * c, 25 * c, c, 49 * c, c, c * c, c, c * c, c},
           [&](Threads threads, const Results<T>& dx, const Results<float>& d) {
             backward.dilated_gate(threads, shape, grad, x, weights, norm, dx[0],
                                   {d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7], d[8], d[9]});
           });
  check_ffn_backward(backward, shape, grad, x, ffn(t, c, 2 * c + 1), 0, norm);
  const float *weight = t(c * outputs), *scale = t(c), *head_weight = t(9 * c * outputs);
  check<T>("tanh_affine_backward", shape, {pixels * c}, {c * outputs, outputs},
           [&](Threads threads, const Results<T>& dx, const Results<float>& d) {
             backward.tanh_affine(threads, shape, grad_outputs, x, weight, outputs, dx[0], d[0], d[1]);
           });
  check<T>("layer_norm2d_backward", shape, {pixels * c}, {c, c},
           [&](Threads threads, const Results<T>& dx, const Results<float>& d) {
             backward.layer_norm2d(threads, shape, grad, x, scale, 1e-5f, dx[0], d[0], d[1]);
           });
  check<T>("image_head_backward", shape, {pixels * c}, {9 * c * outputs, outputs},
           [&](Threads threads, const Results<T>& dx, const Results<float>& d) {
             backward.image_head(threads, shape, grad_outputs, x, head_weight, outputs, dx[0], d[0], d[1]);
           });
  const Tail tail{t(9 * c * c), t(c), t(9 * c * outputs), t(outputs), outputs, upscale};
  check<T>("image_tail_backward", shape, {pixels * c, pixels * c}, {9 * c * c, c, 9 * c * outputs, outputs},
           [&](Threads threads, const Results<T>& dx, const Results<float>& d) {
             backward.image_tail(threads, shape, grad_outputs, x, skip, tail, dx[0], dx[1],
                                 {d[0], d[1], d[2], d[3], outputs, upscale});
           });
}

std::vector<int> all_channels = {1, 7, 60, 128};

// On every norm, odd numbers of channels, patch sizes, and maps that no tile divides.
void every_size(const std::function<void(Shape, int, Norm)>& patches, const std::function<void(Shape, Norm)>& map) {
  for (const Norm norm : {Norm::kNone, Norm::kTanh, Norm::kLayerNorm}) {
    for (const int channels : all_channels) {
      for (const int patch : {4, 8, 16}) patches({2, patch, 2 * patch, channels}, patch, norm);
      for (const auto& [height, width] : {std::pair<int, int>{1, 1}, {3, 163}, {17, 31}, {37, 5}}) {
        map({2, height, width, channels}, norm);
      }
    }
  }
}

template <class T>
void every_size(const Backward<T>& backward) {
  every_size([&](Shape shape, int patch, Norm norm) { patches_backward(backward, shape, patch, norm); },
             [&](Shape shape, Norm norm) { map_backward(backward, shape, norm); });
}

template <class T>
void every_size(const Kernels& kernels) {
  every_size([&](Shape shape, int patch, Norm norm) { patches<T>(kernels, shape, patch, norm); },
             [&](Shape shape, Norm norm) { map<T>(kernels, shape, norm); });
}

}  // namespace

int main(int count, char** arguments) {
  if (count == 3 && std::strcmp(arguments[1], "--digest") == 0) {
    digest = true;
    all_channels = {std::atoi(arguments[2])};
  }
  every_size<float>(level().for_float);
  every_size<bfloat16>(level().for_bfloat16);
  every_size<float16>(level().for_float16);
  every_size(*level().backward_of_float);
  every_size(*level().backward_of_bfloat16);
  for (const char* name : {"exp", "tanh", "erf"}) {
    const std::vector<float> x{-INFINITY, -1e30f, -1.0f, 0.0f, NAN, 1e-40f, 1.0f, 1e30f, INFINITY};
    std::vector<float> y(x.size());
    level().function(name, x.data(), y.data(), static_cast<int64_t>(x.size()));
    if (digest) print_digest<float>(name, {1, 1, 1, 1}, {y[0], y[2], y[3], y[6]});
  }
  std::printf("%s: clean\n", level().name);
}
