# SPDX-License-Identifier: Apache-2.0
"""image_tail in Triton: two convolutions; the first adds the skip, the second shuffles pixels as it stores them."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ditn_kernels.triton._launch import Plan, dense, empty_map, padded
from ditn_kernels.triton._math import rounded
from ditn_kernels.triton.image_head import conv3x3

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
        image_ptr, 1, W * C, C, row % H, left, column, H, W, channel, weight_ptr, bias_ptr, channel, C, C, PRECISION
    )  # [BLOCK_W, C_PAD]
    offset = (row.to(tl.int64) * W + left) * C + column[:, None] * C + channel[None, :]
    inside = (column < W - left)[:, None] & (channel < C)[None, :]
    y += tl.load(skip_ptr + offset, inside, 0.0).to(tl.float32)
    tl.store(y_ptr + offset, rounded(y, y_ptr.dtype.element_ty), inside)


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
    """pixel_shuffle(conv3x3(x) + b), OUTPUTS channels. The weights' columns are in the order of storage: of the
    UPSCALE x UPSCALE pixels row by row, each with its channels.

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
        image_ptr, 1, W * C, C, row % H, left, column, H, W, channel, weight_ptr, bias_ptr, lane, C, D, PRECISION
    )  # [BLOCK_W, D_PAD]
    run = UPSCALE * OUTPUTS  # what one pixel gives to each upscaled row
    corner = y_ptr + (row.to(tl.int64) * UPSCALE * W + left) * run
    lane_offset = (lane // run).to(tl.int64) * W * run + lane % run
    inside = (column < W - left)[:, None] & (lane < D)[None, :]
    tl.store(corner + column[:, None] * run + lane_offset[None, :], rounded(y, y_ptr.dtype.element_ty), inside)


def forward(
    x: Tensor,
    skip: Tensor,
    body_weight: Tensor,
    body_bias: Tensor,
    up_weight: Tensor,
    up_bias: Tensor,
    upscale: int,
) -> Tensor:
    batch, channels, height, width = x.shape
    outputs = up_weight.shape[3] // upscale**2
    constants: dict[str, Any] = {"C": channels, "C_PAD": padded(channels)}
    x, skip = dense(x), dense(skip)

    deep = torch.empty_like(x)
    plan = Plan(_image_tail_body_fwd_kernel, x, channels=padded(channels))
    segments = triton.cdiv(width, plan.blocks["BLOCK_W"])
    args: tuple[Any, ...] = (x, skip, body_weight.contiguous(), body_bias.contiguous(), deep, height, width, segments)
    plan.launch(batch * height * segments, *args, **constants)

    y = empty_map(x, outputs, height * upscale, width * upscale)
    side = padded(up_weight.shape[3])
    plan = Plan(_image_tail_up_fwd_kernel, x, channels=padded(channels), outputs=side)
    segments = triton.cdiv(width, plan.blocks["BLOCK_W"])
    args = (deep, _in_order(up_weight, upscale), _in_order(up_bias, upscale), y, height, width, segments)
    plan.launch(batch * height * segments, *args, OUTPUTS=outputs, UPSCALE=upscale, D_PAD=side, **constants)
    return y


def _in_order(weight: Tensor, upscale: int) -> Tensor:
    """[..., channels * s * s] as pixel_shuffle takes it -> [..., s * s * channels] as the pixels are stored."""
    pixels: Tensor = weight.unflatten(-1, (-1, upscale * upscale))
    return pixels.transpose(-1, -2).reshape(weight.shape)
