# SPDX-License-Identifier: Apache-2.0
"""image_head in Triton: a 3x3 convolution as nine products of a piece of a row. image_tail uses the same function."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ditn_kernels.backends.triton._launch import KernelLauncher, empty_map, padded
from ditn_kernels.backends.triton._loops import Loops
from ditn_kernels.backends.triton._math import dot, load_vector, rounded

CANDIDATES = {"image_head_fwd": {"BLOCK_W": (16, 32, 64, 128, 256)}}


@triton.jit
def conv3x3(
    map_ptr,
    place,
    stride_y,
    stride_x,
    y,
    left,
    column,
    H,
    W,
    channel,
    weight_ptr,
    bias_ptr,
    output,
    C: tl.constexpr,
    D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """conv3x3(map) + b [BLOCK_W, D_PAD], float32, of row y and columns left + `column` [BLOCK_W] of the image at
    `map_ptr`, which has C channels: those of a pixel, `channel` [C_PAD], lie at the offsets `place` [C_PAD] from its
    first one. `output` [D_PAD] are the D channels of the result."""
    sums = tl.broadcast_to(load_vector(bias_ptr, output, D)[None, :], (column.shape[0], output.shape[0]))
    if map_ptr.dtype.element_ty == tl.float32:
        # A loop, not unrolled: the factors of several taps, in two parts each, do not fit the registers.
        for tap in tl.range(0, 9, num_stages=1, disable_licm=True):
            sums = add_tap(
                tap,
                map_ptr,
                place,
                stride_y,
                stride_x,
                y,
                left,
                column,
                H,
                W,
                channel,
                weight_ptr,
                output,
                C,
                D,
                sums,
                PRECISION,
            )
    else:
        for tap in tl.static_range(9):
            sums = add_tap(
                tap,
                map_ptr,
                place,
                stride_y,
                stride_x,
                y,
                left,
                column,
                H,
                W,
                channel,
                weight_ptr,
                output,
                C,
                D,
                sums,
                PRECISION,
            )
    return sums


@triton.jit
def add_tap(
    tap,
    map_ptr,
    place,
    stride_y,
    stride_x,
    y,
    left,
    column,
    H,
    W,
    channel,
    weight_ptr,
    output,
    C: tl.constexpr,
    D: tl.constexpr,
    sums,
    PRECISION: tl.constexpr,
):
    """sums + the product of the pixels under a tap with its weights."""
    weight_ptrs = weight_ptr + channel[:, None] * D + output[None, :]
    weight_inside = (channel < C)[:, None] & (output < D)[None, :]
    offset = column[:, None] * stride_x + place[None, :].to(tl.int64)
    tap_y = y + tap // 3 - 1
    tap_left = left + tap % 3 - 1
    corner = map_ptr + tap_y.to(tl.int64) * stride_y + tap_left.to(tl.int64) * stride_x
    inside = (tap_y >= 0) & (tap_y < H) & (column >= -tap_left) & (column < W - tap_left)
    values = tl.load(corner + offset, inside[:, None] & (channel < C)[None, :], 0.0)  # [BLOCK_W, C_PAD]
    weight = tl.load(weight_ptrs + tap * (C * D), weight_inside, 0.0)  # [C_PAD, D_PAD]
    return dot(values, weight, sums, PRECISION)


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
    segments = triton.cdiv(width, launcher.blocks["BLOCK_W"])
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


def loops_of_conv3x3(image: Tensor) -> Loops:
    """Of a kernel that calls `conv3x3` on an image: in float32 its taps are a loop."""
    return Loops(None, (9,)) if image.dtype == torch.float32 else Loops()


LOOPS = {"image_head_fwd": lambda given: loops_of_conv3x3(given["image_ptr"])}
