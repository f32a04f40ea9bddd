# SPDX-License-Identifier: Apache-2.0
"""Maps in a frame of zeros, and the depthwise convolutions of dilated_gate and its gradient, which read and write them.

Channels are padded to a power of two, so that rows are aligned. The frame is as wide as the taps see, so that they need
no bounds checks; a kernel of its own clears it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from ditn_kernels.backends.triton._launch import KernelLauncher, cdiv, padded
from ditn_kernels.backends.triton._loops import Loops
from ditn_kernels.backends.triton._math import multiply_add, opaque, rounded, zeros_of_sum

CANDIDATES = {
    "dilated_gate_frame_fwd": {"BLOCK_W": (16, 32)},
    "dilated_gate_near_fwd": {"BLOCK_W": (16, 32, 64, 128), "ROWS": (2, 4)},
}
MOST_ROWS = 4  # of a tile
NEAR = tl.constexpr(2)  # the frame of `a`: what the 5x5 sees
FAR = tl.constexpr(9)  # the frame of the 5x5's result: what the dilated 7x7 sees
DILATION = tl.constexpr(3)


@triton.jit
def _dilated_gate_frame_fwd_kernel(a_ptr, near_ptr, H, W, near_rows, C_PAD: tl.constexpr, BLOCK_W: tl.constexpr):
    """Zeros into the frames of both maps.

    Grid: one program per row of each framed map, those of `near` first.
    """
    row = tl.program_id(0)
    is_near = row < near_rows
    map_ptr = tl.where(is_near, near_ptr, a_ptr)
    frame = tl.where(is_near, FAR, NEAR)
    row = tl.where(is_near, row, row - near_rows)
    y = row % (H + 2 * frame) - frame
    columns = W + 2 * frame
    map_ptr += row.to(tl.int64) * columns * C_PAD
    cleared = tl.where((y < 0) | (y >= H), columns, 2 * frame)
    channel = tl.arange(0, C_PAD)
    for start in range(0, cleared, BLOCK_W):
        column = start + tl.arange(0, BLOCK_W)
        column += tl.where(column < frame, 0, columns - cleared)
        zero = tl.zeros((BLOCK_W, C_PAD), map_ptr.dtype.element_ty)
        tl.store(map_ptr + column[:, None] * C_PAD + channel[None, :], zero, (column < columns)[:, None])


@triton.jit
def depthwise_of_two_rows(
    map_ptr,
    stride,
    column,
    channel,
    weight_ptr,
    bias_ptr,
    C: tl.constexpr,
    SIZE: tl.constexpr,
    DILATION: tl.constexpr,
):
    """`depthwise_of_rows` of two rows, with taps loaded where they are used: what has no registers for four rows, such
    as float32, has none to keep a column of taps either."""
    sum_dtype: tl.constexpr = tl.float16 if map_ptr.dtype.element_ty == tl.float16 else tl.float32
    BLOCK_W: tl.constexpr = column.shape[0]
    C_PAD: tl.constexpr = channel.shape[0]
    bias = tl.load(bias_ptr + channel, channel < C, 0.0).to(sum_dtype)[None, :]
    upper = zeros_of_sum(BLOCK_W, C_PAD, sum_dtype) + bias
    lower = zeros_of_sum(BLOCK_W, C_PAD, sum_dtype) + bias
    pointers = map_ptr + column[:, None] * C_PAD + channel[None, :]
    weight_ptrs = weight_ptr + channel
    for i in tl.static_range(SIZE + 1):
        for j in tl.static_range(SIZE):
            tap = tl.load(pointers + j * (DILATION * C_PAD))
            if i < SIZE:
                upper = multiply_add(tap, tl.load(weight_ptrs + (i * SIZE + j) * C, channel < C)[None, :], upper)
            if i > 0:
                weight = tl.load(weight_ptrs + ((i - 1) * SIZE + j) * C, channel < C)
                lower = multiply_add(tap, weight[None, :], lower)
        pointers += stride * (DILATION * C_PAD)
    # From channel C on the weights were whatever lay there.
    inside = (channel < C)[None, :]
    return tl.where(inside, upper, 0.0), tl.where(inside, lower, 0.0)


@triton.jit
def depthwise_of_rows(
    map_ptr,
    stride,
    column,
    channel,
    weight_ptr,
    bias_ptr,
    C: tl.constexpr,
    SIZE: tl.constexpr,
    DILATION: tl.constexpr,
    ROWS: tl.constexpr,
):
    """dw(map) + b, each [BLOCK_W, C_PAD], of ROWS rows that are DILATION apart: they share what they see of the map.
    `map_ptr` is the pixel under the first tap, `stride` the pixels in a row of the map.

    Two float16 values are added in one instruction, so float16 sums stay float16; other dtypes are summed in float32.
    """
    if ROWS == 2:
        return depthwise_of_two_rows(map_ptr, stride, column, channel, weight_ptr, bias_ptr, C, SIZE, DILATION)
    sum_dtype: tl.constexpr = tl.float16 if map_ptr.dtype.element_ty == tl.float16 else tl.float32
    BLOCK_W: tl.constexpr = column.shape[0]
    C_PAD: tl.constexpr = channel.shape[0]
    bias = tl.load(bias_ptr + channel, channel < C, 0.0).to(sum_dtype)[None, :]
    sums: tl.tuple = ()
    for _ in tl.static_range(ROWS):
        sums += (zeros_of_sum(BLOCK_W, C_PAD, sum_dtype) + bias,)
    window_ptrs = map_ptr + column[:, None] * C_PAD + channel[None, :]
    for j in tl.static_range(SIZE):
        taps: tl.tuple = ()
        for i in tl.static_range(SIZE):
            taps += (tl.load(weight_ptr + (i * SIZE + j) * C + channel, channel < C)[None, :],)
        row_stride = opaque(stride) * (DILATION * C_PAD)
        row_ptrs = window_ptrs
        for i in tl.static_range(SIZE + ROWS - 1):
            seen = tl.load(row_ptrs + j * (DILATION * C_PAD))
            row_ptrs += row_stride
            added: tl.tuple = ()
            for row in tl.static_range(ROWS):
                if i >= row and i < row + SIZE:
                    added += (multiply_add(seen, taps[i - row], sums[row]),)
                else:
                    added += (sums[row],)
            sums = added
    # From channel C on the weights were whatever lay there.
    inside = (channel < C)[None, :]
    found: tl.tuple = ()
    for row in tl.static_range(ROWS):
        found += (tl.where(inside, sums[row], 0.0),)
    return found


@triton.jit
def rows_apart(tile, H, segments, APART: tl.constexpr, ROWS: tl.constexpr):
    """The image, first row and segment of a tile of ROWS rows that are APART from one another, where they exist."""
    line = tile // segments
    lines = tl.cdiv(H, ROWS * APART) * APART  # per image
    line_of_image = line % lines
    return line // lines, line_of_image // APART * (ROWS * APART) + line_of_image % APART, tile % segments


@triton.jit
def _dilated_gate_near_fwd_kernel(
    map_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    H,
    W,
    segments,
    C: tl.constexpr,
    C_PAD: tl.constexpr,
    SIZE: tl.constexpr,
    DILATION: tl.constexpr,
    FRAME: tl.constexpr,
    BLOCK_W: tl.constexpr,
    ROWS: tl.constexpr,
):
    """dw(map) + b, into a frame; forward near = dw5x5(a).

    Grid: one program per piece of ROWS rows, DILATION apart.
    """
    dtype: tl.constexpr = y_ptr.dtype.element_ty
    SEEN: tl.constexpr = SIZE // 2 * DILATION  # the map's own frame
    channel = tl.arange(0, C_PAD)
    image, y, segment = rows_apart(tl.program_id(0), H, segments, DILATION, ROWS)
    left = segment * BLOCK_W
    column = tl.arange(0, BLOCK_W)
    map_columns = W + 2 * SEEN
    map_pixel = (image.to(tl.int64) * (H + 2 * SEEN) + y) * map_columns + left
    map_ptr += map_pixel * C_PAD
    nearest = tl.minimum(column, W - 1 - left)
    found = depthwise_of_rows(map_ptr, map_columns, nearest, channel, weight_ptr, bias_ptr, C, SIZE, DILATION, ROWS)
    columns = W + 2 * FRAME
    pixel = (image.to(tl.int64) * (H + 2 * FRAME) + y + FRAME) * columns + left + FRAME
    pointers = y_ptr + pixel * C_PAD + column[:, None] * C_PAD + channel[None, :]
    inside = (column < W - left)[:, None]
    for row in tl.static_range(ROWS):
        below = row * DILATION
        tl.store(pointers + below * columns * C_PAD, rounded(found[row], dtype), inside & (y + below < H))


def depthwise(x: Tensor, source: Tensor, weight: Tensor, bias: Tensor, y: Tensor, *, dilation: int, frame: int) -> None:
    """y = dw(source) + b, for maps of the shape of x: `source` in the frame that the taps see, y in one of `frame`."""
    batch, channels, height, width = x.shape
    side = padded(channels)
    launcher = KernelLauncher(_dilated_gate_near_fwd_kernel, x, channels=side)
    segments = cdiv(width, launcher.blocks["BLOCK_W"])
    launcher.launch(
        tiles_of_rows(batch, height, segments, dilation, launcher.blocks["ROWS"]),
        source,
        weight.contiguous(),
        bias.contiguous(),
        y,
        height,
        width,
        segments,
        C=channels,
        C_PAD=side,
        SIZE=weight.shape[0],
        DILATION=dilation,
        FRAME=frame,
    )


def tiles_of_rows(batch: int, height: int, segments: int, apart: int, rows: int) -> int:
    """How many tiles `rows_apart` tells from one another."""
    return batch * cdiv(height, rows * apart) * apart * segments


def clear_frames(x: Tensor, a: Tensor, near: Tensor) -> None:
    """Zeros into the frames of a map in a frame of NEAR and of one in a frame of FAR, of the shape of x."""
    batch, channels, height, width = x.shape
    launcher = KernelLauncher(_dilated_gate_frame_fwd_kernel, x, channels=padded(channels))
    near_rows, a_rows = batch * (height + 2 * FAR.value), batch * (height + 2 * NEAR.value)
    launcher.launch(near_rows + a_rows, a, near, height, width, near_rows, C_PAD=padded(channels))


def framed(x: Tensor, frame: int, dilation: int) -> Tensor:
    """Memory for a map of the shape of x in a frame. Of the last image's tiles of rows, `dilation` apart, all rows may
    lie below the image: they read memory past the frame, and their results are not stored."""
    batch, channels, height, width = x.shape
    rows = batch * (height + 2 * frame) + MOST_ROWS * dilation - 1 if batch else 0
    return x.new_empty(rows * (width + 2 * frame) * padded(channels))


def _trip_count_of_frames(given: Mapping[str, Any]) -> float:
    """That of the loop over a row of a framed map, on average."""
    height, width, block = given["H"], given["W"], given["BLOCK_W"]
    blocks = rows = 0
    for frame in (NEAR.value, FAR.value):
        blocks += 2 * frame * cdiv(width + 2 * frame, block) + height * cdiv(2 * frame, block)
        rows += height + 2 * frame
    return blocks / rows


LOOPS = {"dilated_gate_frame_fwd": lambda given: Loops(None, (_trip_count_of_frames(given),))}
