# SPDX-License-Identifier: Apache-2.0
"""The gradient of inner_patch_attention in Triton, in three kernels: the forward pass up to the softmax, back to the
scores, and back through q, k and v.

As in the forward kernel the tiles of q, k and v are [channels, pixels]. Sums over a whole patch are [channels,
channels] tiles, so a patch of more than BLOCK_T pixels is read in blocks. One kernel would not fit the registers. The
three hand on three matrices and six vectors for each patch, from which the gradients of q, k and v are computed:

    matrices    the cosines c = qn kn^T, which dc overwrites; dc^T; the softmax's weights w^T
    vectors     1 / |q|, 1 / |k|, ones (for v); the sums of dc * c over k's channels, over q's channels, zeros (for v)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ditn_kernels.backends.triton._attention import NORMALIZE_EPS, load_projection, project, softmax_of_cosines
from ditn_kernels.backends.triton._launch import KernelLauncher, cdiv, contiguous, dense, padded
from ditn_kernels.backends.triton._loops import Loops
from ditn_kernels.backends.triton._math import (
    column_sums,
    dot,
    layout_barrier,
    load_square,
    load_vector,
    normalize,
    normalize_backward,
    opaque,
    plus_opaque_zero,
    rounded,
)
from ditn_kernels.backends.triton._partial_gradients import PartialGradients, add, add_matrix, add_vector
from ditn_kernels.ops.inner_patch_attention import AttentionWeights

CANDIDATES = {
    "inner_patch_attention_weights_bwd": {"BLOCK_T": (16, 32, 64)},
    "inner_patch_attention_scores_bwd": {"BLOCK_T": (16, 32, 64), "SLICE": (16, 32, 64)},
    "inner_patch_attention_qkv_bwd": {"BLOCK_T": (16, 32, 64), "PARTS": (3, 1)},
}


@triton.jit
def _inner_patch_attention_weights_bwd_kernel(
    x_ptr,
    qkv_weight_ptr,
    qkv_bias_ptr,
    temperature_ptr,
    matrices_ptr,
    vectors_ptr,
    W,
    columns,
    patches,
    C: tl.constexpr,
    C_PAD: tl.constexpr,
    PATCH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    NORM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The cosines c = qn kn^T, the weights w = softmax(t c) transposed, 1 / |q| and 1 / |k|; ones and zeros for v.

    Grid: persistent: program p takes patches p, p + programs, ...
    """
    tl.static_assert(PATCH * PATCH % BLOCK_T == 0 and BLOCK_T % PATCH == 0)
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    BLOCKS: tl.constexpr = PATCH * PATCH // BLOCK_T
    channel = tl.arange(0, C_PAD)
    line = (tl.arange(0, BLOCK_T) // PATCH * W + tl.arange(0, BLOCK_T) % PATCH) * C
    inside = (channel < C)[None, :]
    offset = line[:, None] + channel[None, :]
    temperature = tl.load(temperature_ptr).to(tl.float32)
    q_bias = load_vector(qkv_bias_ptr, channel, C)
    k_bias = load_vector(qkv_bias_ptr + C, channel, C)

    for patch in range(tl.program_id(0), patches, tl.num_programs(0)):
        corner = ((patch // columns).to(tl.int64) * PATCH * W + patch % columns * PATCH) * C
        products = tl.zeros((C_PAD, C_PAD), tl.float32)
        q_squares = tl.zeros((C_PAD,), tl.float32)
        k_squares = tl.zeros((C_PAD,), tl.float32)
        for block in range(BLOCKS):
            first = corner + block * (BLOCK_T // PATCH) * W * C
            x = tl.load(x_ptr + first + offset, inside, 0.0)  # [BLOCK_T, C_PAD]
            u = layout_barrier(normalize(x, channel, C, NORM))
            q = project(u, load_square(qkv_weight_ptr, 3 * C, channel, C), q_bias, PRECISION)  # [C_PAD, BLOCK_T]
            q_squares += tl.sum(q * q, 1)
            k = project(u, load_square(qkv_weight_ptr + C, 3 * C, channel, C), k_bias, PRECISION)
            k_squares += tl.sum(k * k, 1)
            products = dot(rounded(q, dtype), tl.trans(rounded(k, dtype)), products, PRECISION)
        weights = softmax_of_cosines(products, q_squares, k_squares, temperature, channel, C)
        q_scale = 1 / tl.maximum(tl.sqrt(q_squares), NORMALIZE_EPS)
        k_scale = 1 / tl.maximum(tl.sqrt(k_squares), NORMALIZE_EPS)

        matrices = matrices_ptr + tl.cast(patch, tl.int64) * (3 * C_PAD * C_PAD)
        tile = channel[:, None] * C_PAD + channel[None, :]
        cosines = products * q_scale[:, None] * k_scale[None, :]
        tl.store(matrices + tile, rounded(cosines, dtype))
        tl.store(matrices + 2 * C_PAD * C_PAD + tile, tl.trans(rounded(weights, dtype)))
        vectors = vectors_ptr + tl.cast(patch, tl.int64) * (6 * C_PAD) + channel
        tl.store(vectors, q_scale)
        tl.store(vectors + C_PAD, k_scale)
        tl.store(vectors + 2 * C_PAD, tl.full((C_PAD,), 1.0, tl.float32))
        tl.store(vectors + 5 * C_PAD, tl.zeros((C_PAD,), tl.float32))


@triton.jit
def _inner_patch_attention_scores_bwd_kernel(
    grad_ptr,
    x_ptr,
    qkv_weight_ptr,
    qkv_bias_ptr,
    temperature_ptr,
    out_weight_ptr,
    matrices_ptr,
    vectors_ptr,
    dtemperature_ptr,
    dout_weight_ptr,
    dout_bias_ptr,
    scratch_ptr,
    W,
    columns,
    patches,
    stride,
    C: tl.constexpr,
    C_PAD: tl.constexpr,
    PATCH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    SLICE: tl.constexpr,
    NORM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dc and dc^T from the gradient of W_o (w v) + b_o, w = softmax(t c); and the sums of dc * c over k's channels and
    over q's.

    With M = v grad, dW_o is w M, dw is W_o M^T, and sum(dw * w) along k's channels is sum(dW_o * W_o). So only M is
    summed over the pixels, in a scratch tile of each program; the rest is computed in slices of columns.

    Grid: persistent: program p takes patches p, p + programs, ...
    """
    tl.static_assert(PATCH * PATCH % BLOCK_T == 0 and BLOCK_T % PATCH == 0)
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    # In float32 no registers are left to keep a whole tile's addresses.
    IS_WIDE: tl.constexpr = dtype == tl.float32
    BLOCKS: tl.constexpr = PATCH * PATCH // BLOCK_T
    channel = tl.arange(0, C_PAD)
    COLUMNS: tl.constexpr = min(SLICE, C_PAD)
    lane = tl.arange(0, COLUMNS)
    line = (tl.arange(0, BLOCK_T) // PATCH * W + tl.arange(0, BLOCK_T) % PATCH) * C
    inside = (channel < C)[None, :]
    temperature = tl.load(temperature_ptr).to(tl.float32)
    row = tl.program_id(0).to(tl.int64) * stride
    zero = tl.zeros((C_PAD, COLUMNS), tl.float32)
    scratch_ptr += tl.program_id(0) * (C_PAD * C_PAD)

    for patch in range(tl.program_id(0), patches, tl.num_programs(0)):
        corner = ((patch // columns).to(tl.int64) * PATCH * W + patch % columns * PATCH) * C
        matrices = matrices_ptr + tl.cast(patch, tl.int64) * (3 * C_PAD * C_PAD)
        vectors = vectors_ptr + tl.cast(patch, tl.int64) * (6 * C_PAD)

        product = tl.zeros((C_PAD, C_PAD), tl.float32)
        for block in range(BLOCKS):
            here = plus_opaque_zero(channel) if IS_WIDE else channel
            offset = (plus_opaque_zero(line) if IS_WIDE else line)[:, None] + channel[None, :]
            first = corner + block * (BLOCK_T // PATCH) * W * C
            x = tl.load(x_ptr + first + offset, inside, 0.0)
            u = layout_barrier(normalize(x, channel, C, NORM))
            v_weight, v_bias = load_projection(qkv_weight_ptr + 2 * C, qkv_bias_ptr + 2 * C, 3 * C, here, C)
            v = rounded(project(u, v_weight, v_bias, PRECISION), dtype)  # [C_PAD, BLOCK_T]
            grad = tl.load(grad_ptr + first + offset, inside, 0.0)  # [BLOCK_T, C_PAD]
            add_vector(dout_bias_ptr + row, column_sums(grad.to(tl.float32)), here, C)
            product = dot(v, grad, product, PRECISION)
            tl.debug_barrier()
        here = plus_opaque_zero(channel) if IS_WIDE else channel
        tl.store(scratch_ptr + here[:, None] * C_PAD + here[None, :], rounded(product, dtype))
        tl.debug_barrier()

        along_rows = tl.zeros((C_PAD,), tl.float32)
        for first in range(0, C_PAD, COLUMNS):
            here = plus_opaque_zero(channel) if IS_WIDE else channel
            column = first + lane
            weights = tl.trans(tl.load(matrices + 2 * C_PAD * C_PAD + here[:, None] * C_PAD + here[None, :]))
            part = tl.load(scratch_ptr + here[:, None] * C_PAD + column[None, :])  # [C_PAD, COLUMNS]
            dout_weight = dot(weights, part, zero, PRECISION)
            offset_of_weight = here[:, None] * C + column[None, :]
            exists = (here < C)[:, None] & (column < C)[None, :]
            add(dout_weight_ptr + row, offset_of_weight, dout_weight, exists)
            out_weight = tl.load(out_weight_ptr + offset_of_weight, exists, 0.0).to(tl.float32)
            along_rows += tl.sum(dout_weight * out_weight, 1)

        q_along = tl.zeros((C_PAD,), tl.float32)
        for first in range(0, C_PAD, COLUMNS):
            here = plus_opaque_zero(channel) if IS_WIDE else channel
            column = first + lane
            part = tl.load(scratch_ptr + column[:, None] * C_PAD + here[None, :])  # [COLUMNS, C_PAD]
            dweights = dot(load_square(out_weight_ptr, C, here, C), tl.trans(part), zero, PRECISION)
            transposed = C_PAD * C_PAD + column[:, None] * C_PAD + here[None, :]
            weights = tl.trans(tl.load(matrices + C_PAD * C_PAD + transposed))  # [C_PAD, COLUMNS]
            dscores = (dweights - along_rows[:, None]) * weights.to(tl.float32)
            tile = here[:, None] * C_PAD + column[None, :]
            along = dscores * tl.load(matrices + tile).to(tl.float32)
            dcosines = rounded(temperature * dscores, dtype)
            tl.store(matrices + tile, dcosines)
            tl.store(matrices + transposed, tl.trans(dcosines))
            q_along += tl.sum(along, 1)
            # Where the length is below its lower bound, qn or kn is linear in q or k.
            is_long = tl.load(vectors + C_PAD + column) < 1 / NORMALIZE_EPS
            tl.store(vectors + 4 * C_PAD + column, tl.where(is_long, temperature * tl.sum(along, 0), 0.0))
        is_long = tl.load(vectors + channel) < 1 / NORMALIZE_EPS
        tl.store(vectors + 3 * C_PAD + channel, tl.where(is_long, temperature * q_along, 0.0))
        add(dtemperature_ptr + row, 0, tl.sum(q_along, 0), True)
        tl.debug_barrier()


@triton.jit
def _inner_patch_attention_qkv_bwd_kernel(
    grad_ptr,
    x_ptr,
    qkv_weight_ptr,
    qkv_bias_ptr,
    out_weight_ptr,
    matrices_ptr,
    vectors_ptr,
    dx_ptr,
    dqkv_weight_ptr,
    dqkv_bias_ptr,
    scratch_ptr,
    W,
    columns,
    blocks,
    stride,
    C: tl.constexpr,
    C_PAD: tl.constexpr,
    PATCH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    PARTS: tl.constexpr,
    NORM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The gradients of x, W and b, where q, k, v = W norm(x) + b, from those of the sum, of qn kn^T and of w v.

    The gradient of q, k or v is (M y - a z) s. M is a matrix, a and s are vectors from the kernels above; y and z are
    two of the tiles qn, kn and d(w v), which lie in scratch: z is its own, y is kn for q, qn for k and d(w v) for v.

    Grid: persistent: program p takes blocks p, p + programs, ..., of BLOCK_T pixels of a patch. PARTS of q, k and v are
    unrolled: on sm_100 each product in the code has tensor memory of its own.
    """
    tl.static_assert(PATCH * PATCH % BLOCK_T == 0 and BLOCK_T % PATCH == 0)
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    BLOCKS: tl.constexpr = PATCH * PATCH // BLOCK_T  # of a patch
    TILE: tl.constexpr = C_PAD * BLOCK_T
    channel = tl.arange(0, C_PAD)
    pixel = tl.arange(0, BLOCK_T)
    inside = (channel < C)[None, :]
    offset = ((pixel // PATCH * W + pixel % PATCH) * C)[:, None] + channel[None, :]
    square = channel[:, None] * C_PAD + channel[None, :]
    zero = tl.zeros((C_PAD, BLOCK_T), tl.float32)
    row = tl.program_id(0).to(tl.int64) * stride
    scratch_ptr += tl.program_id(0) * (4 * TILE)
    tile_ptrs = scratch_ptr + channel[:, None] * BLOCK_T + pixel[None, :]
    u_ptrs = scratch_ptr + 3 * TILE + pixel[:, None] * C_PAD + channel[None, :]

    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        patch = block // BLOCKS
        top = block % BLOCKS * (BLOCK_T // PATCH)
        corner = (((patch // columns).to(tl.int64) * PATCH + top) * W + patch % columns * PATCH) * C
        matrices = matrices_ptr + tl.cast(patch, tl.int64) * (3 * C_PAD * C_PAD)
        vectors = vectors_ptr + tl.cast(patch, tl.int64) * (6 * C_PAD) + channel

        x = tl.load(x_ptr + corner + offset, inside, 0.0)  # [BLOCK_T, C_PAD]
        weight_ptr = plus_opaque_zero(qkv_weight_ptr)
        own_row = plus_opaque_zero(row)
        u = layout_barrier(normalize(x, channel, C, NORM))
        tl.store(u_ptrs, u)
        for which in tl.static_range(2):
            weight, bias = load_projection(weight_ptr + which * C, qkv_bias_ptr + which * C, 3 * C, channel, C)
            unit = project(u, weight, bias, PRECISION) * tl.load(vectors + which * C_PAD)[:, None]
            tl.store(tile_ptrs + which * TILE, rounded(unit, dtype))
        grad = tl.load(grad_ptr + corner + offset, inside, 0.0)  # [BLOCK_T, C_PAD]
        dattended = dot(load_square(plus_opaque_zero(out_weight_ptr), C, channel, C), tl.trans(grad), zero, PRECISION)
        tl.store(tile_ptrs + 2 * TILE, rounded(dattended, dtype))
        tl.debug_barrier()

        du = zero
        for first in tl.range(0, 3, PARTS, num_stages=1, disable_licm=True):
            for further in tl.static_range(PARTS):
                part = first + further
                other = tl.load(tile_ptrs + tl.where(part < 2, 1 - part, 2) * TILE)
                dy = dot(tl.load(matrices + part * (C_PAD * C_PAD) + square), other, zero, PRECISION)
                own = tl.load(tile_ptrs + part * TILE).to(tl.float32)
                dy -= own * tl.load(vectors + (3 + part) * C_PAD)[:, None]
                dy *= tl.load(vectors + part * C_PAD)[:, None]
                add_vector(dqkv_bias_ptr + own_row + part * C, tl.sum(dy, 1), channel, C)
                dy = rounded(dy, dtype)
                du = dot(load_square(weight_ptr + part * C, 3 * C, channel, C), dy, du, PRECISION)
                dweight = dot(tl.trans(tl.load(u_ptrs)), tl.trans(dy), tl.zeros((C_PAD, C_PAD), tl.float32), PRECISION)
                add_matrix(dqkv_weight_ptr + own_row + part * C, dweight, channel, channel, 3 * C, C, C)
        # Load again, from addresses computed again: kept, they would take registers that are not there.
        here = opaque(pixel)
        offset_again = ((here // PATCH * W + here % PATCH) * C)[:, None] + channel[None, :]
        x = tl.load(x_ptr + corner + offset_again, inside, 0.0)
        grad = tl.load(grad_ptr + corner + offset_again, inside, 0.0).to(tl.float32)
        dx = grad + normalize_backward(tl.trans(du), x, tl.load(u_ptrs), channel, C, NORM)
        tl.store(dx_ptr + corner + offset_again, rounded(dx, dtype), inside)
        tl.debug_barrier()


def backward(
    grad: Tensor, x: Tensor, weights: AttentionWeights, norm: str, patch_size: int
) -> tuple[Tensor, AttentionWeights]:
    batch, channels, height, width = x.shape
    side = padded(channels)
    grad, x = dense(grad), dense(x)
    dx = torch.empty_like(x)
    columns = width // patch_size
    patches = batch * (height // patch_size) * columns
    qkv_weight, qkv_bias, temperature, out_weight, out_bias = contiguous(weights)
    matrices = x.new_empty(patches, 3, side, side)
    vectors = x.new_empty(patches, 6, side, dtype=torch.float32)
    constants = {"C": channels, "C_PAD": side, "PATCH": patch_size, "NORM": norm}

    between = (matrices, vectors)
    launcher = KernelLauncher(_inner_patch_attention_weights_bwd_kernel, x, channels=side, patch_size=patch_size)
    args: tuple[Any, ...] = (x, qkv_weight, qkv_bias, temperature, *between, width, columns, patches)
    launcher.launch(launcher.programs(patches), *args, **constants)

    launcher = KernelLauncher(_inner_patch_attention_scores_bwd_kernel, x, channels=side, patch_size=patch_size)
    programs = launcher.programs(patches)
    out_partials = PartialGradients(programs, temperature, out_weight, out_bias)
    args = (grad, x, qkv_weight, qkv_bias, temperature, out_weight, *between, *out_partials.rows)
    args += (x.new_empty(programs, side, side), width, columns, patches, out_partials.stride)
    launcher.launch(programs, *args, **constants)

    launcher = KernelLauncher(_inner_patch_attention_qkv_bwd_kernel, x, channels=side, patch_size=patch_size)
    blocks = patches * (patch_size**2 // launcher.blocks["BLOCK_T"])
    programs = launcher.programs(blocks)
    qkv_partials = PartialGradients(programs, qkv_weight, qkv_bias)
    scratch = x.new_empty(programs, 4 * side * launcher.blocks["BLOCK_T"])
    args = (grad, x, qkv_weight, qkv_bias, out_weight, *between, dx, *qkv_partials.rows, scratch)
    args += (width, columns, blocks, qkv_partials.stride)
    launcher.launch(programs, *args, **constants)
    return dx, AttentionWeights(*qkv_partials.totals(), *out_partials.totals())


def _blocks(given: Mapping[str, Any]) -> int:
    blocks: int = given["PATCH"] ** 2 // given["BLOCK_T"]
    return blocks


LOOPS = {
    "inner_patch_attention_weights_bwd": lambda given: Loops(given["patches"], (_blocks(given),)),
    "inner_patch_attention_scores_bwd": lambda given: Loops(
        given["patches"], (_blocks(given), *(cdiv(given["C_PAD"], given["SLICE"]),) * 2)
    ),
    "inner_patch_attention_qkv_bwd": lambda given: Loops(given["blocks"], (3 // given["PARTS"],)),
}
