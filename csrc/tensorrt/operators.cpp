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

const std::vector<Operator>& operators() {
  static const std::vector<Operator> all{
      {"inner_patch_attention",
       {{"x", "B H W C"},
        {"qkv_weight", "C 3C"},
        {"qkv_bias", "3C"},
        {"temperature", "1"},
        {"out_weight", "C C"},
        {"out_bias", "C"}},
       {4, 8, 16},
       128,
       inner_patch_attention<__half>,
       inner_patch_attention<float>},
      {"gated_ffn",
       {{"x", "B H W C"},
        {"in_weight", "C 2E"},
        {"in_bias", "2E"},
        {"dw_weight", "3 3 2E"},
        {"dw_bias", "2E"},
        {"out_weight", "E C"},
        {"out_bias", "C"}},
       {0, 4, 8, 16},
       128,
       gated_ffn<__half>,
       gated_ffn<float>},
      {"dilated_gate",
       {{"x", "B H W C"},
        {"in_weight", "C 2C"},
        {"in_bias", "2C"},
        {"dw5_weight", "5 5 C"},
        {"dw5_bias", "C"},
        {"dw7_weight", "7 7 C"},
        {"dw7_bias", "C"},
        {"mix_weight", "C C"},
        {"mix_bias", "C"},
        {"out_weight", "C C"},
        {"out_bias", "C"}},
       {},
       128,
       dilated_gate<__half>,
       dilated_gate<float>},
  };
  return all;
}

}  // namespace ditn::tensorrt
