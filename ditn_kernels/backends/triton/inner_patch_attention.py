# SPDX-License-Identifier: Apache-2.0
"""inner_patch_attention in Triton: each patch is read from the map by address and written back, in one of two ways.

In registers: the tiles of q, k and v are [channels, pixels]. Attention is between channels, so lengths and softmax are
sums along rows, which stay inside a quad of threads, and the softmax's weights are the left factor of the next product
without a change of layout. By slices: the tiles lie in memory that fits the first-level cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ditn_kernels.backends.triton._attention import attend, load_projection, project, softmax_of_cosines
from ditn_kernels.backends.triton._launch import KernelLauncher, contiguous, dense, padded
from ditn_kernels.backends.triton._loops import Loops, slices
from ditn_kernels.backends.triton._math import dot, dot_by_slices, load_vector, normalize, rounded
from ditn_kernels.ops.inner_patch_attention import AttentionWeights

# SLICE 0: in registers.
CANDIDATES = {"inner_patch_attention_fwd": {"BLOCK_T": (16, 32, 64), "SLICE": (0, 16, 32, 64)}}


@triton.jit
def _attend_in_registers(
    x_ptr,
    qkv_weight_ptr,
    qkv_bias_ptr,
    temperature,
    out_weight_ptr,
    out_bias_ptr,
    W,
    columns,
    patches,
    y_ptr,
    C: tl.constexpr,
    C_PAD: tl.constexpr,
    PATCH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    NORM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """All tiles of a block of BLOCK_T pixels in registers. The weights stay in shared memory from one patch to the
    next, where they fit."""
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    BLOCKS: tl.constexpr = PATCH * PATCH // BLOCK_T
    channel = tl.arange(0, C_PAD)
    q_weight, q_bias = load_projection(qkv_weight_ptr, qkv_bias_ptr, 3 * C, channel, C)
    k_weight, k_bias = load_projection(qkv_weight_ptr + C, qkv_bias_ptr + C, 3 * C, channel, C)
    v_weight, v_bias = load_projection(qkv_weight_ptr + 2 * C, qkv_bias_ptr + 2 * C, 3 * C, channel, C)
    out_weight, out_bias = load_projection(out_weight_ptr, out_bias_ptr, C, channel, C)
    pixel = tl.arange(0, BLOCK_T)
    inside = (channel < C)[None, :]
    offset = ((pixel // PATCH * W + pixel % PATCH) * C)[:, None] + channel[None, :]
    step = BLOCK_T // PATCH * W * C  # from one block of the patch's rows to the next

    for patch in range(tl.program_id(0), patches, tl.num_programs(0)):
        corner = ((patch // columns).to(tl.int64) * PATCH * W + patch % columns * PATCH) * C
        products = tl.zeros((C_PAD, C_PAD), tl.float32)
        q_squares = tl.zeros((C_PAD,), tl.float32)
        k_squares = tl.zeros((C_PAD,), tl.float32)
        for block in tl.static_range(BLOCKS):
            x = tl.load(x_ptr + corner + block * step + offset, inside, 0.0)  # [BLOCK_T, C_PAD]
            u = normalize(x, channel, C, NORM)
            q = project(u, q_weight, q_bias, PRECISION)  # [C_PAD, BLOCK_T]
            q_squares += tl.sum(q * q, 1)
            k = project(u, k_weight, k_bias, PRECISION)
            k_squares += tl.sum(k * k, 1)
            products = dot(rounded(q, dtype), tl.trans(rounded(k, dtype)), products, PRECISION)
        weights = softmax_of_cosines(products, q_squares, k_squares, temperature, channel, C)
        weights = rounded(weights, dtype)

        for block in tl.static_range(BLOCKS):
            start = corner + block * step
            x = tl.load(x_ptr + start + offset, inside, 0.0)
            u = normalize(x, channel, C, NORM)
            v = rounded(project(u, v_weight, v_bias, PRECISION), dtype)
            y = x.to(tl.float32) + attend(weights, v, out_weight, out_bias, PRECISION)
            tl.store(y_ptr + start + offset, rounded(y, dtype), inside)


@triton.jit
def _attend_by_slices(
    x_ptr,
    qkv_weight_ptr,
    qkv_bias_ptr,
    temperature,
    out_weight_ptr,
    out_bias_ptr,
    W,
    columns,
    depth,
    patches,
    y_ptr,
    scratch_ptr,
    C: tl.constexpr,
    C_PAD: tl.constexpr,
    PATCH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    SLICE: tl.constexpr,
    NORM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The patch's q, k and v [pixels, channels] and the softmax's weights in the program's scratch, of which each
    product reads slices: for float32 and many channels, whose tiles do not fit the registers.

    The weights are computed in blocks of rows, so that no product has more than BLOCK_T rows.
    """
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    PIXELS: tl.constexpr = PATCH * PATCH
    BLOCKS: tl.constexpr = PIXELS // BLOCK_T
    TILE: tl.constexpr = BLOCK_T * C_PAD
    ROWS: tl.constexpr = min(BLOCK_T, C_PAD)
    STEP: tl.constexpr = min(SLICE, PIXELS)
    channel = tl.arange(0, C_PAD)
    pixel = tl.arange(0, BLOCK_T)
    inside = (channel < C)[None, :]
    offset = ((pixel // PATCH * W + pixel % PATCH) * C)[:, None] + channel[None, :]
    place = pixel[:, None] * C_PAD + channel[None, :]
    step = BLOCK_T // PATCH * W * C
    q_ptr = scratch_ptr + tl.program_id(0) * ((3 * PIXELS + C_PAD + BLOCK_T) * C_PAD)
    k_ptr = q_ptr + PIXELS * C_PAD
    v_ptr = k_ptr + PIXELS * C_PAD
    weights_ptr = v_ptr + PIXELS * C_PAD
    tile_ptr = weights_ptr + C_PAD * C_PAD

    for patch in range(tl.program_id(0), patches, tl.num_programs(0)):
        corner = ((patch // columns).to(tl.int64) * PATCH * W + patch % columns * PATCH) * C
        for block in tl.range(0, BLOCKS, num_stages=1, disable_licm=True):
            x = tl.load(x_ptr + corner + block * step + offset, inside, 0.0)  # [BLOCK_T, C_PAD]
            tl.store(tile_ptr + place, normalize(x, channel, C, NORM))
            tl.debug_barrier()
            for part in tl.range(0, 3, num_stages=1, disable_licm=True):
                bias = load_vector(qkv_bias_ptr + part * C, channel, C)
                y = tl.broadcast_to(bias[None, :], (BLOCK_T, C_PAD))
                weight_ptr = qkv_weight_ptr + part * C
                y = dot_by_slices(tile_ptr, pixel, weight_ptr, 3 * C, depth, channel, C, C_PAD, C, y, SLICE, PRECISION)
                tl.store(q_ptr + part * (PIXELS * C_PAD) + block * TILE + place, rounded(y, dtype))
            tl.debug_barrier()

        for first in tl.range(0, C_PAD, ROWS, num_stages=1, disable_licm=True):
            row = first + tl.arange(0, ROWS)
            products = tl.zeros((ROWS, C_PAD), tl.float32)
            q_squares = tl.zeros((ROWS,), tl.float32)
            k_squares = tl.zeros((C_PAD,), tl.float32)
            for start in tl.range(0, PIXELS, STEP, num_stages=1, disable_licm=True):
                line = (start + tl.arange(0, STEP))[:, None] * C_PAD
                q = tl.load(q_ptr + line + row[None, :])
                k = tl.load(k_ptr + line + channel[None, :])
                q_squares += tl.sum(q.to(tl.float32) * q.to(tl.float32), 0)
                k_squares += tl.sum(k.to(tl.float32) * k.to(tl.float32), 0)
                products = dot(tl.trans(q), k, products, PRECISION)
            weights = softmax_of_cosines(products, q_squares, k_squares, temperature, channel, C)
            # Transposed, for the next product's right factor.
            tl.store(weights_ptr + channel[None, :] * C_PAD + row[:, None], rounded(weights, dtype))
        tl.debug_barrier()

        for block in tl.range(0, BLOCKS, num_stages=1, disable_licm=True):
            y = tl.zeros((BLOCK_T, C_PAD), tl.float32)
            y = dot_by_slices(
                v_ptr + block * TILE, pixel, weights_ptr, C_PAD, depth, channel, C, C_PAD, C, y, SLICE, PRECISION
            )
            tl.store(tile_ptr + place, rounded(y, dtype))
            tl.debug_barrier()
            y = tl.broadcast_to(load_vector(out_bias_ptr, channel, C)[None, :], (BLOCK_T, C_PAD))
            y = dot_by_slices(tile_ptr, pixel, out_weight_ptr, C, depth, channel, C, C_PAD, C, y, SLICE, PRECISION)
            start = corner + block * step
            x = tl.load(x_ptr + start + offset, inside, 0.0)
            tl.store(y_ptr + start + offset, rounded(x.to(tl.float32) + y, dtype), inside)
            tl.debug_barrier()


@triton.jit
def _inner_patch_attention_fwd_kernel(
    x_ptr,
    qkv_weight_ptr,
    qkv_bias_ptr,
    temperature_ptr,
    out_weight_ptr,
    out_bias_ptr,
    W,
    columns,
    depth,
    patches,
    y_ptr,
    scratch_ptr,
    C: tl.constexpr,
    C_PAD: tl.constexpr,
    PATCH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    SLICE: tl.constexpr,
    NORM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """x + W_o (softmax(t qn kn^T) v) + b_o in every patch.

    Grid: persistent: program p takes patches p, p + programs, ..., in registers, or by slices if SLICE is not 0.
    """
    tl.static_assert(PATCH * PATCH % BLOCK_T == 0 and BLOCK_T % PATCH == 0, "a block is whole rows that fill a patch")
    temperature = tl.load(temperature_ptr).to(tl.float32)
    if SLICE:
        _attend_by_slices(
            x_ptr,
            qkv_weight_ptr,
            qkv_bias_ptr,
            temperature,
            out_weight_ptr,
            out_bias_ptr,
            W,
            columns,
            depth,
            patches,
            y_ptr,
            scratch_ptr,
            C,
            C_PAD,
            PATCH,
            BLOCK_T,
            SLICE,
            NORM,
            PRECISION,
        )
    else:
        _attend_in_registers(
            x_ptr,
            qkv_weight_ptr,
            qkv_bias_ptr,
            temperature,
            out_weight_ptr,
            out_bias_ptr,
            W,
            columns,
            patches,
            y_ptr,
            C,
            C_PAD,
            PATCH,
            BLOCK_T,
            NORM,
            PRECISION,
        )


def forward(x: Tensor, weights: AttentionWeights, norm: str, patch_size: int) -> Tensor:
    batch, channels, height, width = x.shape
    side, pixels = padded(channels), patch_size**2
    x = dense(x)
    y = torch.empty_like(x)
    constants = {"C": channels, "C_PAD": side, "PATCH": patch_size, "NORM": norm}
    integers = sizes(batch, height, width, constants)
    launcher = KernelLauncher(_inner_patch_attention_fwd_kernel, x, channels=side, patch_size=patch_size)
    programs = launcher.programs(integers[-1])
    block, size = launcher.blocks["BLOCK_T"], launcher.blocks["SLICE"]
    scratch = x.new_empty(programs * (3 * pixels + side + block) * side if size else 0)
    launcher.launch(programs, x, *contiguous(weights), *integers, y, scratch, **constants)
    return y


def sizes(batch: Any, height: Any, width: Any, constants: Mapping[str, Any]) -> tuple[Any, ...]:
    """The kernel's integers, of which the last is the number of tiles. TensorRT's plugins ask with expressions, which
    have to stand left of an operator."""
    columns = width // constants["PATCH"]
    return width, columns, constants["C_PAD"], batch * (height // constants["PATCH"]) * columns


def _loops(given: Mapping[str, Any]) -> Loops:
    side, size, block, pixels = given["C_PAD"], given["SLICE"], given["BLOCK_T"], given["PATCH"] ** 2
    if not size:
        return Loops(given["patches"])
    blocks, depth = pixels // block, slices(side, size)
    rows, steps = max(side // block, 1), max(pixels // size, 1)
    return Loops(given["patches"], (blocks, 3, depth, rows, steps, blocks, depth, depth))


LOOPS = {"inner_patch_attention_fwd": _loops}
