# SPDX-License-Identifier: Apache-2.0
"""Device functions of the attention between channels, which its forward kernel, its gradient and the stage share."""

from __future__ import annotations

import triton
import triton.language as tl

from ditn_kernels.backends.triton._math import dot, load_square, load_vector, rounded

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
