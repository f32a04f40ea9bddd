# SPDX-License-Identifier: Apache-2.0
"""inner_patch_attention in Triton: a patch is read by address, attended to in registers and written back.

The tiles of q, k and v are [channels, pixels]: attention is between channels, so lengths and softmax are sums along
rows, which stay inside a quad of threads, and the weights of the softmax are the left factor of the next product as
they lie in registers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ditn_kernels.triton._launch import Plan, dense, padded
from ditn_kernels.triton._math import anew, dot, load_square, load_vector, normalize, rounded

CANDIDATES = {"inner_patch_attention_fwd": {"BLOCK_T": (16, 32, 64, 128, 256), "KEEP_WEIGHTS": (1, 0)}}
NORMALIZE_EPS = tl.constexpr(1e-12)


@triton.jit
def load_projection(weight_ptr, bias_ptr, stride, channel, C: tl.constexpr):
    """The weight [C_PAD, C_PAD] and bias [C_PAD] of q, k, v or the result."""
    return load_square(weight_ptr, stride, channel, C), load_vector(bias_ptr, channel, C)


@triton.jit
def project(u, weight, bias, PRECISION: tl.constexpr):
    """(u W + b)^T [C_PAD, T], float32, of u [T, C_PAD]."""
    zero = tl.zeros((weight.shape[1], u.shape[0]), tl.float32)
    return dot(tl.trans(weight), tl.trans(u), zero, PRECISION) + bias[:, None]


@triton.jit
def softmax_of_cosines(products, q_squares, k_squares, temperature, channel, C: tl.constexpr):
    """softmax(t qn kn^T) [C_PAD, C_PAD] along the channels of k, from q k^T and the squared lengths of q and k."""
    q_scale = temperature / tl.maximum(tl.sqrt(q_squares), NORMALIZE_EPS)
    k_scale = 1 / tl.maximum(tl.sqrt(k_squares), NORMALIZE_EPS)
    scores = products * q_scale[:, None] * k_scale[None, :]
    scores = tl.where((channel < C)[None, :], scores, float("-inf"))
    exponentials = tl.exp(scores - tl.max(scores, 1)[:, None])
    return exponentials * (1 / tl.sum(exponentials, 1))[:, None]


@triton.jit
def attend(weights, v, out_weight, out_bias, PRECISION: tl.constexpr):
    """((weights v)^T W_o + b_o) [T, C_PAD] from weights [C_PAD, C_PAD] and v [C_PAD, T], all rounded already."""
    attended = dot(weights, v, tl.zeros(v.shape, tl.float32), PRECISION)
    attended = tl.trans(rounded(attended, v.dtype))  # [T, C_PAD]
    zero = tl.zeros(attended.shape, tl.float32)
    return dot(attended, out_weight, zero, PRECISION) + out_bias[None, :]


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
    patches,
    y_ptr,
    C: tl.constexpr,
    C_PAD: tl.constexpr,
    PATCH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    KEEP_WEIGHTS: tl.constexpr,
    NORM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """x + W_o (softmax(t qn kn^T) v) + b_o in every patch.

    Grid: as many programs as the chip holds; each takes every so-manieth patch and, where shared
    memory has room for them, keeps the weights.
    """
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    PIXELS: tl.constexpr = PATCH * PATCH
    tl.static_assert(PIXELS % BLOCK_T == 0 and BLOCK_T % PATCH == 0, "BLOCK_T must be whole rows that fill a patch")
    # With the weights kept there are registers for all blocks at once; else block by block, addresses computed anew.
    UNROLLED: tl.constexpr = PIXELS // BLOCK_T if KEEP_WEIGHTS else 1
    channel = tl.arange(0, C_PAD)
    if KEEP_WEIGHTS:
        q_weight, q_bias = load_projection(qkv_weight_ptr, qkv_bias_ptr, 3 * C, channel, C)
        k_weight, k_bias = load_projection(qkv_weight_ptr + C, qkv_bias_ptr + C, 3 * C, channel, C)
        v_weight, v_bias = load_projection(qkv_weight_ptr + 2 * C, qkv_bias_ptr + 2 * C, 3 * C, channel, C)
        out_weight, out_bias = load_projection(out_weight_ptr, out_bias_ptr, C, channel, C)
    temperature = tl.load(temperature_ptr).to(tl.float32)
    pixel = tl.arange(0, BLOCK_T)
    inside = (channel < C)[None, :]
    step = BLOCK_T // PATCH * W * C  # from one block of the patch's rows to the next

    for patch in range(tl.program_id(0), patches, tl.num_programs(0)):
        corner = ((patch // columns).to(tl.int64) * PATCH * W + patch % columns * PATCH) * C
        products = tl.zeros((C_PAD, C_PAD), tl.float32)
        q_squares = tl.zeros((C_PAD,), tl.float32)
        k_squares = tl.zeros((C_PAD,), tl.float32)
        for first in tl.range(0, PIXELS // BLOCK_T, UNROLLED, num_stages=1):
            for block in tl.static_range(UNROLLED):
                here = pixel if KEEP_WEIGHTS else anew(pixel)
                offset = (((here // PATCH) * W + here % PATCH) * C)[:, None] + channel[None, :]
                x = tl.load(x_ptr + corner + (first + block) * step + offset, inside, 0.0)  # [BLOCK_T, C_PAD]
                u = normalize(x, channel, C, NORM)
                if not KEEP_WEIGHTS:
                    q_weight, q_bias = load_projection(qkv_weight_ptr, qkv_bias_ptr, 3 * C, channel, C)
                q = project(u, q_weight, q_bias, PRECISION)  # [C_PAD, BLOCK_T]
                q_squares += tl.sum(q * q, 1)
                if not KEEP_WEIGHTS:
                    k_weight, k_bias = load_projection(qkv_weight_ptr + C, qkv_bias_ptr + C, 3 * C, channel, C)
                k = project(u, k_weight, k_bias, PRECISION)
                k_squares += tl.sum(k * k, 1)
                products = dot(rounded(q, dtype), tl.trans(rounded(k, dtype)), products, PRECISION)
        weights = softmax_of_cosines(products, q_squares, k_squares, temperature, channel, C)
        weights = rounded(weights, dtype)

        for first in tl.range(0, PIXELS // BLOCK_T, UNROLLED, num_stages=1):
            for block in tl.static_range(UNROLLED):
                here = pixel if KEEP_WEIGHTS else anew(pixel)
                offset = (((here // PATCH) * W + here % PATCH) * C)[:, None] + channel[None, :]
                start = corner + (first + block) * step
                x = tl.load(x_ptr + start + offset, inside, 0.0)
                u = normalize(x, channel, C, NORM)
                if not KEEP_WEIGHTS:
                    v_weight, v_bias = load_projection(qkv_weight_ptr + 2 * C, qkv_bias_ptr + 2 * C, 3 * C, channel, C)
                v = rounded(project(u, v_weight, v_bias, PRECISION), dtype)
                if not KEEP_WEIGHTS:
                    out_weight, out_bias = load_projection(out_weight_ptr, out_bias_ptr, C, channel, C)
                y = x.to(tl.float32) + attend(weights, v, out_weight, out_bias, PRECISION)
                tl.store(y_ptr + start + offset, rounded(y, dtype), inside)


def forward(
    x: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    temperature: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    norm: str,
    patch_size: int,
) -> Tensor:
    batch, channels, height, width = x.shape
    x = dense(x)
    y = torch.empty_like(x)
    constants = {"C": channels, "C_PAD": padded(channels), "PATCH": patch_size, "NORM": norm}
    integers = sizes(batch, height, width, constants)
    plan = Plan(_inner_patch_attention_fwd_kernel, x, channels=padded(channels), patch_size=patch_size)
    blocks = patch_size**2 // plan.blocks["BLOCK_T"]
    weights = (w.contiguous() for w in (qkv_weight, qkv_bias, temperature, out_weight, out_bias))
    plan.launch(
        plan.programs(integers[-1]),
        x,
        *weights,
        *integers,
        y,
        tasks=integers[-1],
        trips=(1,) if plan.blocks["KEEP_WEIGHTS"] else (1, blocks, blocks),
        **constants,
    )
    return y


def sizes(batch: Any, height: Any, width: Any, constants: Mapping[str, Any]) -> tuple[Any, ...]:
    """The kernel's integers, of which the last is the number of tasks. TensorRT's plugins ask with expressions, which
    have to stand left of an operator."""
    columns = width // constants["PATCH"]
    return width, columns, batch * (height // constants["PATCH"]) * columns
