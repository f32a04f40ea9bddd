// SPDX-License-Identifier: Apache-2.0
#include "operators.h"

namespace ditn::tensorrt {

namespace {

// The map, the result and the weights of a call, as what they are.
template <class T>
struct Typed {
  const Call& call;
  const T* in(int i) const { return static_cast<const T*>(call.inputs[i]); }
  T* out() const { return static_cast<T*>(call.output); }
};

template <class T>
void inner_patch_attention(const Call& call) {
  const Typed<T> t{call};
  cuda::inner_patch_attention<T>(call.device, call.shape, t.in(0), t.out(), {t.in(1), t.in(2), t.in(3), t.in(4), t.in(5)},
                                 call.options.norm, call.options.patch_size);
}

template <class T>
void gated_ffn(const Call& call) {
  const Typed<T> t{call};
  const FfnOf<const T> weights{t.in(1), t.in(2), t.in(3), t.in(4), t.in(5), t.in(6), call.expanded};
  cuda::gated_ffn<T>(call.device, call.shape, t.in(0), t.out(), weights, call.options.norm, call.options.patch_size);
}

template <class T>
void dilated_gate(const Call& call) {
  const Typed<T> t{call};
  const GateOf<const T> weights{t.in(1), t.in(2), t.in(3), t.in(4), t.in(5), t.in(6), t.in(7), t.in(8), t.in(9), t.in(10)};
  cuda::dilated_gate<T>(call.device, call.shape, t.in(0), t.out(), weights, call.options.norm);
}

}  // namespace

// `operators()`: written by ditn_kernels/_interface.py when the library is built.
#include "tensorrt_operators.h"

}  // namespace ditn::tensorrt
