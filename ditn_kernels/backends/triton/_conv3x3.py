# SPDX-License-Identifier: Apache-2.0
"""The 3x3 convolution of a piece of a row as nine products, which the kernels of image_head and image_tail share."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ditn_kernels.backends.triton._loops import Loops
from ditn_kernels.backends.triton._math import dot, load_vector


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


def loops_of_conv3x3(image: Tensor) -> Loops:
    """Of a kernel that calls `conv3x3` on an image: in float32 its taps are a loop."""
    return Loops(None, (9,)) if image.dtype == torch.float32 else Loops()
