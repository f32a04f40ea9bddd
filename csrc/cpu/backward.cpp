// SPDX-License-Identifier: Apache-2.0
// The backward kernels of one instruction-set level. Compiled once per level, as kernels.cpp is, but for AMX.
#include "dilated_gate_backward.h"
#include "gated_ffn_backward.h"
#include "image_head_backward.h"
#include "image_tail_backward.h"
#include "inner_patch_attention_backward.h"
#include "layer_norm2d_backward.h"
#include "tanh_affine_backward.h"

namespace ditn::DITN_LEVEL {

template <class T>
constexpr Backward<T> kBackward = {inner_patch_attention_backward<T>, gated_ffn_backward<T>,  dilated_gate_backward<T>,
                                   tanh_affine_backward<T>,           layer_norm2d_backward<T>, image_head_backward<T>,
                                   image_tail_backward<T>};

extern const Backward<float> backward_of_float;
const Backward<float> backward_of_float = kBackward<float>;
extern const Backward<bfloat16> backward_of_bfloat16;
const Backward<bfloat16> backward_of_bfloat16 = kBackward<bfloat16>;

}  // namespace ditn::DITN_LEVEL
