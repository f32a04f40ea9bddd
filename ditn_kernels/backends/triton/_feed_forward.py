# SPDX-License-Identifier: Apache-2.0
"""The gated feed-forward network on a tile of pixels, which gated_ffn's forward kernel and the stage share.

Triton has no shifted access to a tile in registers, and the depthwise 3x3 needs one. So each program owns a small
scratch buffer, the tile with a border of one pixel, which stays in the first-level cache: a slice of the hidden map is
written there and read back nine times. The hidden map as a whole exists nowhere.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ditn_kernels.backends.triton._math import dot, dot_by_slices, gelu, multiply_add, rounded, zeros_of_sum


@triton.jit
def clear_border(scratch_ptr, SLICE: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr):
    """Zeros into the whole scratch buffer: what a patch sees around itself."""
    PIXELS: tl.constexpr = (TILE_H + 2) * (TILE_W + 2)
    offset = tl.arange(0, 2 * SLICE)
    for pixel in range(PIXELS):
        tl.store(scratch_ptr + pixel * (2 * SLICE) + offset, tl.zeros((2 * SLICE,), scratch_ptr.dtype.element_ty))
    tl.debug_barrier()


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
    """W_out (gelu(d[:E]) * d[E:]) + b_out as float32 [TILE_H * TILE_W, C_PAD].

    u [N, C_PAD] are the normalized pixels whose hidden channels the tile needs, `slot` [N] their places in the
    bordered tile; hidden channels are 0 where a pixel is not `shown`, and pixels not `stored` do not exist. A tile
    that needs its own pixels only is a patch, and all of them are both. With INNER the hidden channels are products
    by slices of so many channels (`dot_by_slices`), of u at `tile_ptr`.
    """
    dtype: tl.constexpr = u.dtype
    PIXELS: tl.constexpr = TILE_H * TILE_W
    # PartialGradients of nine terms: two float16 values are added in one instruction, other dtypes in float32.
    sum_dtype: tl.constexpr = tl.float16 if dtype == tl.float16 else tl.float32
    C_PAD: tl.constexpr = u.shape[1]
    IS_PATCH: tl.constexpr = u.shape[0] == PIXELS
    lane = tl.arange(0, SLICE)
    row = tl.arange(0, u.shape[0])
    pixel = tl.arange(0, PIXELS)
    window = (pixel // TILE_W) * (TILE_W + 2) + pixel % TILE_W  # the bordered tile's slot left above each pixel
    slot_ptrs = scratch_ptr + slot[:, None] * (2 * SLICE) + lane[None, :]
    window_ptrs = scratch_ptr + window[:, None] * (2 * SLICE) + lane[None, :]
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
        gate = zeros_of_sum(PIXELS, SLICE, sum_dtype)
        gate += tl.load(dw_bias_ptr + e, e < E, 0.0)[None, :].to(sum_dtype)
        value = zeros_of_sum(PIXELS, SLICE, sum_dtype)
        value += tl.load(dw_bias_ptr + E + e, e < E, 0.0)[None, :].to(sum_dtype)
        for tap in tl.static_range(9):
            shift = (tap // 3 * (TILE_W + 2) + tap % 3) * (2 * SLICE)
            gate_weight = tl.load(dw_weight_ptr + tap * 2 * E + e, e < E, 0.0)
            value_weight = tl.load(dw_weight_ptr + tap * 2 * E + E + e, e < E, 0.0)
            gate = multiply_add(tl.load(window_ptrs + shift), gate_weight[None, :], gate)
            value = multiply_add(tl.load(window_ptrs + shift + SLICE), value_weight[None, :], value)
        tl.debug_barrier()
        gated = gelu(gate.to(tl.float32), dtype) * value.to(tl.float32)
        out_inside = (e < E)[:, None] & (channel < C)[None, :]
        out_weight = tl.load(out_weight_ptr + e[:, None] * C + channel[None, :], out_inside, 0.0)
        out = dot(rounded(gated, dtype), out_weight, out, PRECISION)
    return out + tl.load(out_bias_ptr + channel, channel < C, 0.0).to(tl.float32)[None, :]
