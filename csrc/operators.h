// SPDX-License-Identifier: Apache-2.0
// What the operators are given besides activations, for the kernels of every device.
#pragma once

#include <cstdint>

namespace ditn {

enum class Norm : int64_t { kNone, kTanh, kLayerNorm };

// Dense maps [batch, height, width, channels].
struct Shape {
  int64_t batch, height, width;
  int channels;
};

// Weights are input-major; every bias is there. Value is const float or const __half for weights, float for gradients.
template <class Value>
struct AttentionOf {
  Value *qkv_weight, *qkv_bias;  // [C, 3C], [3C]
  Value* temperature;            // [1]
  Value *out_weight, *out_bias;  // [C, C], [C]
};

template <class Value>
struct FfnOf {
  Value *in_weight, *in_bias;    // [C, 2E], [2E]
  Value *dw_weight, *dw_bias;    // [3, 3, 2E], [2E]
  Value *out_weight, *out_bias;  // [E, C], [C]
  int expanded;                  // E
};

template <class Value>
struct GateOf {
  Value *in_weight, *in_bias;    // [C, 2C], [2C]
  Value *dw5_weight, *dw5_bias;  // [5, 5, C], [C]
  Value *dw7_weight, *dw7_bias;  // [7, 7, C], [C]
  Value *mix_weight, *mix_bias;  // [C, C], [C]
  Value *out_weight, *out_bias;  // [C, C], [C]
};

template <class Value>
struct TailOf {
  Value *body_weight, *body_bias;  // [3, 3, C, C], [C]
  Value *up_weight, *up_bias;      // [3, 3, C, outputs], [outputs]
  int outputs, upscale;
};

}  // namespace ditn
