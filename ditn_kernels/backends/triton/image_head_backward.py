# SPDX-License-Identifier: Apache-2.0
"""The gradient of image_head in Triton: for the image the convolution itself with the taps reversed, for each tap a sum
over all pixels. image_tail's gradient uses both."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ditn_kernels.backends.triton import image_head
from ditn_kernels.backends.triton._launch import KernelLauncher, cdiv, dense, padded
from ditn_kernels.backends.triton._loops import Loops
from ditn_kernels.backends.triton._math import column_sums, dot
from ditn_kernels.backends.triton._partial_gradients import PartialGradients
from ditn_kernels.backends.triton.image_tail import shuffled

CANDIDATES = image_head.CANDIDATES | {"image_head_taps_bwd": {"BLOCK_W": (16, 32, 64, 128)}}
TAPS = tl.constexpr(9)


@triton.jit
def _image_head_taps_bwd_kernel(
    map_ptr,
    grad_ptr,
    dweight_ptr,
    dbias_ptr,
    stride_b,
    stride_n,
    stride_y,
    stride_x,
    H,
    W,
    segments,
    tiles,
    stride,
    N: tl.constexpr,
    N_PAD: tl.constexpr,
    OUTPUTS: tl.constexpr,
    UPSCALE: tl.constexpr,
    D_PAD: tl.constexpr,
    BLOCK_W: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dw[i, j] = sum over all pixels of map[y + i - 1, x + j - 1]^T dy[y, x], db = sum of dy, for pixel_shuffle(
    conv3x3(map) + b): dy is its gradient unshuffled, channels in the order of storage. The map has any strides.

    Grid: persistent, with a group of nine programs, one per tap, in place of each program: group p takes tiles
    p, p + groups, ... A tile is a piece of a row.
    """
    D: tl.constexpr = OUTPUTS * UPSCALE * UPSCALE
    run = UPSCALE * OUTPUTS
    n = tl.arange(0, N_PAD)
    lane = tl.arange(0, D_PAD)
    column = tl.arange(0, BLOCK_W)
    tap = tl.program_id(0) % TAPS
    program = tl.program_id(0) // TAPS
    map_offset = column[:, None] * stride_x + (n.to(tl.int64) * stride_n)[None, :]
    grad_offset = column[:, None] * run + shuffled(lane, W, OUTPUTS, UPSCALE)[None, :]
    dweight = tl.zeros((N_PAD, D_PAD), tl.float32)
    dbias = tl.zeros((D_PAD,), tl.float32)
    for tile in range(program, tiles, tl.num_programs(0) // TAPS):
        row = tile // segments
        left = tile % segments * BLOCK_W
        corner = grad_ptr + (row.to(tl.int64) * UPSCALE * W + left) * run
        dy = tl.load(corner + grad_offset, (column < W - left)[:, None] & (lane < D)[None, :], 0.0)  # [BLOCK_W, D_PAD]
        tap_y = row % H + tap // 3 - 1
        tap_left = left + tap % 3 - 1
        inside = (tap_y >= 0) & (tap_y < H) & (column >= -tap_left) & (column < W - tap_left)
        corner = map_ptr + (row // H).to(tl.int64) * stride_b
        corner += tap_y.to(tl.int64) * stride_y + tap_left.to(tl.int64) * stride_x
        values = tl.load(corner + map_offset, inside[:, None] & (n < N)[None, :], 0.0)  # [BLOCK_W, N_PAD]
        dweight = dot(tl.trans(values), dy, dweight, PRECISION)
        dbias += column_sums(dy.to(tl.float32))
    own_row = program.to(tl.int64) * stride
    inside = (n < N)[:, None] & (lane < D)[None, :]
    tl.store(dweight_ptr + own_row + (tap * N + n[:, None]) * D + lane[None, :], dweight, inside)
    tl.store(dbias_ptr + own_row + lane, dbias, (lane < D) & (tap == 0))


def backward(grad: Tensor, image: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    return of_map(grad, weight), *of_weights(image, grad, weight, bias)


def of_map(grad: Tensor, weight: Tensor) -> Tensor:
    """The gradient of a convolution's input, from grad, that of its result."""
    return image_head.forward(grad, reversed_weight(weight), grad.new_zeros(weight.shape[2]))


def reversed_weight(weight: Tensor) -> Tensor:
    """[3, 3, D, N] of the convolution that takes the gradient back through one with [3, 3, N, D]."""
    return weight.flip(0, 1).transpose(2, 3)


def of_weights(source: Tensor, grad: Tensor, weight: Tensor, bias: Tensor, upscale: int = 1) -> tuple[Tensor, ...]:
    """The gradients of weight and bias, whose columns are in the order of storage, from grad, that of
    pixel_shuffle(conv3x3(source))."""
    batch, inputs, height, width = source.shape
    channels = weight.shape[3]
    launcher = KernelLauncher(_image_head_taps_bwd_kernel, source, inputs=padded(inputs), channels=padded(channels))
    segments = cdiv(width, launcher.blocks["BLOCK_W"])
    tiles = batch * height * segments
    programs = cdiv(launcher.programs(tiles), TAPS.value)
    partials = PartialGradients(programs, weight, bias)
    launcher.launch(
        TAPS.value * programs,
        source,
        dense(grad),
        *partials.rows,
        *source.stride(),
        height,
        width,
        segments,
        tiles,
        partials.stride,
        N=inputs,
        N_PAD=padded(inputs),
        OUTPUTS=channels // upscale**2,
        UPSCALE=upscale,
        D_PAD=padded(channels),
    )
    return partials.totals()


LOOPS = {"image_head_taps_bwd": lambda given: Loops(TAPS.value * given["tiles"])}
