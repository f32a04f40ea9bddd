# SPDX-License-Identifier: Apache-2.0
"""The gradient of inner_patch_attention in Triton: a patch is read once, attended to again, and differentiated.

As in the forward kernel the tiles of q, k and v are [channels, pixels]. What is a sum over the whole patch (products,
dweights) is a [channels, channels] tile, so that a patch of more than BLOCK_T pixels is gone through in blocks: three
times, because each of these sums has to be complete before the next begins.
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
    here,
    load_square,
    load_vector,
    normalize,
    normalize_backward,
    rounded,
)
from ditn_kernels.triton._sums import Sums, add, add_matrix, add_vector
from ditn_kernels.triton.inner_patch_attention import NORMALIZE_EPS, project, softmax_of_cosines


@triton.jit
def project_backward(dy, u, weight, du, dweight_ptr, dbias_ptr, channel, C: tl.constexpr, PRECISION: tl.constexpr):
    """du + the gradient of u [T, C_PAD] from dy [C_PAD, T], that of project(u, weight, bias), float32; adds those of
    weight and bias, which are a part of three, to the program's sums."""
    add_vector(dbias_ptr, tl.sum(dy, 1), C)
    dy = tl.trans(rounded(dy, u.dtype))  # [T, C_PAD]
    dweight = dot(tl.trans(u), dy, tl.zeros(weight.shape, tl.float32), PRECISION)
    add_matrix(dweight_ptr, dweight, 3 * C, C, C)
    return dot(dy, tl.trans(weight), du, PRECISION)


@triton.jit
def _inner_patch_attention_bwd_kernel(
    grad_ptr,
    x_ptr,
    qkv_weight_ptr,
    qkv_bias_ptr,
    temperature_ptr,
    out_weight_ptr,
    dx_ptr,
    dqkv_weight_ptr,
    dqkv_bias_ptr,
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
    """The gradients of x + W_o (softmax(t qn kn^T) v) + b_o in every patch.

    Grid: as many programs as the chip holds; each takes every so-manieth patch.
    """
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    BLOCKS: tl.constexpr = PATCH * PATCH // BLOCK_T
    channel = tl.arange(0, C_PAD)
    pixel = tl.arange(0, BLOCK_T)
    inside = (channel < C)[None, :]
    q_bias = load_vector(qkv_bias_ptr, channel, C)
    k_bias = load_vector(qkv_bias_ptr + C, channel, C)
    v_bias = load_vector(qkv_bias_ptr + 2 * C, channel, C)
    temperature = tl.load(temperature_ptr).to(tl.float32)
    zero = tl.zeros((C_PAD, BLOCK_T), tl.float32)
    square = tl.zeros((C_PAD, C_PAD), tl.float32)
    row = tl.program_id(0).to(tl.int64) * stride
    dqkv_weight_ptr += row
    dqkv_bias_ptr += row

    for patch in range(tl.program_id(0), patches, tl.num_programs(0)):
        corner = ((patch // columns).to(tl.int64) * PATCH * W + patch % columns * PATCH) * C
        offset = (((pixel // PATCH) * W + pixel % PATCH) * C)[:, None] + channel[None, :]
        step = BLOCK_T // PATCH * W * C  # from one block of the patch's rows to the next

        products = square
        q_squares = tl.zeros((C_PAD,), tl.float32)
        k_squares = tl.zeros((C_PAD,), tl.float32)
        for block in range(BLOCKS):
            x = tl.load(x_ptr + corner + block * step + offset, inside, 0.0)  # [BLOCK_T, C_PAD]
            u = normalize(x, channel, C, NORM)
            q = project(u, load_square(here(qkv_weight_ptr), 3 * C, channel, C), q_bias, PRECISION)  # [C_PAD, BLOCK_T]
            k = project(u, load_square(here(qkv_weight_ptr) + C, 3 * C, channel, C), k_bias, PRECISION)
            q_squares += tl.sum(q * q, 1)
            k_squares += tl.sum(k * k, 1)
            products = dot(rounded(q, dtype), tl.trans(rounded(k, dtype)), products, PRECISION)
        weights = rounded(softmax_of_cosines(products, q_squares, k_squares, temperature, channel, C), dtype)

        dweights = square
        for block in range(BLOCKS):
            x = tl.load(x_ptr + corner + block * step + offset, inside, 0.0)
            u = normalize(x, channel, C, NORM)
            v = rounded(
                project(u, load_square(here(qkv_weight_ptr) + 2 * C, 3 * C, channel, C), v_bias, PRECISION), dtype
            )
            attended = rounded(dot(weights, v, zero, PRECISION), dtype)  # [C_PAD, BLOCK_T]
            grad = tl.load(grad_ptr + corner + block * step + offset, inside, 0.0)  # [BLOCK_T, C_PAD]
            add_matrix(dout_weight_ptr + row, dot(attended, grad, square, PRECISION), C, C, C)
            add_vector(dout_bias_ptr + row, column_sums(grad.to(tl.float32)), C)
            dattended = dot(load_square(here(out_weight_ptr), C, channel, C), tl.trans(grad), zero, PRECISION)
            dweights = dot(rounded(dattended, dtype), tl.trans(v), dweights, PRECISION)
            tl.debug_barrier()
        wide = weights.to(tl.float32)
        dscores = wide * (dweights - tl.sum(dweights * wide, 1)[:, None])
        q_length = tl.sqrt(q_squares)
        k_length = tl.sqrt(k_squares)
        q_scale = 1 / tl.maximum(q_length, NORMALIZE_EPS)
        k_scale = 1 / tl.maximum(k_length, NORMALIZE_EPS)
        along = dscores * products * q_scale[:, None] * k_scale[None, :]
        add(dtemperature_ptr + row, 0, tl.sum(tl.sum(along, 1), 0), True)
        # Where the lower bound of the length holds, a unit is linear in q or k.
        q_along = tl.where(q_length > NORMALIZE_EPS, temperature * tl.sum(along, 1), 0.0)
        k_along = tl.where(k_length > NORMALIZE_EPS, temperature * tl.sum(along, 0), 0.0)
        dcosines = rounded(temperature * dscores, dtype)

        for block in range(BLOCKS):
            x = tl.load(x_ptr + corner + block * step + offset, inside, 0.0)
            u = normalize(x, channel, C, NORM)
            q_weight = load_square(here(qkv_weight_ptr), 3 * C, channel, C)
            k_weight = load_square(here(qkv_weight_ptr) + C, 3 * C, channel, C)
            q_unit = rounded(project(u, q_weight, q_bias, PRECISION) * q_scale[:, None], dtype)
            k_unit = rounded(project(u, k_weight, k_bias, PRECISION) * k_scale[:, None], dtype)
            dq = dot(dcosines, k_unit, zero, PRECISION) - q_unit.to(tl.float32) * q_along[:, None]
            dq *= q_scale[:, None]
            du = tl.zeros(u.shape, tl.float32)
            du = project_backward(dq, u, q_weight, du, dqkv_weight_ptr, dqkv_bias_ptr, channel, C, PRECISION)
            dk = dot(tl.trans(dcosines), q_unit, zero, PRECISION) - k_unit.to(tl.float32) * k_along[:, None]
            dk *= k_scale[:, None]
            du = project_backward(dk, u, k_weight, du, dqkv_weight_ptr + C, dqkv_bias_ptr + C, channel, C, PRECISION)
            grad = tl.load(grad_ptr + corner + block * step + offset, inside, 0.0)
            dattended = dot(load_square(here(out_weight_ptr), C, channel, C), tl.trans(grad), zero, PRECISION)
            dv = dot(tl.trans(weights), rounded(dattended, dtype), zero, PRECISION)
            v_weight = load_square(here(qkv_weight_ptr) + 2 * C, 3 * C, channel, C)
            du = project_backward(
                dv, u, v_weight, du, dqkv_weight_ptr + 2 * C, dqkv_bias_ptr + 2 * C, channel, C, PRECISION
            )
            dx = grad.to(tl.float32) + normalize_backward(du, x, u, channel, C, NORM)
            tl.store(dx_ptr + corner + block * step + offset, rounded(dx, dtype), inside)
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
    grad, x = dense(grad), dense(x)
    dx = torch.empty_like(x)
    columns = width // patch_size
    patches = batch * (height // patch_size) * columns
    plan = Plan(_inner_patch_attention_bwd_kernel, x, channels=padded(channels), patch_size=patch_size)
    programs = plan.programs(patches)
    blocks = patch_size**2 // plan.blocks["BLOCK_T"]
    sums = Sums(programs, qkv_weight, qkv_bias, temperature, out_weight, out_bias)
    plan.launch(
        programs,
        grad,
        x,
        *(w.contiguous() for w in (qkv_weight, qkv_bias, temperature, out_weight)),
        dx,
        *sums.rows,
        width,
        columns,
        patches,
        sums.stride,
        tasks=patches,
        trips=(1, blocks, blocks, blocks),
        C=channels,
        C_PAD=padded(channels),
        PATCH=patch_size,
        NORM=norm,
    )
    return dx, *sums.totals()
