# SPDX-License-Identifier: Apache-2.0
"""The gradient of gated_ffn in Triton: square regions of pixels, their hidden channels in slices.

As in the forward kernel the 3x3 taps go through a scratch buffer of each program: here one for the hidden channels and
one for the gradient of the depthwise convolution's result. A region is a patch, or a tile of the map with a border of
two pixels: one for the convolution, one for its gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ditn_kernels.backends.triton._launch import KernelLauncher, cdiv, contiguous, dense, padded
from ditn_kernels.backends.triton._loops import Loops
from ditn_kernels.backends.triton._math import (
    column_sums,
    dot,
    gelu_and_slope,
    multiply_add,
    normalize,
    normalize_backward,
    plus_opaque_zero,
    rounded,
    zeros_of_sum,
)
from ditn_kernels.backends.triton._partial_gradients import PartialGradients, add, add_vector
from ditn_kernels.ops.gated_ffn import FfnWeights

CANDIDATES = {"gated_ffn_bwd": {"SLICE": (16, 32), "BLOCK": (16, 32, 64, 128)}}
# Without patches a region has MAP_SIDE rows and columns, of which MAP_HALO at each side belong to other regions.
MAP_SIDE, MAP_HALO = 16, 2


@triton.jit
def region(
    block,
    top,
    left,
    H,
    W,
    SIDE: tl.constexpr,
    HALO: tl.constexpr,
    BLOCK: tl.constexpr,
    dtype: tl.constexpr,
):
    """A block of a region's pixels: their indices, their offsets in memory from the pixel at `top` and `left`, which of
    them are on the map, and which of those are the region's own."""
    first = block * BLOCK
    if dtype == tl.float32:
        first = plus_opaque_zero(first)
    pixel = first + tl.arange(0, BLOCK)
    y = pixel // SIDE - HALO
    x = pixel % SIDE - HALO
    shown = (top + y >= 0) & (top + y < H) & (left + x >= 0) & (left + x < W)
    own = (y >= 0) & (y < SIDE - 2 * HALO) & (x >= 0) & (x < SIDE - 2 * HALO)
    return pixel, y * W + x, shown, shown & own


@triton.jit
def slot(pixel, SIDE: tl.constexpr):
    """The place of a region's pixel in a scratch buffer with a border."""
    return (pixel // SIDE + 1) * (SIDE + 2) + pixel % SIDE + 1


@triton.jit
def of_both_halves(first, channel, C: tl.constexpr, E: tl.constexpr, SLICE: tl.constexpr):
    """A slice of W_in's columns, SLICE of the gate and SLICE of the value: their indices, which of them exist, their
    weights' offsets, and which of those exist."""
    both = tl.arange(0, 2 * SLICE)
    e = plus_opaque_zero(first) + both % SLICE
    exists = e < E
    e += both // SLICE * E
    return e, exists, channel[:, None] * (2 * E) + e[None, :], (channel < C)[:, None] & exists[None, :]


@triton.jit
def of_out(first, channel, C: tl.constexpr, E: tl.constexpr, SLICE: tl.constexpr):
    """The same of a slice of W_out's rows, [C_PAD, SLICE] too."""
    e = plus_opaque_zero(first) + tl.arange(0, SLICE)
    exists = e < E
    return e, exists, e[None, :] * C + channel[:, None], (channel < C)[:, None] & exists[None, :]


@triton.jit
def _gated_ffn_bwd_kernel(
    grad_ptr,
    x_ptr,
    in_weight_ptr,
    in_bias_ptr,
    dw_weight_ptr,
    dw_bias_ptr,
    out_weight_ptr,
    dx_ptr,
    din_weight_ptr,
    din_bias_ptr,
    ddw_weight_ptr,
    ddw_bias_ptr,
    dout_weight_ptr,
    dout_bias_ptr,
    scratch_ptr,
    du_ptr,
    H,
    W,
    rows,
    columns,
    tiles,
    blocks,
    stride,
    C: tl.constexpr,
    C_PAD: tl.constexpr,
    E: tl.constexpr,
    SLICE: tl.constexpr,
    BLOCK: tl.constexpr,
    SIDE: tl.constexpr,
    HALO: tl.constexpr,
    NORM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The gradients of x + W_out (gelu(d[:E]) * d[E:]) + b_out, d = dw3x3(W_in norm(x) + b_in) + b_dw.

    Grid: persistent: program p takes regions p, p + programs, ..., each in blocks of BLOCK pixels. A region's own
    pixels are those HALO or more away from its sides.
    """
    tl.static_assert(SIDE * SIDE % BLOCK == 0)
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    # PartialGradients of nine terms: two float16 values are added in one instruction, other dtypes in float32.
    sum_dtype: tl.constexpr = tl.float16 if dtype == tl.float16 else tl.float32
    PIXELS: tl.constexpr = SIDE * SIDE
    TILE: tl.constexpr = SIDE - 2 * HALO
    LINE: tl.constexpr = SIDE + 2  # of the scratch buffers, which have a border of zeros
    WIDTH: tl.constexpr = 2 * SLICE  # a slice of the gate's channels, and the same of the value's
    channel = tl.arange(0, C_PAD)
    lane = tl.arange(0, SLICE)
    both = tl.arange(0, WIDTH)
    program = tl.program_id(0).to(tl.int64)
    row = program * stride
    hidden_ptr = scratch_ptr + program * (2 * LINE * LINE * WIDTH + 2 * PIXELS * C_PAD)
    dmixed_ptr = hidden_ptr + LINE * LINE * WIDTH
    u_ptr = dmixed_ptr + LINE * LINE * WIDTH
    du_ptr += program * (PIXELS * C_PAD)

    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), disable_licm=True):
        top = tile // columns % rows * TILE
        left = tile % columns * TILE
        corner = (((tile // columns // rows).to(tl.int64) * H + top) * W + left) * C
        for block in tl.range(blocks, num_stages=1, disable_licm=True):
            pixel, place, shown, own = region(block, top, left, H, W, SIDE, HALO, BLOCK, dtype)
            offset = (place * C)[:, None] + channel[None, :]
            inside = shown[:, None] & (channel < C)[None, :]
            x = tl.load(x_ptr + corner + offset, inside, 0.0)  # [BLOCK, C_PAD]
            tile_offset = pixel[:, None] * C_PAD + channel[None, :]
            tl.store(u_ptr + tile_offset, normalize(x, channel, C, NORM))
            grad = tl.load(grad_ptr + corner + offset, inside, 0.0)
            tl.store(u_ptr + PIXELS * C_PAD + tile_offset, grad)
            tl.store(du_ptr + tile_offset, tl.zeros((BLOCK, C_PAD), tl.float32))
        tl.debug_barrier()

        for first in tl.range(0, E, SLICE, num_stages=1, disable_licm=True):
            for block in tl.range(blocks, num_stages=1, disable_licm=True):
                pixel, place, shown, own = region(block, top, left, H, W, SIDE, HALO, BLOCK, dtype)
                slots = (slot(pixel, SIDE) * WIDTH)[:, None] + both[None, :]
                in_e, in_exists, in_offset, in_inside = of_both_halves(first, channel, C, E, SLICE)
                in_weight = tl.load(in_weight_ptr + in_offset, in_inside, 0.0)  # [C_PAD, WIDTH]
                in_bias = tl.load(in_bias_ptr + in_e, in_exists, 0.0).to(tl.float32)
                u = tl.load(u_ptr + pixel[:, None] * C_PAD + channel[None, :])  # [BLOCK, C_PAD]
                hidden = dot(u, in_weight, tl.broadcast_to(in_bias[None, :], (BLOCK, WIDTH)), PRECISION)
                tl.store(hidden_ptr + slots, rounded(tl.where(shown[:, None], hidden, 0.0), dtype))
            tl.debug_barrier()

            dout_weight = tl.zeros((C_PAD, SLICE), tl.float32)
            for block in tl.range(blocks, num_stages=1, disable_licm=True):
                pixel, place, shown, own = region(block, top, left, H, W, SIDE, HALO, BLOCK, dtype)
                grad_ptrs = u_ptr + (PIXELS + pixel)[:, None] * C_PAD + channel[None, :]
                out_e, out_exists, out_offset, out_inside = of_out(first, channel, C, E, SLICE)
                out_weight = tl.load(out_weight_ptr + out_offset, out_inside, 0.0)  # [C_PAD, SLICE]
                dgated = dot(tl.load(grad_ptrs), out_weight, tl.zeros((BLOCK, SLICE), tl.float32), PRECISION)
                half_slots = (slot(pixel, SIDE) * WIDTH)[:, None] + lane[None, :]
                gate = zeros_of_sum(BLOCK, SLICE, sum_dtype)
                gate += tl.load(dw_bias_ptr + out_e, out_exists, 0.0)[None, :].to(sum_dtype)
                value = zeros_of_sum(BLOCK, SLICE, sum_dtype)
                value += tl.load(dw_bias_ptr + E + out_e, out_exists, 0.0)[None, :].to(sum_dtype)
                for tap in tl.static_range(9):
                    taps = hidden_ptr + ((tap // 3 - 1) * LINE + tap % 3 - 1) * WIDTH + half_slots
                    gate_weight = tl.load(dw_weight_ptr + tap * 2 * E + out_e, out_exists, 0.0)
                    value_weight = tl.load(dw_weight_ptr + tap * 2 * E + E + out_e, out_exists, 0.0)
                    gate = multiply_add(tl.load(taps), gate_weight[None, :], gate)
                    value = multiply_add(tl.load(taps + SLICE), value_weight[None, :], value)
                value = value.to(tl.float32)
                activated, slope = gelu_and_slope(gate.to(tl.float32), dtype)
                tl.store(dmixed_ptr + half_slots, rounded(dgated * value * slope, dtype))
                tl.store(dmixed_ptr + half_slots + SLICE, rounded(dgated * activated, dtype))
                grad = tl.load(grad_ptrs, own[:, None], 0.0)  # [BLOCK, C_PAD]
                dout_weight = dot(tl.trans(grad), rounded(activated * value, dtype), dout_weight, PRECISION)
            out_e, out_exists, out_offset, out_inside = of_out(first, channel, C, E, SLICE)
            add(dout_weight_ptr + row, out_offset, dout_weight, out_inside)
            tl.debug_barrier()

            whole, _whole_place, _whole_shown, whole_own = region(0, top, left, H, W, SIDE, HALO, PIXELS, dtype)
            whole_slots = (slot(whole, SIDE) * WIDTH)[:, None] + both[None, :]
            for number in tl.range(plus_opaque_zero(9), num_stages=1, disable_licm=True):
                in_e, in_exists, in_offset, in_inside = of_both_halves(first, channel, C, E, SLICE)
                neighbour = ((number // 3 - 1) * LINE + number % 3 - 1) * WIDTH
                dmixed = tl.load(dmixed_ptr + whole_slots, whole_own[:, None], 0.0).to(tl.float32)  # [PIXELS, WIDTH]
                products = dmixed * tl.load(hidden_ptr + neighbour + whole_slots).to(tl.float32)
                add(ddw_weight_ptr + row + number * 2 * E, in_e, column_sums(products), in_exists)

            din_weight = tl.zeros((C_PAD, WIDTH), tl.float32)
            din_bias = tl.zeros((WIDTH,), tl.float32)
            ddw_bias = tl.zeros((WIDTH,), tl.float32)
            for block in tl.range(blocks, num_stages=1, disable_licm=True):
                pixel, place, shown, own = region(block, top, left, H, W, SIDE, HALO, BLOCK, dtype)
                slots = (slot(pixel, SIDE) * WIDTH)[:, None] + both[None, :]
                in_e, in_exists, in_offset, in_inside = of_both_halves(first, channel, C, E, SLICE)
                ddw_bias += column_sums(tl.load(dmixed_ptr + slots, own[:, None], 0.0).to(tl.float32))
                dhidden = zeros_of_sum(BLOCK, WIDTH, sum_dtype)
                for tap in tl.static_range(9):
                    shift = ((tap // 3 - 1) * LINE + tap % 3 - 1) * WIDTH
                    weight = tl.load(dw_weight_ptr + tap * 2 * E + in_e, in_exists, 0.0)
                    dhidden = multiply_add(tl.load(dmixed_ptr - shift + slots), weight[None, :], dhidden)
                dhidden = tl.where(own[:, None], dhidden.to(tl.float32), 0.0)
                din_bias += column_sums(dhidden)
                dhidden = rounded(dhidden, dtype)
                tile_offset = pixel[:, None] * C_PAD + channel[None, :]
                din_weight = dot(tl.trans(tl.load(u_ptr + tile_offset)), dhidden, din_weight, PRECISION)
                in_weight = tl.load(in_weight_ptr + in_offset, in_inside, 0.0)
                du = dot(dhidden, tl.trans(in_weight), tl.zeros((BLOCK, C_PAD), tl.float32), PRECISION)
                tl.store(du_ptr + tile_offset, tl.load(du_ptr + tile_offset) + du)
            in_e, in_exists, in_offset, in_inside = of_both_halves(first, channel, C, E, SLICE)
            add(din_bias_ptr + row, in_e, din_bias, in_exists)
            add(ddw_bias_ptr + row, in_e, ddw_bias, in_exists)
            add(din_weight_ptr + row, in_offset, din_weight, in_inside)
            tl.debug_barrier()

        for block in tl.range(blocks, num_stages=1, disable_licm=True):
            pixel, place, shown, own = region(block, top, left, H, W, SIDE, HALO, BLOCK, dtype)
            offset = (place * C)[:, None] + channel[None, :]
            own_inside = own[:, None] & (channel < C)[None, :]
            x = tl.load(x_ptr + corner + offset, own_inside, 0.0)
            tile_offset = pixel[:, None] * C_PAD + channel[None, :]
            u = tl.load(u_ptr + tile_offset)
            du = tl.load(du_ptr + tile_offset)
            grad = tl.load(u_ptr + PIXELS * C_PAD + tile_offset, own[:, None], 0.0).to(tl.float32)
            add_vector(dout_bias_ptr + row, column_sums(grad), channel, C)
            dx = grad + normalize_backward(du, x, u, channel, C, NORM)
            tl.store(dx_ptr + corner + offset, rounded(dx, dtype), own_inside)
            tl.debug_barrier()


def backward(grad: Tensor, x: Tensor, weights: FfnWeights, norm: str, patch_size: int) -> tuple[Tensor, FfnWeights]:
    batch, channels, height, width = x.shape
    hidden = weights.out_weight.shape[0]
    grad, x = dense(grad), dense(x)
    dx = torch.empty_like(x)
    side, halo = (patch_size, 0) if patch_size else (MAP_SIDE, MAP_HALO)
    rows, columns = cdiv(height, side - 2 * halo), cdiv(width, side - 2 * halo)
    tiles = batch * rows * columns
    launcher = KernelLauncher(_gated_ffn_bwd_kernel, x, channels=padded(channels), patch_size=patch_size)
    programs = launcher.programs(tiles)
    partials = PartialGradients(programs, *weights)
    # Zeros, because the border is never written.
    per_program = 2 * (side + 2) ** 2 * 2 * launcher.blocks["SLICE"] + 2 * side**2 * padded(channels)
    scratch = x.new_zeros(programs * per_program)
    du = x.new_empty(programs * side**2 * padded(channels), dtype=torch.float32)
    blocks = side**2 // launcher.blocks["BLOCK"]
    launcher.launch(
        programs,
        grad,
        x,
        *contiguous(weights)[:-1],
        dx,
        *partials.rows,
        scratch,
        du,
        height,
        width,
        rows,
        columns,
        tiles,
        blocks,
        partials.stride,
        C=channels,
        C_PAD=padded(channels),
        E=hidden,
        SIDE=side,
        HALO=halo,
        NORM=norm,
    )
    return dx, FfnWeights(*partials.totals())


def _loops(given: Mapping[str, Any]) -> Loops:
    blocks, slices = given["blocks"], cdiv(given["E"], given["SLICE"])
    return Loops(given["tiles"], (blocks, slices, blocks, blocks, 9, blocks, blocks))


LOOPS = {"gated_ffn_bwd": _loops}
