# SPDX-License-Identifier: Apache-2.0
"""dilated_gate in Triton: three kernels with two maps between them (`_framed_maps.py`).

The 7x7 with dilation 3 sees 9 pixels to every side, the 5x5 before it 2 more: a tile that computed its surroundings
itself would spend most of its work on them. So `a` and the result of the 5x5 go to memory. g does not, where to compute
it from x, which is read for the sum in any case, takes less than to write and read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ditn_kernels.backends.triton import _framed_maps
from ditn_kernels.backends.triton._framed_maps import (
    DILATION,
    FAR,
    NEAR,
    clear_frames,
    depthwise,
    depthwise_of_rows,
    framed,
    rows_apart,
    tiles_of_rows,
)
from ditn_kernels.backends.triton._launch import KernelLauncher, cdiv, contiguous, dense, padded
from ditn_kernels.backends.triton._loops import Loops, slices
from ditn_kernels.backends.triton._math import (
    dot,
    dot_by_slices,
    layout_barrier,
    load_square,
    load_vector,
    multiply_add,
    normalize,
    rounded,
)
from ditn_kernels.ops.dilated_gate import GateWeights

CANDIDATES = _framed_maps.CANDIDATES | {
    "dilated_gate_in_fwd": {"BLOCK_W": (16, 32, 64, 128), "SLICE": (0, 16, 32)},
    "dilated_gate_out_fwd": {"BLOCK_W": (16, 32, 64, 128), "ROWS": (2, 4), "SLICE": (0, 16, 32)},
}


@triton.jit
def resident_weight(weight_ptr, stride, channel, C: tl.constexpr, SLICE: tl.constexpr):
    """A weight that stays in registers or shared memory from one tile to the next; 0 if products are by slices."""
    if SLICE:
        return 0
    else:
        return load_square(weight_ptr, stride, channel, C)


@triton.jit
def pointwise(
    u,
    weight,
    weight_ptr,
    stride,
    sums,
    tile_ptr,
    depth,
    column,
    channel,
    C: tl.constexpr,
    SLICE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """sums + u W of u [BLOCK_W, C_PAD], with the resident weight; or by slices from memory, of the weight and of u,
    which goes into the program's scratch tile. `sums` may be a bias [1, C_PAD]."""
    C_PAD: tl.constexpr = channel.shape[0]
    sums = tl.broadcast_to(sums, u.shape)
    if SLICE:
        tl.debug_barrier()
        tl.store(tile_ptr + column[:, None] * C_PAD + channel[None, :], u)
        tl.debug_barrier()
        return dot_by_slices(tile_ptr, column, weight_ptr, stride, depth, channel, C, C_PAD, C, sums, SLICE, PRECISION)
    else:
        return dot(u, weight, sums, PRECISION)


@triton.jit
def _dilated_gate_in_fwd_kernel(
    x_ptr,
    in_weight_ptr,
    in_bias_ptr,
    a_ptr,
    g_ptr,
    scratch_ptr,
    H,
    W,
    depth,
    segments,
    tiles,
    C: tl.constexpr,
    C_PAD: tl.constexpr,
    WITH_G: tl.constexpr,
    BLOCK_W: tl.constexpr,
    SLICE: tl.constexpr,
    NORM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """a, g = W_in norm(x) + b_in; a into its frame. g only if it is read: WITH_G.

    Grid: persistent: program p takes tiles p, p + programs, ... A tile is a piece of a row.
    """
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    channel = tl.arange(0, C_PAD)
    a_weight = resident_weight(in_weight_ptr, 2 * C, channel, C, SLICE)
    g_weight = resident_weight(in_weight_ptr + C, 2 * C, channel, C, SLICE)
    a_bias = load_vector(in_bias_ptr, channel, C)[None, :]
    g_bias = load_vector(in_bias_ptr + C, channel, C)[None, :]
    tile_ptr = scratch_ptr + tl.program_id(0) * (BLOCK_W * C_PAD)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        row = tile // segments
        left = tile % segments * BLOCK_W
        column = tl.arange(0, BLOCK_W)
        inside = column < W - left
        pixel = row.to(tl.int64) * W + left
        pointers = x_ptr + pixel * C + column[:, None] * C + channel[None, :]
        u = tl.load(pointers, inside[:, None] & (channel < C)[None, :], 0.0)  # [BLOCK_W, C_PAD]
        u = normalize(u, channel, C, NORM)
        padded_offset = column[:, None] * C_PAD + channel[None, :]
        a = pointwise(u, a_weight, in_weight_ptr, 2 * C, a_bias, tile_ptr, depth, column, channel, C, SLICE, PRECISION)
        framed_row = (row // H).to(tl.int64) * (H + 2 * NEAR) + row % H + NEAR
        a_pixel = framed_row * (W + 2 * NEAR) + left + NEAR
        tl.store(a_ptr + a_pixel * C_PAD + padded_offset, rounded(a, dtype), inside[:, None])
        if WITH_G:
            weight_ptr = in_weight_ptr + C
            g = pointwise(u, g_weight, weight_ptr, 2 * C, g_bias, tile_ptr, depth, column, channel, C, SLICE, PRECISION)
            tl.store(g_ptr + pixel * C_PAD + padded_offset, rounded(g, dtype), inside[:, None])


@triton.jit
def _dilated_gate_out_fwd_kernel(
    x_ptr,
    near_ptr,
    g_ptr,
    in_weight_ptr,
    in_bias_ptr,
    dw7_weight_ptr,
    dw7_bias_ptr,
    mix_weight_ptr,
    mix_bias_ptr,
    out_weight_ptr,
    out_bias_ptr,
    y_ptr,
    scratch_ptr,
    H,
    W,
    depth,
    segments,
    tiles,
    C: tl.constexpr,
    C_PAD: tl.constexpr,
    BLOCK_W: tl.constexpr,
    ROWS: tl.constexpr,
    SLICE: tl.constexpr,
    WITH_G: tl.constexpr,
    NORM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """x + W_out (g * (W_mix dw7x7(near) + b_mix)) + b_out, the 7x7 with dilation 3. g is read, or computed from x.

    Grid: persistent: program p takes tiles p, p + programs, ... A tile is a piece of ROWS rows, DILATION apart.
    """
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    channel = tl.arange(0, C_PAD)
    column = tl.arange(0, BLOCK_W)
    g_weight = 0 if WITH_G else resident_weight(in_weight_ptr + C, 2 * C, channel, C, SLICE)
    mix_weight = resident_weight(mix_weight_ptr, C, channel, C, SLICE)
    out_weight = resident_weight(out_weight_ptr, C, channel, C, SLICE)
    tile_ptr = scratch_ptr + tl.program_id(0) * (BLOCK_W * C_PAD)
    columns = W + 2 * FAR
    zero = tl.zeros((BLOCK_W, C_PAD), dtype)
    # One stage: with more the pipeline would put every tap into shared memory.
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), num_stages=1):
        image, y, segment = rows_apart(tile, H, segments, DILATION, ROWS)
        left = segment * BLOCK_W
        near_pixel = (image.to(tl.int64) * (H + 2 * FAR) + y) * columns + left
        nearest = tl.minimum(column, W - 1 - left)
        corner = near_ptr + near_pixel * C_PAD
        far = depthwise_of_rows(corner, columns, nearest, channel, dw7_weight_ptr, dw7_bias_ptr, C, 7, DILATION, ROWS)
        inside = (column < W - left)[:, None] & (channel < C)[None, :]
        offset = column[:, None] * C + channel[None, :]
        for row in tl.static_range(ROWS):
            below = row * DILATION
            mixed = pointwise(
                rounded(far[row], dtype),
                mix_weight,
                mix_weight_ptr,
                C,
                load_vector(mix_bias_ptr, channel, C)[None, :],
                tile_ptr,
                depth,
                column,
                channel,
                C,
                SLICE,
                PRECISION,
            )
            pixel = (image.to(tl.int64) * H + y + below) * W + left
            shown = inside & (y + below < H)
            x = tl.load(x_ptr + pixel * C + offset, shown, 0.0)
            if WITH_G:
                g = tl.load(g_ptr + pixel * C_PAD + column[:, None] * C_PAD + channel[None, :], shown, 0.0)
            else:
                g = pointwise(
                    layout_barrier(normalize(x, channel, C, NORM)),
                    g_weight,
                    in_weight_ptr + C,
                    2 * C,
                    load_vector(in_bias_ptr + C, channel, C)[None, :],
                    tile_ptr,
                    depth,
                    column,
                    channel,
                    C,
                    SLICE,
                    PRECISION,
                )
            out = pointwise(
                multiply_add(rounded(g, dtype), rounded(mixed, dtype), zero),
                out_weight,
                out_weight_ptr,
                C,
                x.to(tl.float32) + load_vector(out_bias_ptr, channel, C)[None, :],
                tile_ptr,
                depth,
                column,
                channel,
                C,
                SLICE,
                PRECISION,
            )
            tl.store(y_ptr + pixel * C + offset, rounded(out, dtype), shown)


def forward(x: Tensor, weights: GateWeights, norm: str) -> Tensor:
    batch, channels, height, width = x.shape
    side = padded(channels)
    x = dense(x)
    y = torch.empty_like(x)
    weights = contiguous(weights)
    # A float32 product is three, and takes longer than to read g; three weights of 128 channels have no room.
    with_g = x.dtype == torch.float32 or side > 64
    a, g = branches(x, weights, norm, with_g=with_g)
    near = framed(x, FAR.value, DILATION.value)
    clear_frames(x, a, near)
    depthwise(x, a, weights.dw5_weight, weights.dw5_bias, near, dilation=1, frame=FAR.value)
    launcher = KernelLauncher(_dilated_gate_out_fwd_kernel, x, channels=side)
    segments = cdiv(width, launcher.blocks["BLOCK_W"])
    tiles = tiles_of_rows(batch, height, segments, DILATION.value, launcher.blocks["ROWS"])
    programs = launcher.programs(tiles)
    scratch = scratch_tiles(launcher, programs, x, side)
    far_and_out = weights[GateWeights._fields.index("dw7_weight") :]
    given = (x, near, g, weights.in_weight, weights.in_bias, *far_and_out, y, scratch)
    integers = (height, width, side, segments, tiles)
    launcher.launch(programs, *given, *integers, C=channels, C_PAD=side, WITH_G=with_g, NORM=norm)
    return y


def branches(x: Tensor, weights: GateWeights, norm: str, *, with_g: bool) -> tuple[Tensor, Tensor]:
    """The maps a, in a frame that is not cleared, and g, which is empty if it is not asked for (`with_g`)."""
    batch, channels, height, width = x.shape
    side = padded(channels)
    a = framed(x, NEAR.value, 1)
    g = x.new_empty((batch, height, width, side) if with_g else 0)
    launcher = KernelLauncher(_dilated_gate_in_fwd_kernel, x, channels=side)
    segments = cdiv(width, launcher.blocks["BLOCK_W"])
    tiles = batch * height * segments
    programs = launcher.programs(tiles)
    scratch = scratch_tiles(launcher, programs, x, side)
    args = (x, weights.in_weight, weights.in_bias, a, g, scratch, height, width, side, segments, tiles)
    launcher.launch(programs, *args, C=channels, C_PAD=side, WITH_G=with_g, NORM=norm)
    return a, g


def scratch_tiles(launcher: KernelLauncher, programs: int, like: Tensor, side: int) -> Tensor:
    """A scratch tile for each program, if products are by slices."""
    return like.new_empty(programs * launcher.blocks["BLOCK_W"] * side if launcher.blocks["SLICE"] else 0)


def _products(given: Mapping[str, Any], count: int) -> Loops:
    """Of so many products, by slices or not."""
    return Loops(given["tiles"], (slices(given["C_PAD"], given["SLICE"]),) * count)


LOOPS = {
    "dilated_gate_in_fwd": lambda given: _products(given, 1 + given["WITH_G"]),
    "dilated_gate_out_fwd": lambda given: _products(given, given["ROWS"] * (3 - given["WITH_G"])),
}
