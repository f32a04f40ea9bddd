# SPDX-License-Identifier: Apache-2.0
"""The gated feed-forward network on a tile of pixels, which gated_ffn's forward kernel and the stage share.

Triton has no shifted access to a tile in registers, and the depthwise 3x3 needs one. So each program owns a small
scratch buffer, the tile with a border of one pixel, which stays in the first-level cache: a slice of the hidden map is
written there and read back. Four lines of a tile share what they see of it, so each value is read 4.5 times and not
nine. The hidden map as a whole exists nowhere.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ditn_kernels.backends.triton._math import dot, dot_by_slices, gated, multiply_add, rounded, zeros_of_sum


@triton.jit
def clear_border(scratch_ptr, SLICE: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr):
    """Zeros into the whole scratch buffer: what a patch sees around itself."""
    PIXELS: tl.constexpr = (TILE_H + 2) * (TILE_W + 2)
    offset = tl.arange(0, 2 * SLICE)
    for pixel in range(PIXELS):
        tl.store(scratch_ptr + pixel * (2 * SLICE) + offset, tl.zeros((2 * SLICE,), scratch_ptr.dtype.element_ty))
    tl.debug_barrier()


@triton.jit
def tile_pixels(pixel, TILE_H: tl.constexpr, TILE_W: tl.constexpr):
    """Line and column in its tile of each `pixel` of [0, TILE_H * TILE_W): the first of every four lines, one after the
    other, then the second of every four, and so on."""
    QUARTER: tl.constexpr = TILE_H * TILE_W // 4
    place = pixel % QUARTER
    return place // TILE_W * 4 + pixel // QUARTER, place % TILE_W


@triton.jit
def tap(seen, line: tl.constexpr, upper, middle, lower, acc):
    """acc plus what one line of taps makes of `seen`: the line'th of those that a result sees, of which there are 3."""
    if line == 0:
        return multiply_add(seen, upper, acc)
    elif line == 1:
        return multiply_add(seen, middle, acc)
    elif line == 2:
        return multiply_add(seen, lower, acc)
    else:
        return acc


@triton.jit
def depthwise(scratch_ptr, weight_ptr, bias_ptr, e, E: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr):
    """dw3x3 + b of a slice in the scratch, each [TILE_H * TILE_W / 4, SLICE]: the first of every four lines, the
    second, the third and the fourth. `scratch_ptr` is the slice's first channel of the bordered tile's first pixel.

    Nine terms: two float16 values are added in one instruction, so float16 sums stay float16; others are float32.
    """
    dtype: tl.constexpr = scratch_ptr.dtype.element_ty
    sum_dtype: tl.constexpr = tl.float16 if dtype == tl.float16 else tl.float32
    SLICE: tl.constexpr = e.shape[0]
    QUARTER: tl.constexpr = TILE_H * TILE_W // 4
    line, column = tile_pixels(tl.arange(0, QUARTER), TILE_H, TILE_W)  # the first of every four lines
    window_ptrs = scratch_ptr + ((line * (TILE_W + 2) + column) * (2 * SLICE))[:, None] + tl.arange(0, SLICE)[None, :]
    first = zeros_of_sum(QUARTER, SLICE, sum_dtype)
    first += tl.load(bias_ptr + e, e < E, 0.0)[None, :].to(sum_dtype)
    second = first
    third = first
    fourth = first
    for j in tl.static_range(3):
        upper = tl.load(weight_ptr + j * 2 * E + e, e < E, 0.0)[None, :]
        middle = tl.load(weight_ptr + (3 + j) * 2 * E + e, e < E, 0.0)[None, :]
        lower = tl.load(weight_ptr + (6 + j) * 2 * E + e, e < E, 0.0)[None, :]
        for i in tl.static_range(6):
            seen = tl.load(window_ptrs + (i * (TILE_W + 2) + j) * (2 * SLICE))
            first = tap(seen, i, upper, middle, lower, first)
            second = tap(seen, i - 1, upper, middle, lower, second)
            third = tap(seen, i - 2, upper, middle, lower, third)
            fourth = tap(seen, i - 3, upper, middle, lower, fourth)
    return first, second, third, fourth


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
    """W_out (gelu(d[:E]) * d[E:]) + b_out as float32 [TILE_H * TILE_W, C_PAD], in the order of `tile_pixels`.

    u [N, C_PAD] are the normalized pixels whose hidden channels the tile needs, `slot` [N] their places in the
    bordered tile; hidden channels are 0 where a pixel is not `shown`, and pixels not `stored` do not exist. A tile
    that needs its own pixels only is a patch, and all of them are both. With INNER the hidden channels are products
    by slices of so many channels (`dot_by_slices`), of u at `tile_ptr`.
    """
    dtype: tl.constexpr = u.dtype
    PIXELS: tl.constexpr = TILE_H * TILE_W
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
            hidden += tl.load(in_bias_ptr + half * E + e, e < E, 0.0).to(tl.float32)[None, :]  # [N, SLICE]
            if IS_PATCH:
                tl.store(slot_ptrs + half * SLICE, rounded(hidden, dtype))
            else:
                hidden = tl.where(shown[:, None], hidden, 0.0)
                tl.store(slot_ptrs + half * SLICE, rounded(hidden, dtype), stored[:, None])
        tl.debug_barrier()
        g0, g1, g2, g3 = depthwise(scratch_ptr, dw_weight_ptr, dw_bias_ptr, e, E, TILE_H, TILE_W)
        v0, v1, v2, v3 = depthwise(scratch_ptr + SLICE, dw_weight_ptr + E, dw_bias_ptr + E, e, E, TILE_H, TILE_W)
        even = tl.join(gated(g0, v0, dtype), gated(g2, v2, dtype))
        odd = tl.join(gated(g1, v1, dtype), gated(g3, v3, dtype))
        lines = tl.permute(tl.join(even, odd), (2, 3, 0, 1))  # [line // 2 % 2, line % 2, PIXELS / 4, SLICE]
        tl.debug_barrier()
        out_inside = (e < E)[:, None] & (channel < C)[None, :]
        out_weight = tl.load(out_weight_ptr + e[:, None] * C + channel[None, :], out_inside, 0.0)
        out = dot(tl.reshape(lines, (PIXELS, SLICE)), out_weight, out, PRECISION)
    return out + tl.load(out_bias_ptr + channel, channel < C, 0.0).to(tl.float32)[None, :]
