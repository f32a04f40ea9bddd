# SPDX-License-Identifier: Apache-2.0
"""The gradient of gated_ffn in Triton: square regions of pixels, their hidden channels in slices.

As in the forward kernel the 3x3 taps go through a scratch buffer per program, here one for the hidden channels and
one for the gradient of what the taps made of them. A region is a patch; or, on the whole map, a tile and what it
depends on: two pixels to every side, since the taps are taken forth and back.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ditn_kernels.triton._launch import Plan, dense, padded
from ditn_kernels.triton._math import (
    anew,
    column_sums,
    dot,
    gelu_and_slope,
    multiply_add,
    normalize,
    normalize_backward,
    rounded,
    zeros_of_sum,
)
from ditn_kernels.triton._sums import Sums, add, add_vector

CANDIDATES = {"gated_ffn_bwd": {"SLICE": (16, 32)}}
# Where there are no patches, a region has this many rows and columns, of which the outer ones belong to others.
MAP_SIDE, MAP_HALO = 16, 2


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
    H,
    W,
    rows,
    columns,
    tiles,
    stride,
    C: tl.constexpr,
    C_PAD: tl.constexpr,
    E: tl.constexpr,
    SLICE: tl.constexpr,
    SIDE: tl.constexpr,
    HALO: tl.constexpr,
    NORM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The gradients of x + W_out (gelu(d[:E]) * d[E:]) + b_out, d = dw3x3(W_in norm(x) + b_in) + b_dw.

    Grid: as many programs as the chip holds; each takes every so-manieth region, whose pixels but for HALO at each
    side are its own.
    """
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    # Sums of nine terms: two float16 values are added in one instruction, other dtypes in float32.
    sum_dtype: tl.constexpr = tl.float16 if dtype == tl.float16 else tl.float32
    PIXELS: tl.constexpr = SIDE * SIDE
    # On float32 maps so much else spills that computing addresses anew only adds to it.
    KEEPS_ADDRESSES: tl.constexpr = HALO > 0 and dtype == tl.float32
    TILE: tl.constexpr = SIDE - 2 * HALO
    LINE: tl.constexpr = SIDE + 2  # of the scratch buffers, which have a border of zeros
    WIDTH: tl.constexpr = 2 * SLICE  # a slice of the gate's channels, and the same of the value's
    channel = tl.arange(0, C_PAD)
    pixel = tl.arange(0, PIXELS)
    lane = tl.arange(0, SLICE)
    both = tl.arange(0, WIDTH)
    program = tl.program_id(0).to(tl.int64)
    row = program * stride
    hidden_ptr = scratch_ptr + program * (2 * LINE * LINE * WIDTH + 2 * PIXELS * C_PAD)
    dmixed_ptr = hidden_ptr + LINE * LINE * WIDTH
    u_ptrs = dmixed_ptr + LINE * LINE * WIDTH + pixel[:, None] * C_PAD + channel[None, :]
    grad_ptrs = u_ptrs + PIXELS * C_PAD
    centre = (pixel // SIDE + 1) * LINE + pixel % SIDE + 1
    slot = centre[:, None] * WIDTH + lane[None, :]
    slots = centre[:, None] * WIDTH + both[None, :]

    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        top = tile // columns % rows * TILE
        left = tile % columns * TILE
        corner = (((tile // columns // rows).to(tl.int64) * H + top) * W + left) * C
        here = pixel if KEEPS_ADDRESSES else anew(pixel)
        region_y = here // SIDE - HALO
        region_x = here % SIDE - HALO
        is_own = (region_y >= 0) & (region_y < TILE) & (region_x >= 0) & (region_x < TILE)
        y = top + region_y
        x = left + region_x
        shown = (y >= 0) & (y < H) & (x >= 0) & (x < W)
        own = shown & is_own
        inside = shown[:, None] & (channel < C)[None, :]
        own_inside = own[:, None] & (channel < C)[None, :]
        offset = ((region_y * W + region_x) * C)[:, None] + channel[None, :]
        # Kept over the loop, these tiles and their addresses would take registers that are short.
        x = tl.load(x_ptr + corner + offset, inside, 0.0)  # [PIXELS, C_PAD]
        tl.store(u_ptrs, normalize(x, channel, C, NORM))
        tl.store(grad_ptrs, tl.load(grad_ptr + corner + offset, inside, 0.0))
        tl.debug_barrier()
        du = tl.zeros((PIXELS, C_PAD), tl.float32)

        for first in tl.range(0, E, SLICE, num_stages=1):
            e = first + lane
            e_both = first + both % SLICE + both // SLICE * E
            exists = first + both % SLICE < E
            weight_inside = (channel < C)[:, None] & exists[None, :]
            weight_offset = channel[:, None] * (2 * E) + e_both[None, :]
            in_weight = tl.load(in_weight_ptr + weight_offset, weight_inside, 0.0)  # [C_PAD, WIDTH]
            in_bias = tl.load(in_bias_ptr + e_both, exists, 0.0).to(tl.float32)
            hidden = dot(tl.load(u_ptrs), in_weight, tl.broadcast_to(in_bias[None, :], (PIXELS, WIDTH)), PRECISION)
            tl.store(hidden_ptr + slots, rounded(tl.where(shown[:, None], hidden, 0.0), dtype))
            tl.debug_barrier()

            gate = zeros_of_sum(PIXELS, SLICE, sum_dtype)
            gate += tl.load(dw_bias_ptr + e, e < E, 0.0)[None, :].to(sum_dtype)
            value = zeros_of_sum(PIXELS, SLICE, sum_dtype)
            value += tl.load(dw_bias_ptr + E + e, e < E, 0.0)[None, :].to(sum_dtype)
            for tap in tl.static_range(9):
                taps = hidden_ptr + ((tap // 3 - 1) * LINE + tap % 3 - 1) * WIDTH + slot
                gate_weight = tl.load(dw_weight_ptr + tap * 2 * E + e, e < E, 0.0)
                value_weight = tl.load(dw_weight_ptr + tap * 2 * E + E + e, e < E, 0.0)
                gate = multiply_add(tl.load(taps), gate_weight[None, :], gate)
                value = multiply_add(tl.load(taps + SLICE), value_weight[None, :], value)
            gate = gate.to(tl.float32)
            value = value.to(tl.float32)
            activated, slope = gelu_and_slope(gate, dtype)
            out_offset = e[None, :] * C + channel[:, None]
            out_inside = (e < E)[None, :] & (channel < C)[:, None]
            gated = rounded(activated * value, dtype)
            grad = tl.load(grad_ptrs, own[:, None], 0.0)  # [PIXELS, C_PAD]
            dout_weight = dot(tl.trans(grad), gated, tl.zeros((C_PAD, SLICE), tl.float32), PRECISION)
            add(dout_weight_ptr + row, out_offset, dout_weight, out_inside)
            out_weight = tl.load(out_weight_ptr + out_offset, out_inside, 0.0)  # [C_PAD, SLICE]
            dgated = dot(tl.load(grad_ptrs), out_weight, tl.zeros((PIXELS, SLICE), tl.float32), PRECISION)
            tl.store(dmixed_ptr + slot, rounded(dgated * value * slope, dtype))
            tl.store(dmixed_ptr + slot + SLICE, rounded(dgated * activated, dtype))
            tl.debug_barrier()

            own_dmixed = tl.load(dmixed_ptr + slots, own[:, None], 0.0).to(tl.float32)  # [PIXELS, WIDTH]
            add(ddw_bias_ptr + row, e_both, column_sums(own_dmixed), exists)
            dhidden = zeros_of_sum(PIXELS, WIDTH, sum_dtype)
            for tap in tl.static_range(9):
                shift = ((tap // 3 - 1) * LINE + tap % 3 - 1) * WIDTH
                weight = tl.load(dw_weight_ptr + tap * 2 * E + e_both, exists, 0.0)
                dhidden = multiply_add(tl.load(dmixed_ptr - shift + slots), weight[None, :], dhidden)
                products = own_dmixed * tl.load(hidden_ptr + shift + slots).to(tl.float32)
                add(ddw_weight_ptr + row + tap * 2 * E, e_both, column_sums(products), exists)
            dhidden = tl.where(own[:, None], dhidden.to(tl.float32), 0.0)
            add(din_bias_ptr + row, e_both, column_sums(dhidden), exists)
            dhidden = rounded(dhidden, dtype)
            din_weight = dot(tl.trans(tl.load(u_ptrs)), dhidden, tl.zeros((C_PAD, WIDTH), tl.float32), PRECISION)
            add(din_weight_ptr + row, weight_offset, din_weight, weight_inside)
            in_weight = tl.load(in_weight_ptr + weight_offset, weight_inside, 0.0)
            du = dot(dhidden, tl.trans(in_weight), du, PRECISION)
            tl.debug_barrier()

        if not KEEPS_ADDRESSES:
            here = anew(pixel)
            offset = (((here // SIDE - HALO) * W + here % SIDE - HALO) * C)[:, None] + channel[None, :]
        x = tl.load(x_ptr + corner + offset, own_inside, 0.0)
        u = tl.load(u_ptrs)
        grad = tl.load(grad_ptrs, own[:, None], 0.0).to(tl.float32)
        add_vector(dout_bias_ptr + row, column_sums(grad), channel, C)
        dx = grad + normalize_backward(du, x, u, channel, C, NORM)
        tl.store(dx_ptr + corner + offset, rounded(dx, dtype), own_inside)


def backward(
    grad: Tensor,
    x: Tensor,
    in_weight: Tensor,
    in_bias: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    norm: str,
    patch_size: int,
) -> tuple[Tensor, ...]:
    batch, channels, height, width = x.shape
    hidden = out_weight.shape[0]
    grad, x = dense(grad), dense(x)
    dx = torch.empty_like(x)
    side, halo = (patch_size, 0) if patch_size else (MAP_SIDE, MAP_HALO)
    rows, columns = triton.cdiv(height, side - 2 * halo), triton.cdiv(width, side - 2 * halo)
    tiles = batch * rows * columns
    plan = Plan(_gated_ffn_bwd_kernel, x, channels=padded(channels), patch_size=patch_size)
    programs = plan.programs(tiles)
    sums = Sums(programs, in_weight, in_bias, dw_weight, dw_bias, out_weight, out_bias)
    # Zeros, because the border is never written.
    per_program = 2 * (side + 2) ** 2 * 2 * plan.blocks["SLICE"] + 2 * side**2 * padded(channels)
    scratch = x.new_zeros(programs * per_program)
    plan.launch(
        programs,
        grad,
        x,
        *(w.contiguous() for w in (in_weight, in_bias, dw_weight, dw_bias, out_weight)),
        dx,
        *sums.rows,
        scratch,
        height,
        width,
        rows,
        columns,
        tiles,
        sums.stride,
        tasks=tiles,
        trips=(1, triton.cdiv(hidden, plan.blocks["SLICE"])),
        C=channels,
        C_PAD=padded(channels),
        E=hidden,
        SIDE=side,
        HALO=halo,
        NORM=norm,
    )
    return dx, *sums.totals()
