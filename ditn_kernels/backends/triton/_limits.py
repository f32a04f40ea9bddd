# SPDX-License-Identifier: Apache-2.0
"""What the Triton kernels can run of each operator."""

from __future__ import annotations

from dataclasses import replace

import torch

from ditn_kernels._support import Support

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_FORWARD = Support(dtypes=_DTYPES, max_channels=128, patch_sizes=(0, 4, 8, 16), min_capability=(7, 5))
# Before Ampere Triton multiplies without tensor cores, which no gradient has the registers for.
_BOTH = replace(_FORWARD, backward=_DTYPES, min_capability_backward=(8, 0))
# Gradients of more than 64 channels have no room: counted were up to 20 KB of stack, and in float32 more shared memory
# than chips have. The FFN's takes its hidden channels in slices.
_LAYER = replace(_BOTH, max_channels_backward_of=dict.fromkeys(_DTYPES, 64))
_FFN = replace(_BOTH, max_channels_backward_of={torch.float32: 64})
# Enough for x8 in colour: 192. Its gradients would spill (counted: 400 bytes and more in float32).
_TAIL = replace(_LAYER, max_outputs=256, max_outputs_backward=128)
# A stage keeps a whole patch in registers, for which float32 and more than 64 channels are too wide. It runs only if it
# is forced: four layers, one after the other, take fewer cycles, in float16 (counted) 43,500 on sm_90, where the stage
# takes 46,400, and 36,200 on sm_100 instead of 49,800. On an H200 former kernels took 1,916 us and 2,106. Where matrix
# instructions take no factor from shared memory, the stage is worse still.
_STAGE = replace(
    _FORWARD,
    dtypes=(torch.float16, torch.bfloat16),
    max_channels=64,
    patch_sizes=(4, 8),
    min_capability=(9, 0),
    before_capability=(12, 0),
    auto=Support(before_capability=(9, 0)),
)

LIMITS = {
    "tanh_affine": _BOTH,
    "layer_norm2d": _FORWARD,
    "image_head": _LAYER,
    "inner_patch_attention": _LAYER,
    "gated_ffn": _FFN,
    "dilated_gate": _LAYER,
    "inner_patch_stage": _STAGE,
    "image_tail": _TAIL,
}
