# SPDX-License-Identifier: Apache-2.0
"""What the compiled kernels can run of each operator."""

from __future__ import annotations

from dataclasses import replace

import torch

from ditn_kernels._support import Support

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_STAGE = Support(devices=("cpu",), dtypes=_DTYPES, max_channels=128, patch_sizes=(4, 8, 16))
_LAYER = replace(_STAGE, backward=(torch.float32, torch.bfloat16))
_LAYER_ON_MAPS = replace(_LAYER, patch_sizes=(0, 4, 8, 16))

CPU = {
    "tanh_affine": _LAYER,
    "layer_norm2d": _LAYER,
    "image_head": _LAYER,
    "inner_patch_attention": _LAYER,
    "gated_ffn": _LAYER_ON_MAPS,
    "dilated_gate": _LAYER,
    "inner_patch_stage": _STAGE,
    "spatial_stage": _STAGE,
    "image_tail": _LAYER,
}

_CUDA = Support(devices=("cuda",), dtypes=(torch.float16, torch.float32), max_channels=128, patch_sizes=(4, 8, 16))
_CUDA_ON_MAPS = replace(_CUDA, patch_sizes=(0, 4, 8, 16))
# Their results lie in shared memory, sorted for the pixel shuffle.
_CUDA_CONV = replace(_CUDA, max_outputs=128)
# A stage is one kernel for the shipped networks' patches. For others it is the kernels of its layers, and whether those
# are the fastest is better asked of each.
_CUDA_STAGE = replace(_CUDA, auto=Support(dtypes=(torch.float16, torch.bfloat16), max_channels=64, patch_sizes=(8,)))
# The kernels of its layers, for which the host is called once.
_CUDA_SPATIAL_STAGE = replace(_CUDA, as_layers=True)
# In bfloat16 there are the kernels for compute capability 9.0 alone, which take what csrc/cuda/hopper.cu says.
_HOPPER = replace(_CUDA, dtypes=(torch.bfloat16,), max_channels=64, min_capability=(9, 0), before_capability=(10, 0))
_HOPPER_CONV = replace(_HOPPER, max_outputs=128)
_HOPPER_FFN = replace(_HOPPER, max_expanded=127, patch_sizes=(0,))
_HOPPER_STAGE = replace(_HOPPER_FFN, patch_sizes=(8,))


def _with_bfloat16(support: Support, hopper: Support) -> Support:
    return replace(support, forward_in={torch.bfloat16: hopper})


CUDA = {
    "tanh_affine": _CUDA,
    "layer_norm2d": _CUDA,
    "image_head": _with_bfloat16(_CUDA_CONV, _HOPPER_CONV),
    "inner_patch_attention": _CUDA,
    "gated_ffn": _with_bfloat16(_CUDA_ON_MAPS, _HOPPER_FFN),
    "dilated_gate": _with_bfloat16(_CUDA, _HOPPER),
    "inner_patch_stage": _with_bfloat16(_CUDA_STAGE, _HOPPER_STAGE),
    "spatial_stage": _with_bfloat16(_CUDA_SPATIAL_STAGE, replace(_HOPPER, max_expanded=127)),
    "image_tail": _with_bfloat16(_CUDA_CONV, _HOPPER_CONV),
}
