# SPDX-License-Identifier: Apache-2.0
"""image_tail in Triton: two convolutions; the first adds the skip, the second shuffles pixels as it stores them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ditn_kernels.backends.triton._conv3x3 import conv3x3, loops_of_conv3x3
from ditn_kernels.backends.triton._launch import KernelLauncher, cdiv, dense, empty_map, padded
from ditn_kernels.backends.triton._math import rounded
from ditn_kernels.ops.image_tail import TailWeights

CANDIDATES = {
    "image_tail_body_fwd": {"BLOCK_W": (16, 32, 64, 128, 256)},
    "image_tail_up_fwd": {"BLOCK_W": (16, 32, 64, 128, 256)},
}


@triton.jit
def _image_tail_body_fwd_kernel(
    x_ptr,
    skip_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    H,
    W,
    segments,
    C: tl.constexpr,
    C_PAD: tl.constexpr,
    BLOCK_W: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """conv3x3(x) + b + skip.

    Grid: one program per piece of a row.
    """
    channel = tl.arange(0, C_PAD)
    row = tl.program_id(0) // segments
    left = tl.program_id(0) % segments * BLOCK_W
    column = tl.arange(0, BLOCK_W)
    image_ptr = x_ptr + (row // H).to(tl.int64) * H * W * C
    y = conv3x3(
        image_ptr,
        channel,
        W * C,
        C,
        row % H,
        left,
        column,
        H,
        W,
        channel,
        weight_ptr,
        bias_ptr,
        channel,
        C,
        C,
        PRECISION,
    )  # [BLOCK_W, C_PAD]
    offset = (row.to(tl.int64) * W + left) * C + column[:, None] * C + channel[None, :]
    inside = (column < W - left)[:, None] & (channel < C)[None, :]
    y += tl.load(skip_ptr + offset, inside, 0.0).to(tl.float32)
    tl.store(y_ptr + offset, rounded(y, y_ptr.dtype.element_ty), inside)


@triton.jit
def shuffled(lane, W, OUTPUTS: tl.constexpr, UPSCALE: tl.constexpr):
    """The offsets in memory of one pixel's channels after pixel_shuffle, from the first of them, in an image of
    UPSCALE * W columns. The channels are in the order of storage: the UPSCALE x UPSCALE pixels row by row, OUTPUTS
    values each."""
    run = UPSCALE * OUTPUTS  # what one pixel gives to each upscaled row
    return (lane // run).to(tl.int64) * W * run + lane % run


@triton.jit
def _image_tail_up_fwd_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    H,
    W,
    segments,
    C: tl.constexpr,
    C_PAD: tl.constexpr,
    OUTPUTS: tl.constexpr,
    UPSCALE: tl.constexpr,
    D_PAD: tl.constexpr,
    BLOCK_W: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """pixel_shuffle(conv3x3(x) + b), OUTPUTS channels. The weights' columns are in the order of storage.

    Grid: one program per piece of a row.
    """
    D: tl.constexpr = OUTPUTS * UPSCALE * UPSCALE
    channel = tl.arange(0, C_PAD)
    lane = tl.arange(0, D_PAD)
    row = tl.program_id(0) // segments
    left = tl.program_id(0) % segments * BLOCK_W
    column = tl.arange(0, BLOCK_W)
    image_ptr = x_ptr + (row // H).to(tl.int64) * H * W * C
    y = conv3x3(
        image_ptr, channel, W * C, C, row % H, left, column, H, W, channel, weight_ptr, bias_ptr, lane, C, D, PRECISION
    )  # [BLOCK_W, D_PAD]
    run = UPSCALE * OUTPUTS
    corner = y_ptr + (row.to(tl.int64) * UPSCALE * W + left) * run
    place = shuffled(lane, W, OUTPUTS, UPSCALE)
    inside = (column < W - left)[:, None] & (lane < D)[None, :]
    tl.store(corner + column[:, None] * run + place[None, :], rounded(y, y_ptr.dtype.element_ty), inside)


def forward(x: Tensor, skip: Tensor, weights: TailWeights, upscale: int) -> Tensor:
    batch, channels, height, width = x.shape
    outputs = weights.up_weight.shape[3] // upscale**2
    deep = body(x, skip, weights)
    y = empty_map(x, outputs, height * upscale, width * upscale)
    side = padded(weights.up_weight.shape[3])
    launcher = KernelLauncher(_image_tail_up_fwd_kernel, x, channels=padded(channels), outputs=side)
    segments = cdiv(width, launcher.blocks["BLOCK_W"])
    launcher.launch(
        batch * height * segments,
        deep,
        in_order(weights.up_weight, upscale**2),
        in_order(weights.up_bias, upscale**2),
        y,
        height,
        width,
        segments,
        C=channels,
        C_PAD=padded(channels),
        OUTPUTS=outputs,
        UPSCALE=upscale,
        D_PAD=side,
    )
    return y


def body(x: Tensor, skip: Tensor, weights: TailWeights) -> Tensor:
    """conv3x3(x) + skip."""
    batch, channels, height, width = x.shape
    x, skip = dense(x), dense(skip)
    deep = torch.empty_like(x)
    launcher = KernelLauncher(_image_tail_body_fwd_kernel, x, channels=padded(channels))
    segments = cdiv(width, launcher.blocks["BLOCK_W"])
    given = (weights.body_weight.contiguous(), weights.body_bias.contiguous())
    args = (x, skip, *given, deep, height, width, segments)
    launcher.launch(batch * height * segments, *args, C=channels, C_PAD=padded(channels))
    return deep


def in_order(weight: Tensor, pixels: int) -> Tensor:
    """[..., channels * pixels], the order that pixel_shuffle takes, -> [..., pixels * channels], the order of storage.
    Called with the number of channels instead of `pixels` it goes the other way."""
    groups: Tensor = weight.unflatten(-1, (-1, pixels))
    return groups.transpose(-1, -2).reshape(weight.shape).contiguous()  # a single channel's is a view


LOOPS = {
    "image_tail_body_fwd": lambda given: loops_of_conv3x3(given["x_ptr"]),
    "image_tail_up_fwd": lambda given: loops_of_conv3x3(given["x_ptr"]),
}
