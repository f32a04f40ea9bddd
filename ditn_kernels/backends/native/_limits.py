# SPDX-License-Identifier: Apache-2.0
"""What the compiled kernels can run of each operator."""

from __future__ import annotations

from dataclasses import replace

import torch

from ditn_kernels._support import Support

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_STAGE = Support(devices=("cpu",), dtypes=_DTYPES, max_channels=128, patch_sizes=(4, 8, 16))
_LAYER = replace(_STAGE, backward=(torch.float32,))
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
_CUDA_STAGE = replace(_CUDA, auto=Support(dtypes=(torch.float16,), max_channels=64, patch_sizes=(8,)))

CUDA = {
    "tanh_affine": _CUDA,
    "layer_norm2d": _CUDA,
    "image_head": _CUDA_CONV,
    "inner_patch_attention": _CUDA,
    "gated_ffn": _CUDA_ON_MAPS,
    "dilated_gate": _CUDA,
    "inner_patch_stage": _CUDA_STAGE,
    "image_tail": _CUDA_CONV,
}
