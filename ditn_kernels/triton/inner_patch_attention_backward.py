# SPDX-License-Identifier: Apache-2.0
"""The gradient of inner_patch_attention in Triton, in two kernels: back to the scores, and back through q, k and v.

As in the forward kernel the tiles of q, k and v are [channels, pixels]. What is a sum over the whole patch is a
[channels, channels] tile, so a patch of more than BLOCK_T pixels is gone through in blocks. Between the kernels lie,
for each patch, the softmax's weights and the gradient of the cosines: in one kernel they would not fit the registers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ditn_kernels.triton._launch import Plan, dense, padded
from ditn_kernels.triton._math import (
    column_sums,
    dot,
    load_square,
    load_vector,
    normalize,
    normalize_backward,
    rounded,
)
from ditn_kernels.triton._sums import Sums, add, add_matrix, add_vector
from ditn_kernels.triton.inner_patch_attention import NORMALIZE_EPS, project, softmax_of_cosines

CANDIDATES = {
    "inner_patch_attention_scores_bwd": {"BLOCK_T": (16, 32, 64)},
    "inner_patch_attention_qkv_bwd": {"BLOCK_T": (16, 32, 64)},
}


@triton.jit
def _inner_patch_attention_scores_bwd_kernel(
    grad_ptr,
    x_ptr,
    qkv_weight_ptr,
    qkv_bias_ptr,
    temperature_ptr,
    out_weight_ptr,
    weights_ptr,
    dcosines_ptr,
    vectors_ptr,
    dtemperature_ptr,
    dout_weight_ptr,
    dout_bias_ptr,
    W,
    columns,
    patches,
    stride,
    C: tl.constexpr,
    C_PAD: tl.constexpr,
    PATCH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    NORM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The weights w = softmax(t c) and the gradient of the cosines c = qn kn^T, from that of W_o (w v) + b_o; besides,
    1 / |q|, 1 / |k|, and the sums of dc * c over k's channels and over q's.

    Grid: as many programs as the chip holds; each takes every so-manieth patch.
    """
    tl.static_assert(PATCH * PATCH % BLOCK_T == 0 and BLOCK_T % PATCH == 0)
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    BLOCKS: tl.constexpr = PATCH * PATCH // BLOCK_T
    channel = tl.arange(0, C_PAD)
    line = (tl.arange(0, BLOCK_T) // PATCH * W + tl.arange(0, BLOCK_T) % PATCH) * C
    temperature = tl.load(temperature_ptr).to(tl.float32)
    zero = tl.zeros((C_PAD, BLOCK_T), tl.float32)
    square = tl.zeros((C_PAD, C_PAD), tl.float32)
    row = tl.program_id(0).to(tl.int64) * stride

    for patch in range(tl.program_id(0), patches, tl.num_programs(0)):
        corner = ((patch // columns).to(tl.int64) * PATCH * W + patch % columns * PATCH) * C
        inside = (channel < C)[None, :]
        offset = line[:, None] + channel[None, :]
        q_bias = load_vector(qkv_bias_ptr, channel, C)
        k_bias = load_vector(qkv_bias_ptr + C, channel, C)
        v_bias = load_vector(qkv_bias_ptr + 2 * C, channel, C)

        products = square
        dweights = square
        q_squares = tl.zeros((C_PAD,), tl.float32)
        k_squares = tl.zeros((C_PAD,), tl.float32)
        for block in range(BLOCKS):
            first = corner + block * (BLOCK_T // PATCH) * W * C
            x = tl.load(x_ptr + first + offset, inside, 0.0)  # [BLOCK_T, C_PAD]
            u = normalize(x, channel, C, NORM)
            q = project(u, load_square(qkv_weight_ptr, 3 * C, channel, C), q_bias, PRECISION)  # [C_PAD, BLOCK_T]
            q_squares += tl.sum(q * q, 1)
            k = project(u, load_square(qkv_weight_ptr + C, 3 * C, channel, C), k_bias, PRECISION)
            k_squares += tl.sum(k * k, 1)
            products = dot(rounded(q, dtype), tl.trans(rounded(k, dtype)), products, PRECISION)
        weights = rounded(softmax_of_cosines(products, q_squares, k_squares, temperature, channel, C), dtype)
        q_scale = 1 / tl.maximum(tl.sqrt(q_squares), NORMALIZE_EPS)
        k_scale = 1 / tl.maximum(tl.sqrt(k_squares), NORMALIZE_EPS)
        cosines = rounded(products * q_scale[:, None] * k_scale[None, :], dtype)

        for block in range(BLOCKS):
            first = corner + block * (BLOCK_T // PATCH) * W * C
            x = tl.load(x_ptr + first + offset, inside, 0.0)
            u = normalize(x, channel, C, NORM)
            v = project(u, load_square(qkv_weight_ptr + 2 * C, 3 * C, channel, C), v_bias, PRECISION)
            v = rounded(v, dtype)
            grad = tl.load(grad_ptr + first + offset, inside, 0.0)  # [BLOCK_T, C_PAD]
            add_vector(dout_bias_ptr + row, column_sums(grad.to(tl.float32)), channel, C)
            attended = rounded(dot(weights, v, zero, PRECISION), dtype)  # [C_PAD, BLOCK_T]
            dout_weight = dot(attended, grad, square, PRECISION)
            add_matrix(dout_weight_ptr + row, dout_weight, channel, channel, C, C, C)
            dattended = dot(load_square(out_weight_ptr, C, channel, C), tl.trans(grad), zero, PRECISION)
            dweights = dot(rounded(dattended, dtype), tl.trans(v), dweights, PRECISION)
            tl.debug_barrier()
        dscores = dweights - tl.sum(dweights * weights.to(tl.float32), 1)[:, None]
        dscores *= weights.to(tl.float32)
        along = dscores * cosines.to(tl.float32)
        q_along = tl.sum(along, 1)
        k_along = tl.sum(along, 0)
        add(dtemperature_ptr + row, 0, tl.sum(q_along, 0), True)

        number = tl.cast(patch, tl.int64)
        tile = number * (C_PAD * C_PAD) + channel[:, None] * C_PAD + channel[None, :]
        tl.store(weights_ptr + tile, weights)
        tl.store(dcosines_ptr + tile, rounded(temperature * dscores, dtype))
        vectors = vectors_ptr + number * (4 * C_PAD) + channel
        tl.store(vectors, q_scale)
        tl.store(vectors + C_PAD, k_scale)
        # Where the lower bound of the length holds, a unit is linear in q or k.
        tl.store(vectors + 2 * C_PAD, tl.where(q_scale < 1 / NORMALIZE_EPS, temperature * q_along, 0.0))
        tl.store(vectors + 3 * C_PAD, tl.where(k_scale < 1 / NORMALIZE_EPS, temperature * k_along, 0.0))
        tl.debug_barrier()


@triton.jit
def project_backward(dy, u, weight_ptr, du, dweight_ptr, dbias_ptr, channel, C: tl.constexpr, PRECISION: tl.constexpr):
    """du + the gradient of u^T [C_PAD, T] from dy [C_PAD, T], that of project(u, weight, bias), float32; adds those of
    weight and bias, which are a part of three, to the program's sums."""
    add_vector(dbias_ptr, tl.sum(dy, 1), channel, C)
    dy = rounded(dy, u.dtype)
    du = dot(load_square(weight_ptr, 3 * C, channel, C), dy, du, PRECISION)
    zero = tl.zeros((channel.shape[0], channel.shape[0]), tl.float32)
    dweight = dot(tl.trans(u), tl.trans(dy), zero, PRECISION)
    add_matrix(dweight_ptr, dweight, channel, channel, 3 * C, C, C)
    return du


@triton.jit
def _inner_patch_attention_qkv_bwd_kernel(
    grad_ptr,
    x_ptr,
    qkv_weight_ptr,
    qkv_bias_ptr,
    out_weight_ptr,
    weights_ptr,
    dcosines_ptr,
    vectors_ptr,
    dx_ptr,
    dqkv_weight_ptr,
    dqkv_bias_ptr,
    W,
    columns,
    blocks,
    stride,
    C: tl.constexpr,
    C_PAD: tl.constexpr,
    PATCH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    NORM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The gradients of x + ..., q, k, v = W norm(x) + b, from those of the sum, of qn kn^T and of softmax(t qn kn^T) v.

    Grid: as many programs as the chip holds; each takes every so-manieth block of BLOCK_T pixels of a patch.
    """
    tl.static_assert(PATCH * PATCH % BLOCK_T == 0 and BLOCK_T % PATCH == 0)
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    BLOCKS: tl.constexpr = PATCH * PATCH // BLOCK_T  # of a patch
    channel = tl.arange(0, C_PAD)
    line = (tl.arange(0, BLOCK_T) // PATCH * W + tl.arange(0, BLOCK_T) % PATCH) * C
    zero = tl.zeros((C_PAD, BLOCK_T), tl.float32)
    row = tl.program_id(0).to(tl.int64) * stride
    dqkv_weight_ptr += row
    dqkv_bias_ptr += row

    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        patch = block // BLOCKS
        top = block % BLOCKS * (BLOCK_T // PATCH)
        corner = (((patch // columns).to(tl.int64) * PATCH + top) * W + patch % columns * PATCH) * C
        inside = (channel < C)[None, :]
        offset = line[:, None] + channel[None, :]
        tile = tl.cast(patch, tl.int64) * (C_PAD * C_PAD) + channel[:, None] * C_PAD + channel[None, :]
        vectors = vectors_ptr + tl.cast(patch, tl.int64) * (4 * C_PAD) + channel

        x = tl.load(x_ptr + corner + offset, inside, 0.0)  # [BLOCK_T, C_PAD]
        u = normalize(x, channel, C, NORM)
        q_scale = tl.load(vectors)
        k_scale = tl.load(vectors + C_PAD)
        q_bias = load_vector(qkv_bias_ptr, channel, C)
        q = project(u, load_square(qkv_weight_ptr, 3 * C, channel, C), q_bias, PRECISION)  # [C_PAD, BLOCK_T]
        q_unit = rounded(q * q_scale[:, None], dtype)
        k_bias = load_vector(qkv_bias_ptr + C, channel, C)
        k = project(u, load_square(qkv_weight_ptr + C, 3 * C, channel, C), k_bias, PRECISION)
        k_unit = rounded(k * k_scale[:, None], dtype)
        dcosines = tl.load(dcosines_ptr + tile)

        dq = dot(dcosines, k_unit, zero, PRECISION) - q_unit.to(tl.float32) * tl.load(vectors + 2 * C_PAD)[:, None]
        dq *= q_scale[:, None]
        du = project_backward(dq, u, qkv_weight_ptr, zero, dqkv_weight_ptr, dqkv_bias_ptr, channel, C, PRECISION)
        dk = dot(tl.trans(dcosines), q_unit, zero, PRECISION)
        dk = (dk - k_unit.to(tl.float32) * tl.load(vectors + 3 * C_PAD)[:, None]) * k_scale[:, None]
        du = project_backward(
            dk, u, qkv_weight_ptr + C, du, dqkv_weight_ptr + C, dqkv_bias_ptr + C, channel, C, PRECISION
        )

        grad = tl.load(grad_ptr + corner + offset, inside, 0.0)  # [BLOCK_T, C_PAD]
        dattended = dot(load_square(out_weight_ptr, C, channel, C), tl.trans(grad), zero, PRECISION)
        dv = dot(tl.trans(tl.load(weights_ptr + tile)), rounded(dattended, dtype), zero, PRECISION)
        du = project_backward(
            dv, u, qkv_weight_ptr + 2 * C, du, dqkv_weight_ptr + 2 * C, dqkv_bias_ptr + 2 * C, channel, C, PRECISION
        )
        # Read once more: kept, they would take registers that are short.
        x = tl.load(x_ptr + corner + offset, inside, 0.0)
        u = normalize(x, channel, C, NORM)
        grad = tl.load(grad_ptr + corner + offset, inside, 0.0)
        dx = grad.to(tl.float32) + normalize_backward(tl.trans(du), x, u, channel, C, NORM)
        tl.store(dx_ptr + corner + offset, rounded(dx, dtype), inside)
        tl.debug_barrier()


def backward(
    grad: Tensor,
    x: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    temperature: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    norm: str,
    patch_size: int,
) -> tuple[Tensor, ...]:
    batch, channels, height, width = x.shape
    side = padded(channels)
    grad, x = dense(grad), dense(x)
    dx = torch.empty_like(x)
    columns = width // patch_size
    patches = batch * (height // patch_size) * columns
    qkv_weight, qkv_bias, out_weight = qkv_weight.contiguous(), qkv_bias.contiguous(), out_weight.contiguous()
    weights = x.new_empty(patches, side, side)
    dcosines = x.new_empty(patches, side, side)
    vectors = x.new_empty(patches, 4, side, dtype=torch.float32)
    constants = {"C": channels, "C_PAD": side, "PATCH": patch_size, "NORM": norm}

    plan = Plan(_inner_patch_attention_scores_bwd_kernel, x, channels=side, patch_size=patch_size)
    blocks = patch_size**2 // plan.blocks["BLOCK_T"]
    programs = plan.programs(patches)
    out_sums = Sums(programs, temperature, out_weight, out_bias)
    between = (weights, dcosines, vectors)
    args = (grad, x, qkv_weight, qkv_bias, temperature, out_weight, *between, *out_sums.rows)
    # With one block there is no loop over blocks.
    trips = (1, blocks, blocks) if blocks > 1 else (1,)
    plan.launch(programs, *args, width, columns, patches, out_sums.stride, tasks=patches, trips=trips, **constants)

    plan = Plan(_inner_patch_attention_qkv_bwd_kernel, x, channels=side, patch_size=patch_size)
    blocks = patches * (patch_size**2 // plan.blocks["BLOCK_T"])
    programs = plan.programs(blocks)
    qkv_sums = Sums(programs, qkv_weight, qkv_bias)
    args = (grad, x, qkv_weight, qkv_bias, out_weight, *between, dx, *qkv_sums.rows)
    plan.launch(programs, *args, width, columns, blocks, qkv_sums.stride, tasks=blocks, trips=(1,), **constants)
    return dx, *qkv_sums.totals(), *out_sums.totals()
