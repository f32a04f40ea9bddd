// SPDX-License-Identifier: Apache-2.0
// The backward kernels of one instruction-set level. Compiled once per level, as kernels.cpp is.
#include "dilated_gate_backward.h"
#include "gated_ffn_backward.h"
#include "image_head_backward.h"
#include "image_tail_backward.h"
#include "inner_patch_attention_backward.h"
#include "layer_norm2d_backward.h"
#include "tanh_affine_backward.h"

namespace ditn::DITN_LEVEL {

extern const Backward backward;
const Backward backward = {
    inner_patch_attention_backward, gated_ffn_backward,  dilated_gate_backward, tanh_affine_backward,
    layer_norm2d_backward,          image_head_backward, image_tail_backward};

}  // namespace ditn::DITN_LEVEL
