# SPDX-License-Identifier: Apache-2.0
"""image_head in Triton: a 3x3 convolution of a piece of a row (`_conv3x3.py`)."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ditn_kernels.backends.triton._conv3x3 import conv3x3, loops_of_conv3x3
from ditn_kernels.backends.triton._launch import KernelLauncher, cdiv, empty_map, padded
from ditn_kernels.backends.triton._math import rounded

CANDIDATES = {"image_head_fwd": {"BLOCK_W": (16, 32, 64, 128, 256)}}


@triton.jit
def _image_head_fwd_kernel(
    image_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    stride_b,
    stride_n,
    stride_y,
    stride_x,
    H,
    W,
    segments,
    N: tl.constexpr,
    N_PAD: tl.constexpr,
    C: tl.constexpr,
    C_PAD: tl.constexpr,
    BLOCK_W: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """conv3x3(image) + b, of an image with any strides.

    Grid: one program per piece of a row.
    """
    n = tl.arange(0, N_PAD)
    c = tl.arange(0, C_PAD)
    row = tl.program_id(0) // segments
    left = tl.program_id(0) % segments * BLOCK_W
    column = tl.arange(0, BLOCK_W)
    image_ptr += (row // H).to(tl.int64) * stride_b
    y = conv3x3(
        image_ptr,
        n.to(tl.int64) * stride_n,
        stride_y,
        stride_x,
        row % H,
        left,
        column,
        H,
        W,
        n,
        weight_ptr,
        bias_ptr,
        c,
        N,
        C,
        PRECISION,
    )  # [BLOCK_W, C_PAD]
    pixel = row.to(tl.int64) * W + left
    inside = (column < W - left)[:, None] & (c < C)[None, :]
    tl.store(y_ptr + pixel * C + column[:, None] * C + c[None, :], rounded(y, y_ptr.dtype.element_ty), inside)


def forward(image: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    batch, inputs, height, width = image.shape
    channels = weight.shape[3]
    y = empty_map(image, channels, height, width)
    launcher = KernelLauncher(_image_head_fwd_kernel, image, inputs=padded(inputs), channels=padded(channels))
    segments = cdiv(width, launcher.blocks["BLOCK_W"])
    launcher.launch(
        batch * height * segments,
        image,
        weight.contiguous(),
        bias.contiguous(),
        y,
        *image.stride(),
        height,
        width,
        segments,
        N=inputs,
        N_PAD=padded(inputs),
        C=channels,
        C_PAD=padded(channels),
    )
    return y


LOOPS = {"image_head_fwd": lambda given: loops_of_conv3x3(given["image_ptr"])}
