# SPDX-License-Identifier: Apache-2.0
"""The gated feed-forward network on a tile of pixels, which gated_ffn's forward kernel and the stage share.

Triton has no shifted access to a tile in registers, and the depthwise 3x3 needs one. So each program owns a small
scratch buffer, the tile with a border of one pixel, which stays in the first-level cache: a slice of the hidden map is
written there and read back. Blocks of 4 x 2 pixels share what they see of it, so each value is read three times and not
nine, and a tap once for eight results. The hidden map as a whole exists nowhere.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ditn_kernels.backends.triton._math import dot, dot_by_slices, gated, multiply_add, rounded, zeros_of_sum

LINES = tl.constexpr(4)  # of a block


@triton.constexpr_function
def columns_of_block(pixels: int, size: int, dtype: tl.dtype) -> int:
    """Of a block of pixels whose results one thread computes together, for a tile of so many pixels and slices of so
    many channels: two where every thread of eight warps gets a block. Two of float32 spill on sm_100."""
    return 2 if pixels * size >= 2048 and dtype != tl.float32 else 1


@triton.jit
def clear_border(scratch_ptr, SLICE: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr):
    """Zeros into the whole scratch buffer: what a patch sees around itself."""
    PIXELS: tl.constexpr = (TILE_H + 2) * (TILE_W + 2)
    offset = tl.arange(0, 2 * SLICE)
    for pixel in range(PIXELS):
        tl.store(scratch_ptr + pixel * (2 * SLICE) + offset, tl.zeros((2 * SLICE,), scratch_ptr.dtype.element_ty))
    tl.debug_barrier()


@triton.jit
def tile_pixels(pixel, TILE_H: tl.constexpr, TILE_W: tl.constexpr, COLUMNS: tl.constexpr):
    """Line and column in its tile of each `pixel` of [0, TILE_H * TILE_W). The tile is blocks of LINES x COLUMNS
    pixels: first come the upper left pixels of all blocks, then those on their right, and so on."""
    BLOCKS: tl.constexpr = TILE_H * TILE_W // (LINES * COLUMNS)
    block = pixel % BLOCKS
    inside = pixel // BLOCKS
    ACROSS: tl.constexpr = TILE_W // COLUMNS
    return block // ACROSS * LINES + inside // COLUMNS, block % ACROSS * COLUMNS + inside % COLUMNS


@triton.jit
def with_tap(acc, seen, taps, i: tl.constexpr, j: tl.constexpr):
    """acc plus `seen` times the tap in line i and column j, if there is one. `taps` are column by column."""
    if i >= 0 and i < 3 and j >= 0 and j < 3:
        return multiply_add(seen, taps[3 * j + i], acc)
    else:
        return acc


@triton.jit
def depthwise(
    scratch_ptr,
    weight_ptr,
    bias_ptr,
    e,
    E: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """dw3x3 + b of a slice in the scratch, each [blocks, SLICE]: the pixels of all blocks, in the order of
    `tile_pixels`. `scratch_ptr` is the slice's first channel of the bordered tile's first pixel.

    Nine terms: two float16 values are added in one instruction, so float16 sums stay float16; others are float32.
    """
    dtype: tl.constexpr = scratch_ptr.dtype.element_ty
    sum_dtype: tl.constexpr = tl.float16 if dtype == tl.float16 else tl.float32
    SLICE: tl.constexpr = e.shape[0]
    BLOCKS: tl.constexpr = TILE_H * TILE_W // (LINES * COLUMNS)
    line, column = tile_pixels(tl.arange(0, BLOCKS), TILE_H, TILE_W, COLUMNS)
    window_ptrs = scratch_ptr + ((line * (TILE_W + 2) + column) * (2 * SLICE))[:, None] + tl.arange(0, SLICE)[None, :]
    bias = zeros_of_sum(BLOCKS, SLICE, sum_dtype) + tl.load(bias_ptr + e, e < E, 0.0)[None, :].to(sum_dtype)
    sums: tl.tuple = ()
    for _ in tl.static_range(LINES * COLUMNS):
        sums += (bias,)
    taps: tl.tuple = ()
    for j in tl.static_range(COLUMNS + 2):
        for i in tl.static_range(3):
            if j < 3:
                taps += (tl.load(weight_ptr + (3 * i + j) * 2 * E + e, e < E, 0.0)[None, :],)
        for i in tl.static_range(LINES + 2):
            seen = tl.load(window_ptrs + (i * (TILE_W + 2) + j) * (2 * SLICE))
            added: tl.tuple = ()
            for place in tl.static_range(LINES * COLUMNS):
                added += (with_tap(sums[place], seen, taps, i - place // COLUMNS, j - place % COLUMNS),)
            sums = added
    return sums


@triton.jit
def stacked(tiles):
    """One tile [n N, C] of n tiles [N, C], two, four or eight: all rows of the first, then those of the next."""
    if len(tiles) > 2:
        HALF: tl.constexpr = len(tiles) // 2
        return stacked((stacked(tiles[:HALF]), stacked(tiles[HALF:])))
    else:
        both = tl.permute(tl.join(tiles[0], tiles[1]), (2, 0, 1))
        return tl.reshape(both, (2 * both.shape[1], both.shape[2]))


@triton.jit
def feed_forward(
    u,
    slot,
    shown,
    stored,
    channel,
    in_weight_ptr,
    in_bias_ptr,
    dw_weight_ptr,
    dw_bias_ptr,
    out_weight_ptr,
    out_bias_ptr,
    scratch_ptr,
    tile_ptr,
    depth,
    C: tl.constexpr,
    E: tl.constexpr,
    SLICE: tl.constexpr,
    INNER: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """W_out (gelu(d[:E]) * d[E:]) + b_out as float32 [TILE_H * TILE_W, C_PAD], in the order of `tile_pixels` with
    `columns_of_block`.

    u [N, C_PAD] are the normalized pixels whose hidden channels the tile needs, `slot` [N] their places in the
    bordered tile; hidden channels are 0 where a pixel is not `shown`, whose u is 0, and pixels not `stored` do not
    exist. A tile that needs its own pixels only is a patch, and all of them are both. With INNER the hidden channels
    are products by slices of so many channels (`dot_by_slices`), of u at `tile_ptr`.
    """
    dtype: tl.constexpr = u.dtype
    PIXELS: tl.constexpr = TILE_H * TILE_W
    COLUMNS: tl.constexpr = columns_of_block(PIXELS, SLICE, dtype)
    C_PAD: tl.constexpr = u.shape[1]
    IS_PATCH: tl.constexpr = u.shape[0] == PIXELS
    lane = tl.arange(0, SLICE)
    row = tl.arange(0, u.shape[0])
    slot_ptrs = scratch_ptr + slot[:, None] * (2 * SLICE) + lane[None, :]
    out = tl.zeros((PIXELS, C_PAD), tl.float32)
    if INNER:
        tl.store(tile_ptr + row[:, None] * C_PAD + channel[None, :], u)
        tl.debug_barrier()
    for first in tl.range(0, E, SLICE, num_stages=1):
        e = first + lane
        inside = (channel < C)[:, None] & (e < E)[None, :]
        zero = tl.zeros((u.shape[0], SLICE), tl.float32)
        for half in tl.static_range(2):
            weight_ptr = in_weight_ptr + half * E
            if INNER:
                hidden = dot_by_slices(tile_ptr, row, weight_ptr, 2 * E, depth, e, C, C_PAD, E, zero, INNER, PRECISION)
            else:
                weight = tl.load(weight_ptr + channel[:, None] * (2 * E) + e[None, :], inside, 0.0)
                hidden = dot(u, weight, zero, PRECISION)
            bias = tl.load(in_bias_ptr + half * E + e, e < E, 0.0).to(tl.float32)[None, :]
            if IS_PATCH:
                tl.store(slot_ptrs + half * SLICE, rounded(hidden + bias, dtype))  # [N, SLICE]
            else:
                # What is not shown has u = 0: without a bias its hidden channels are 0, with no selection by value.
                hidden += shown.to(tl.float32)[:, None] * bias
                tl.store(slot_ptrs + half * SLICE, rounded(hidden, dtype), stored[:, None])
        tl.debug_barrier()
        gates = depthwise(scratch_ptr, dw_weight_ptr, dw_bias_ptr, e, E, TILE_H, TILE_W, COLUMNS)
        values = depthwise(scratch_ptr + SLICE, dw_weight_ptr + E, dw_bias_ptr + E, e, E, TILE_H, TILE_W, COLUMNS)
        mixed: tl.tuple = ()
        for place in tl.static_range(LINES * COLUMNS):
            mixed += (gated(gates[place], values[place], dtype),)
        mixed = stacked(mixed)  # [PIXELS, SLICE]
        tl.debug_barrier()
        out_inside = (e < E)[:, None] & (channel < C)[None, :]
        out_weight = tl.load(out_weight_ptr + e[:, None] * C + channel[None, :], out_inside, 0.0)
        out = dot(mixed, out_weight, out, PRECISION)
    return out + tl.load(out_bias_ptr + channel, channel < C, 0.0).to(tl.float32)[None, :]
