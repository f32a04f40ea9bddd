# SPDX-License-Identifier: Apache-2.0
"""layer_norm2d in Triton: a block of pixels, each with all its channels."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ditn_kernels.backends.triton._launch import KernelLauncher, cdiv, dense, padded
from ditn_kernels.backends.triton._math import load_vector, rounded, standardized

CANDIDATES = {"layer_norm2d_fwd": {"BLOCK": (16, 32, 64, 128)}}


@triton.jit
def _layer_norm2d_fwd_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    eps,
    pixels,
    C: tl.constexpr,
    C_PAD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """weight * (x - mean) / sqrt(var + eps) + bias over the channels of every pixel.

    Grid: one program per block of pixels.
    """
    channel = tl.arange(0, C_PAD)
    pixel = tl.arange(0, BLOCK)
    first = tl.program_id(0).to(tl.int64) * BLOCK
    inside = (pixel < pixels - first)[:, None] & (channel < C)[None, :]
    offset = first * C + pixel[:, None] * C + channel[None, :]
    x = tl.load(x_ptr + offset, inside, 0.0).to(tl.float32)  # [BLOCK, C_PAD]
    weight = load_vector(weight_ptr, channel, C)[None, :]
    y = standardized(x, channel, C, eps) * weight + load_vector(bias_ptr, channel, C)[None, :]
    tl.store(y_ptr + offset, rounded(y, y_ptr.dtype.element_ty), inside)


def forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    batch, channels, height, width = x.shape
    x = dense(x)
    y = torch.empty_like(x)
    pixels = batch * height * width
    launcher = KernelLauncher(_layer_norm2d_fwd_kernel, x, channels=padded(channels))
    args = (x, weight.contiguous(), bias.contiguous(), y, eps, pixels)
    launcher.launch(cdiv(pixels, launcher.blocks["BLOCK"]), *args, C=channels, C_PAD=padded(channels))
    return y
