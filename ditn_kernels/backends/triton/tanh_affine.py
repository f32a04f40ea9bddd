# SPDX-License-Identifier: Apache-2.0
"""tanh_affine in Triton: a block of pixels, one product."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ditn_kernels.backends.triton._launch import KernelLauncher, cdiv, dense, empty_map, padded
from ditn_kernels.backends.triton._math import dot, load_vector, rounded, tanh

CANDIDATES = {"tanh_affine_fwd": {"BLOCK": (32, 64, 128)}}


@triton.jit
def _tanh_affine_fwd_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    pixels,
    C: tl.constexpr,
    C_PAD: tl.constexpr,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """W tanh(x) + b at every pixel.

    Grid: one program per block of pixels.
    """
    c = tl.arange(0, C_PAD)
    d = tl.arange(0, D_PAD)
    pixel = tl.arange(0, BLOCK)
    first = tl.program_id(0).to(tl.int64) * BLOCK
    inside = (pixel < pixels - first)[:, None]
    x_pointers = x_ptr + first * C + pixel[:, None] * C + c[None, :]
    u = tanh(tl.load(x_pointers, inside & (c < C)[None, :], 0.0))  # [BLOCK, C_PAD]
    weight_pointers = weight_ptr + c[:, None] * D + d[None, :]
    weight = tl.load(weight_pointers, (c < C)[:, None] & (d < D)[None, :], 0.0)
    bias = tl.broadcast_to(load_vector(bias_ptr, d, D)[None, :], (BLOCK, D_PAD))
    y = rounded(dot(u, weight, bias, PRECISION), y_ptr.dtype.element_ty)  # [BLOCK, D_PAD]
    tl.store(y_ptr + first * D + pixel[:, None] * D + d[None, :], y, inside & (d < D)[None, :])


def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    outputs = weight.shape[1]
    y = empty_map(x, outputs, height, width)
    pixels = batch * height * width
    launcher = KernelLauncher(_tanh_affine_fwd_kernel, x, channels=padded(max(channels, outputs)))
    launcher.launch(
        cdiv(pixels, launcher.blocks["BLOCK"]),
        dense(x),
        weight.contiguous(),
        bias.contiguous(),
        y,
        pixels,
        C=channels,
        C_PAD=padded(channels),
        D=outputs,
        D_PAD=padded(outputs),
    )
    return y
