# SPDX-License-Identifier: Apache-2.0
"""The gradient of dilated_gate in Triton: the forward pass's maps are computed again, then the layers backwards.

The maps that the forward kernels keep in memory between two depthwise convolutions lie there here too, and so do their
gradients. The gradient of a depthwise convolution's input is a convolution of the output's gradient with the taps
reversed, for which there is the forward kernel.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ditn_kernels.backends.triton import dilated_gate
from ditn_kernels.backends.triton._framed_maps import (
    DILATION,
    FAR,
    NEAR,
    clear_frames,
    depthwise,
    depthwise_of_two_rows,
    framed,
    rows_apart,
    tiles_of_rows,
)
from ditn_kernels.backends.triton._launch import KernelLauncher, cdiv, contiguous, dense, next_power_of_2, padded
from ditn_kernels.backends.triton._loops import Loops
from ditn_kernels.backends.triton._math import (
    column_sums,
    dot,
    layout_barrier,
    load_square,
    load_vector,
    normalize,
    normalize_backward,
    rounded,
)
from ditn_kernels.backends.triton._partial_gradients import PartialGradients, add_matrix, add_vector
from ditn_kernels.ops.dilated_gate import GateWeights

CANDIDATES = dilated_gate.CANDIDATES | {
    "dilated_gate_out_bwd": {"BLOCK_W": (16, 32, 64)},
    "dilated_gate_taps_bwd": {"BLOCK_W": (16, 32)},
    "dilated_gate_in_bwd": {"BLOCK_W": (16, 32, 64)},
}


@triton.jit
def _dilated_gate_out_bwd_kernel(
    grad_ptr,
    near_ptr,
    g_ptr,
    dw7_weight_ptr,
    dw7_bias_ptr,
    mix_weight_ptr,
    mix_bias_ptr,
    out_weight_ptr,
    dg_ptr,
    dfar_ptr,
    dmix_weight_ptr,
    dmix_bias_ptr,
    dout_weight_ptr,
    dout_bias_ptr,
    H,
    W,
    segments,
    tiles,
    stride,
    C: tl.constexpr,
    C_PAD: tl.constexpr,
    BLOCK_W: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The gradients of W_out (g * (W_mix far + b_mix)) + b_out, far = dw7x7(near): those of g, of far and of weights.

    Grid: persistent: program p takes tiles p, p + programs, ... A tile is a piece of two rows, three rows apart.
    """
    dtype: tl.constexpr = grad_ptr.dtype.element_ty
    channel = tl.arange(0, C_PAD)
    column = tl.arange(0, BLOCK_W)
    row = tl.program_id(0).to(tl.int64) * stride
    columns = W + 2 * FAR
    zero = tl.zeros((BLOCK_W, C_PAD), tl.float32)
    square = tl.zeros((C_PAD, C_PAD), tl.float32)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), num_stages=1, disable_licm=True):
        image, y, segment = rows_apart(tile, H, segments, DILATION, 2)
        left = segment * BLOCK_W
        framed = (image.to(tl.int64) * (H + 2 * FAR) + y) * columns + left
        nearest = tl.minimum(column, W - 1 - left)
        upper, lower = depthwise_of_two_rows(
            near_ptr + framed * C_PAD, columns, nearest, channel, dw7_weight_ptr, dw7_bias_ptr, C, 7, DILATION
        )
        if dtype == tl.float32:
            upper = layout_barrier(upper)  # else 112 bytes of stack on sm_90
        # Not unrolled: two rows at once spill in float32.
        for is_lower in tl.range(2, num_stages=1, disable_licm=True):
            far = rounded(tl.where(is_lower == 1, lower, upper), dtype)  # [BLOCK_W, C_PAD]
            below = is_lower * DILATION
            pixel = (image.to(tl.int64) * H + y + below) * W + left
            inside = ((column < W - left) & (y + below < H))[:, None]
            far = tl.where(inside, far, 0.0)
            offset = column[:, None] * C + channel[None, :]
            grad = tl.load(grad_ptr + pixel * C + offset, inside & (channel < C)[None, :], 0.0)  # [BLOCK_W, C_PAD]
            padded_offset = column[:, None] * C_PAD + channel[None, :]
            g = tl.load(g_ptr + pixel * C_PAD + padded_offset, inside, 0.0).to(tl.float32)
            mixed = dot(far, load_square(mix_weight_ptr, C, channel, C), zero, PRECISION)
            mixed += load_vector(mix_bias_ptr, channel, C)[None, :]
            dout_weight = dot(tl.trans(rounded(g * mixed, dtype)), grad, square, PRECISION)
            add_matrix(dout_weight_ptr + row, dout_weight, channel, channel, C, C, C)
            add_vector(dout_bias_ptr + row, column_sums(grad.to(tl.float32)), channel, C)
            dgated = dot(grad, tl.trans(load_square(out_weight_ptr, C, channel, C)), zero, PRECISION)
            tl.store(dg_ptr + pixel * C_PAD + padded_offset, rounded(dgated * mixed, dtype), inside)
            dmixed = dgated * g
            add_vector(dmix_bias_ptr + row, column_sums(dmixed), channel, C)
            dmixed = rounded(dmixed, dtype)
            add_matrix(dmix_weight_ptr + row, dot(tl.trans(far), dmixed, square, PRECISION), channel, channel, C, C, C)
            dfar = dot(dmixed, tl.trans(load_square(mix_weight_ptr, C, channel, C)), zero, PRECISION)
            framed_pixel = framed + (FAR + below) * columns + FAR
            tl.store(dfar_ptr + framed_pixel * C_PAD + padded_offset, rounded(dfar, dtype), inside)
            tl.debug_barrier()


@triton.jit
def _dilated_gate_taps_bwd_kernel(
    map_ptr,
    dy_ptr,
    dweight_ptr,
    dbias_ptr,
    H,
    W,
    segments,
    tiles,
    stride,
    C: tl.constexpr,
    C_PAD: tl.constexpr,
    SIZE: tl.constexpr,
    SIZE_PAD: tl.constexpr,
    DILATION: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """dw[i, j] = sum over all pixels of dy[y, x] map[y + DILATION i, x + DILATION j], db = sum of dy; both maps framed.

    Grid: persistent, with a group of SIZE programs, one per row of taps, in place of each program: group p takes tiles
    p, p + groups, ... A tile is a piece of a row.
    """
    FRAME: tl.constexpr = SIZE // 2 * DILATION
    i = tl.program_id(0) % SIZE
    program = tl.program_id(0) // SIZE
    channel = tl.arange(0, C_PAD)
    column = tl.arange(0, BLOCK_W)
    tap = tl.arange(0, SIZE_PAD)
    columns = W + 2 * FRAME
    dy_offset = column[:, None] * C_PAD + channel[None, :]
    # SIZE_PAD - SIZE lanes have no tap: they repeat the last one, and are not stored.
    tap_offset = (tl.minimum(tap, SIZE - 1) * DILATION * C_PAD)[:, None, None]
    dweight = tl.zeros((SIZE_PAD, BLOCK_W, C_PAD), tl.float32)
    dbias = tl.zeros((BLOCK_W, C_PAD), tl.float32)
    for tile in tl.range(program, tiles, tl.num_programs(0) // SIZE, num_stages=1):
        line = tile // segments
        left = tile % segments * BLOCK_W
        pixel = ((line // H).to(tl.int64) * (H + 2 * FRAME) + line % H) * columns + left
        inside = column < W - left
        dy = tl.load(dy_ptr + (pixel + FRAME * columns + FRAME) * C_PAD + dy_offset, inside[:, None], 0.0)
        dy = dy.to(tl.float32)  # [BLOCK_W, C_PAD]
        # Past the end of the row the last pixel is read: dy is 0 there, but memory past the map may hold NaN.
        nearest = tl.minimum(column, W - 1 - left)
        map_offset = tap_offset + (nearest[:, None] * C_PAD + channel[None, :])[None, :, :]
        taps = tl.load(map_ptr + (pixel + i * DILATION * columns) * C_PAD + map_offset)
        dweight += dy[None, :, :] * taps.to(tl.float32)  # [SIZE_PAD, BLOCK_W, C_PAD]
        dbias += dy
    row = program.to(tl.int64) * stride
    offset = (i * SIZE + tap)[:, None] * C + channel[None, :]
    inside = (tap < SIZE)[:, None] & (channel < C)[None, :]
    tl.store(dweight_ptr + row + offset, tl.sum(dweight, 1), inside)
    tl.store(dbias_ptr + row + channel, tl.sum(dbias, 0), (channel < C) & (i == 0))


@triton.jit
def _dilated_gate_in_bwd_kernel(
    grad_ptr,
    x_ptr,
    da_ptr,
    dg_ptr,
    in_weight_ptr,
    dx_ptr,
    din_weight_ptr,
    din_bias_ptr,
    pixels,
    tiles,
    stride,
    C: tl.constexpr,
    C_PAD: tl.constexpr,
    BLOCK_W: tl.constexpr,
    NORM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The gradients of x + ..., a, g = W_in norm(x) + b_in, from those of the sum, of a and of g.

    Grid: persistent: program p takes blocks of pixels p, p + programs, ...
    """
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    channel = tl.arange(0, C_PAD)
    pixel = tl.arange(0, BLOCK_W)
    row = tl.program_id(0).to(tl.int64) * stride
    square = tl.zeros((C_PAD, C_PAD), tl.float32)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        first = tl.cast(tile, tl.int64) * BLOCK_W
        shown = (pixel < pixels - first)[:, None]
        inside = shown & (channel < C)[None, :]
        offset = pixel[:, None] * C + channel[None, :]
        x = tl.load(x_ptr + first * C + offset, inside, 0.0)  # [BLOCK_W, C_PAD]
        u = normalize(x, channel, C, NORM)
        du = tl.zeros((BLOCK_W, C_PAD), tl.float32)
        for half in tl.static_range(2):
            branch_ptr = dg_ptr if half else da_ptr
            dy = tl.load(branch_ptr + first * C_PAD + pixel[:, None] * C_PAD + channel[None, :], shown, 0.0)
            add_matrix(
                din_weight_ptr + row + half * C, dot(tl.trans(u), dy, square, PRECISION), channel, channel, 2 * C, C, C
            )
            add_vector(din_bias_ptr + row + half * C, column_sums(dy.to(tl.float32)), channel, C)
            weight = load_square(in_weight_ptr + half * C, 2 * C, channel, C)
            du = dot(dy, tl.trans(weight), du, PRECISION)
        grad = tl.load(grad_ptr + first * C + offset, inside, 0.0).to(tl.float32)
        dx = grad + normalize_backward(du, x, u, channel, C, NORM)
        tl.store(dx_ptr + first * C + offset, rounded(dx, dtype), inside)
        tl.debug_barrier()


def backward(grad: Tensor, x: Tensor, weights: GateWeights, norm: str) -> tuple[Tensor, GateWeights]:
    batch, channels, height, width = x.shape
    side = padded(channels)
    grad, x = dense(grad), dense(x)
    no_bias = x.new_zeros(channels)

    weights = contiguous(weights)
    in_weight, in_bias, dw5_weight, dw5_bias, dw7_weight, dw7_bias, mix_weight, mix_bias, out_weight, out_bias = weights
    a, g = dilated_gate.branches(x, weights, norm, with_g=True)
    near = framed(x, FAR.value, DILATION.value)
    clear_frames(x, a, near)
    depthwise(x, a, dw5_weight, dw5_bias, near, dilation=1, frame=FAR.value)

    dfar = framed(x, FAR.value, DILATION.value)
    dnear = framed(x, NEAR.value, 1)
    clear_frames(x, dnear, dfar)
    dg = torch.empty_like(g)
    launcher = KernelLauncher(_dilated_gate_out_bwd_kernel, x, channels=side)
    segments = cdiv(width, launcher.blocks["BLOCK_W"])
    tiles = tiles_of_rows(batch, height, segments, DILATION.value, 2)
    programs = launcher.programs(tiles)
    partials = PartialGradients(programs, mix_weight, mix_bias, out_weight, out_bias)
    given = (dw7_weight, dw7_bias, mix_weight, mix_bias, out_weight)
    args = (grad, near, g, *given, dg, dfar, *partials.rows, height, width, segments, tiles, partials.stride)
    launcher.launch(programs, *args, C=channels, C_PAD=side)
    dmix_weight, dmix_bias, dout_weight, dout_bias = partials.totals()
    del g

    ddw7_weight, ddw7_bias = _taps(x, near, dfar, dw7_weight, dw7_bias, DILATION.value)
    depthwise(x, dfar, dw7_weight.flip(0, 1), no_bias, dnear, dilation=DILATION.value, frame=NEAR.value)
    del near, dfar
    ddw5_weight, ddw5_bias = _taps(x, a, dnear, dw5_weight, dw5_bias, 1)
    da = torch.empty_like(dg)
    depthwise(x, dnear, dw5_weight.flip(0, 1), no_bias, da, dilation=1, frame=0)
    del a, dnear

    dx = torch.empty_like(x)
    launcher = KernelLauncher(_dilated_gate_in_bwd_kernel, x, channels=side)
    pixels = batch * height * width
    tiles = cdiv(pixels, launcher.blocks["BLOCK_W"])
    programs = launcher.programs(tiles)
    partials = PartialGradients(programs, in_weight, in_bias)
    args = (grad, x, da, dg, in_weight, dx, *partials.rows, pixels, tiles, partials.stride)
    launcher.launch(programs, *args, C=channels, C_PAD=side, NORM=norm)
    first, taps = partials.totals(), (ddw5_weight, ddw5_bias, ddw7_weight, ddw7_bias)
    return dx, GateWeights._make([*first, *taps, dmix_weight, dmix_bias, dout_weight, dout_bias])


def _taps(x: Tensor, source: Tensor, dy: Tensor, weight: Tensor, bias: Tensor, dilation: int) -> tuple[Tensor, ...]:
    """The gradients of the weight and bias of a depthwise convolution of `source`, from dy, that of its result."""
    batch, channels, height, width = x.shape
    size, side = weight.shape[0], padded(channels)
    launcher = KernelLauncher(_dilated_gate_taps_bwd_kernel, x, channels=side)
    segments = cdiv(width, launcher.blocks["BLOCK_W"])
    tiles = batch * height * segments
    programs = cdiv(launcher.programs(tiles), size)
    partials = PartialGradients(programs, weight, bias)
    launcher.launch(
        size * programs,
        source,
        dy,
        *partials.rows,
        height,
        width,
        segments,
        tiles,
        partials.stride,
        C=channels,
        C_PAD=side,
        SIZE=size,
        SIZE_PAD=next_power_of_2(size),
        DILATION=dilation,
    )
    return partials.totals()


LOOPS = {
    "dilated_gate_out_bwd": lambda given: Loops(given["tiles"], (2,)),
    "dilated_gate_taps_bwd": lambda given: Loops(given["SIZE"] * given["tiles"]),
    "dilated_gate_in_bwd": lambda given: Loops(given["tiles"]),
}
