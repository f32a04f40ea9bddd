// SPDX-License-Identifier: Apache-2.0
// Runs every kernel of this CPU's level on awkward sizes, for the sanitizers (`make sanitize`): memory that is touched
// outside its allocation, undefined arithmetic, races. Fails itself where 1 and 3 threads give different bits or a
// result is not finite. That results are right is tested from Python.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#include "cpu/kernels.h"

using namespace ditn;

namespace {

using Floats = std::vector<float>;

void run_alone(int64_t, void (*work)(void*), void* argument) { work(argument); }

void run_on_three(int64_t most, void (*work)(void*), void* argument) {
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < 3 && i < most; ++i) threads.emplace_back(work, argument);
  for (std::thread& thread : threads) thread.join();
}

// Pseudo-random numbers in [-0.2, 0.2); each tensor its own allocation, with nothing behind its end.
class Tensors {
 public:
  const float* operator()(int64_t count) {
    Floats& values = all_.emplace_back(static_cast<size_t>(count));
    for (float& value : values) {
      state_ = state_ * 1664525u + 1013904223u;
      value = (static_cast<float>(state_ >> 8) / (1 << 24) - 0.5f) * 0.4f;
    }
    return values.data();
  }

 private:
  std::vector<Floats> all_;
  uint32_t state_ = 1;
};

// Results of so many floats each.
using Results = std::vector<float*>;

std::vector<Floats> results(const std::vector<int64_t>& counts, Threads threads,
                            const std::function<void(Threads, const Results&)>& kernel) {
  std::vector<Floats> all;
  Results pointers;
  for (const int64_t count : counts) all.emplace_back(static_cast<size_t>(count), NAN);
  for (Floats& values : all) pointers.push_back(values.data());
  kernel(threads, pointers);
  return all;
}

void check(const char* name, const Shape& shape, const std::vector<int64_t>& counts,
           const std::function<void(Threads, const Results&)>& kernel) {
  const std::vector<Floats> alone = results(counts, {run_alone}, kernel), together = results(counts, {run_on_three}, kernel);
  bool good = true;
  for (size_t i = 0; i < alone.size(); ++i) {
    good = good && std::memcmp(alone[i].data(), together[i].data(), alone[i].size() * sizeof(float)) == 0;
    for (const float value : alone[i]) good = good && std::isfinite(value);
  }
  if (good) return;
  std::printf("%s %ldx%ldx%ldx%d: results differ or are not finite\n", name, static_cast<long>(shape.batch),
              static_cast<long>(shape.height), static_cast<long>(shape.width), shape.channels);
  std::exit(1);
}

Attention attention(Tensors& t, int64_t c) { return {t(c * 3 * c), t(3 * c), t(1), t(c * c), t(c)}; }

Ffn ffn(Tensors& t, int64_t c, int64_t e) {
  return {t(c * 2 * e), t(2 * e), t(9 * 2 * e), t(2 * e), t(e * c), t(c), static_cast<int>(e)};
}

Gate gate(Tensors& t, int64_t c) {
  return {t(c * 2 * c), t(2 * c), t(25 * c), t(c), t(49 * c), t(c), t(c * c), t(c), t(c * c), t(c)};
}

void check_ffn_backward(const Backward& backward, Shape shape, const float* grad, const float* x, const Ffn& ffn, Norm norm,
                        int patch) {
  const int64_t c = shape.channels, e = ffn.expanded, count = shape.batch * shape.height * shape.width * c;
  check("gated_ffn_backward", shape, {count, c * 2 * e, 2 * e, 18 * e, 2 * e, e * c, c}, [&](Threads threads, const Results& d) {
    backward.gated_ffn(threads, shape, grad, x, ffn, norm, patch, d[0], {d[1], d[2], d[3], d[4], d[5], d[6], ffn.expanded});
  });
}

void patches(const Kernels& kernels, const Backward& backward, Shape shape, int patch, Norm norm) {
  Tensors t;
  const int64_t c = shape.channels, count = shape.batch * shape.height * shape.width * c;
  const float* x = t(count);
  const Attention attentions[] = {attention(t, c), attention(t, c)};
  const Ffn ffns[] = {ffn(t, c, 2 * c), ffn(t, c, 2 * c)};
  check("inner_patch", shape, {count}, [&](Threads threads, const Results& y) {
    kernels.inner_patch(threads, shape, x, y[0], attentions, ffns, 2, norm, patch);
  });
  const float* grad = t(count);
  check("inner_patch_attention_backward", shape, {count, c * 3 * c, 3 * c, 1, c * c, c}, [&](Threads threads, const Results& d) {
    backward.inner_patch_attention(threads, shape, grad, x, attentions[0], norm, patch, d[0], {d[1], d[2], d[3], d[4], d[5]});
  });
  check_ffn_backward(backward, shape, grad, x, ffns[0], norm, patch);
}

void map(const Kernels& kernels, const Backward& backward, Shape shape, Norm norm) {
  Tensors t;
  const int64_t c = shape.channels, pixels = shape.batch * shape.height * shape.width;
  const float *x = t(pixels * c), *skip = t(pixels * c);
  const Gate gates[] = {gate(t, c), gate(t, c)};
  const Ffn ffns[] = {ffn(t, c, 2 * c + 1), ffn(t, c, 2 * c + 1)};
  check("spatial", shape, {pixels * c}, [&](Threads threads, const Results& y) {
    kernels.spatial(threads, shape, x, y[0], gates, ffns, 2, norm);
  });
  check("dilated_gate_backward", shape, {pixels * c, c * 2 * c, 2 * c, 25 * c, c, 49 * c, c, c * c, c, c * c, c},
        [&](Threads threads, const Results& d) {
          backward.dilated_gate(threads, shape, skip, x, gates[0], norm, d[0],
                                {d[1], d[2], d[3], d[4], d[5], d[6], d[7], d[8], d[9], d[10]});
        });
  check_ffn_backward(backward, shape, skip, x, ffns[0], norm, 0);
  const int outputs = 27, upscale = 3;
  const float *head_weight = t(9 * c * outputs), *head_bias = t(outputs), *weight = t(c * outputs), *bias = t(outputs);
  check("image_head", shape, {pixels * outputs}, [&](Threads threads, const Results& y) {
    kernels.image_head(threads, shape, x, y[0], head_weight, head_bias, outputs);
  });
  const Tail tail{t(9 * c * c), t(c), t(9 * c * outputs), t(outputs), outputs, upscale};
  check("image_tail", shape, {pixels * outputs}, [&](Threads threads, const Results& y) {
    kernels.image_tail(threads, shape, x, skip, y[0], tail);
  });
  check("tanh_affine", shape, {pixels * outputs}, [&](Threads threads, const Results& y) {
    kernels.tanh_affine(threads, shape, x, y[0], weight, bias, outputs);
  });
  const float* grad = t(pixels * outputs);
  check("tanh_affine_backward", shape, {pixels * c, c * outputs, outputs}, [&](Threads threads, const Results& d) {
    backward.tanh_affine(threads, shape, grad, x, weight, outputs, d[0], d[1], d[2]);
  });
  const float *scale = t(c), *offset = t(c);
  check("layer_norm2d", shape, {pixels * c}, [&](Threads threads, const Results& y) {
    kernels.layer_norm2d(threads, shape, x, y[0], scale, offset, 1e-5f);
  });
  check("layer_norm2d_backward", shape, {pixels * c, c, c}, [&](Threads threads, const Results& d) {
    backward.layer_norm2d(threads, shape, skip, x, scale, 1e-5f, d[0], d[1], d[2]);
  });
  check("image_head_backward", shape, {pixels * c, 9 * c * outputs, outputs}, [&](Threads threads, const Results& d) {
    backward.image_head(threads, shape, grad, x, head_weight, outputs, d[0], d[1], d[2]);
  });
  check("image_tail_backward", shape, {pixels * c, pixels * c, 9 * c * c, c, 9 * c * outputs, outputs},
        [&](Threads threads, const Results& d) {
          backward.image_tail(threads, shape, grad, x, skip, tail, d[0], d[1], {d[2], d[3], d[4], d[5], outputs, upscale});
        });
}

}  // namespace

int main() {
  const Kernels& kernels = *level().kernels;
  const Backward& backward = *level().backward;
  for (const Norm norm : {Norm::kNone, Norm::kTanh, Norm::kLayerNorm}) {
    for (const int channels : {1, 7, 60, 128}) {
      for (const int patch : {4, 8, 16}) patches(kernels, backward, {2, patch, 2 * patch, channels}, patch, norm);
      for (const auto& [height, width] : {std::pair<int, int>{1, 1}, {3, 70}, {17, 31}, {33, 5}}) {
        map(kernels, backward, {2, height, width, channels}, norm);
      }
    }
  }
  for (const char* name : {"exp", "tanh", "erf"}) {
    const Floats x{-INFINITY, -1e30f, -1.0f, 0.0f, NAN, 1e-40f, 1.0f, 1e30f, INFINITY};
    Floats y(x.size());
    kernels.function(name, x.data(), y.data(), static_cast<int64_t>(x.size()));
  }
  std::printf("%s: clean\n", level().name);
}
