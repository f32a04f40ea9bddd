// SPDX-License-Identifier: Apache-2.0
// What the CPU kernels take and offer. No torch here: raw pointers, sizes, and a way to use threads.
#pragma once

#include <cstdint>

#include "../operators.h"

namespace ditn {

// Types of activations in memory besides float. Weights are always float, and so are sums.
struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

// run(n, work, argument) calls work(argument) on up to n threads at once and returns when all have; count() is how many
// threads there are.
struct Threads {
  void (*run)(int64_t most, void (*work)(void*), void* argument);
  int64_t (*count)();
};

using Attention = AttentionOf<const float>;
using Ffn = FfnOf<const float>;
using Gate = GateOf<const float>;
using Tail = TailOf<const float>;

// An operator with a copy of its weights, in the order in which its kernel reads them: y = run(x) for maps of its number of
// channels, from any thread. `skip` is the second map of those operators that have one. Results do not depend on `Threads`.
struct Prepared {
  const void* weights;
  void (*run)(const void* weights, Threads, Shape, const void* x, const void* skip, void* y);
  void (*release)(const void* weights);
};

// Prepares the operators for activations of one type. A null pointer for the attentions, the gates or the ffns leaves them
// out.
struct Kernels {
  Prepared (*inner_patch)(int channels, const Attention*, const Ffn*, int layers, Norm, int patch);
  Prepared (*spatial)(int channels, const Gate*, const Ffn*, int layers, Norm);
  Prepared (*image_head)(int channels, const float* weight, const float* bias, int outputs);
  Prepared (*image_tail)(int channels, const Tail&);
  Prepared (*tanh_affine)(int channels, const float* weight, const float* bias, int outputs);
  Prepared (*layer_norm2d)(int channels, const float* weight, const float* bias, float eps);
};

// Gradients of the operators of the same names for activations of type T, from that of their result, grad, and their
// arguments.
template <class T>
struct Backward {
  void (*inner_patch_attention)(Threads, Shape, const T* grad, const T* x, const Attention&, Norm, int patch, T* dx,
                                const AttentionOf<float>&);
  // patch 0: the whole map is one.
  void (*gated_ffn)(Threads, Shape, const T* grad, const T* x, const Ffn&, Norm, int patch, T* dx, const FfnOf<float>&);
  void (*dilated_gate)(Threads, Shape, const T* grad, const T* x, const Gate&, Norm, T* dx, const GateOf<float>&);
  void (*tanh_affine)(Threads, Shape, const T* grad, const T* x, const float* weight, int outputs, T* dx, float* dweight,
                      float* dbias);
  void (*layer_norm2d)(Threads, Shape, const T* grad, const T* x, const float* weight, float eps, T* dx, float* dweight,
                       float* dbias);
  void (*image_head)(Threads, Shape, const T* grad, const T* image, const float* weight, int outputs, T* dimage, float* dweight,
                     float* dbias);
  void (*image_tail)(Threads, Shape, const T* grad, const T* x, const T* skip, const Tail&, T* dx, T* dskip,
                     const TailOf<float>&);
};

// One instruction-set level: the same functions, compiled for it.
struct Level {
  const char* name;
  Kernels for_float, for_bfloat16, for_float16;
  const Backward<float>* backward_of_float;
  const Backward<bfloat16>* backward_of_bfloat16;
  void (*function)(const char* name, const float* x, float* y, int64_t count);  // exp, tanh or erf, for tests
  int64_t (*fma_loop)(Threads, int64_t units);  // nothing but FMAs in registers; returns floating-point operations
};

// The level this CPU can run best, or the one named by DITN_CPU_LEVEL. Throws std::runtime_error if that is
// unknown, was not compiled in, or needs instructions that this CPU lacks.
const Level& level();

}  // namespace ditn
