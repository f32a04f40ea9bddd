# SPDX-License-Identifier: Apache-2.0
"""inner_patch_attention: the first half of an ITL."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ditn_kernels._op import Sample, define
from ditn_kernels._records import Map
from ditn_kernels.ops._parts import (
    from_patches,
    normalize,
    normalize_backward,
    pointwise,
    pointwise_backward,
    to_patches,
)
from ditn_kernels.ops._rules import known_norm, patches

_NORMALIZE_EPS = 1e-12


class AttentionWeights(NamedTuple):
    """Input-major: a product is u @ weight."""

    qkv_weight: Annotated[Tensor, "C 3C"]
    qkv_bias: Annotated[Tensor, "3C"]
    temperature: Annotated[Tensor, "1"]
    out_weight: Annotated[Tensor, "C C"]
    out_bias: Annotated[Tensor, "C"]


def _backward(
    grad: Tensor,
    x: Map,
    weights: AttentionWeights,
    norm: str,
    patch_size: int,
) -> tuple[Tensor, AttentionWeights]:
    tokens = to_patches(x, patch_size).flatten(1, 2)
    u = normalize(tokens, norm)
    q, k, v = pointwise(u, weights.qkv_weight, weights.qkv_bias).transpose(1, 2).chunk(3, dim=1)
    q_length, k_length = (t.norm(dim=-1, keepdim=True) for t in (q, k))
    qn, kn = q / q_length.clamp_min(_NORMALIZE_EPS), k / k_length.clamp_min(_NORMALIZE_EPS)
    cosines = qn @ kn.transpose(1, 2)
    attention = torch.softmax(weights.temperature * cosines, dim=-1)
    attended = (attention @ v).transpose(1, 2)

    grad_tokens = to_patches(grad, patch_size).flatten(1, 2)
    dattended, dout_weight, dout_bias = pointwise_backward(grad_tokens, attended, weights.out_weight)
    dattended = dattended.transpose(1, 2)
    dattention = dattended @ v.transpose(1, 2)
    dscores = attention * (dattention - (dattention * attention).sum(-1, keepdim=True))
    dcosines = weights.temperature * dscores
    dq = _unit_backward(dcosines @ kn, qn, q_length)
    dk = _unit_backward(dcosines.transpose(1, 2) @ qn, kn, k_length)
    dv = attention.transpose(1, 2) @ dattended
    dqkv = torch.cat((dq, dk, dv), dim=1).transpose(1, 2)
    du, dqkv_weight, dqkv_bias = pointwise_backward(dqkv, u, weights.qkv_weight)
    dtokens = normalize_backward(du, tokens, u, norm).unflatten(1, (patch_size, patch_size))
    dx = grad + from_patches(dtokens, x, patch_size)
    dtemperature = (dscores * cosines).sum().reshape(1)
    return dx, AttentionWeights(dqkv_weight, dqkv_bias, dtemperature, dout_weight, dout_bias)


def _unit_backward(grad: Tensor, unit: Tensor, length: Tensor) -> Tensor:
    """The gradient of t from that of unit = t / max(|t|, eps); where eps holds, unit is linear in t."""
    along = (grad * unit).sum(-1, keepdim=True) * (length > _NORMALIZE_EPS)
    return (grad - unit * along) / length.clamp_min(_NORMALIZE_EPS)


@define(
    samples=[
        Sample("tanh", {"B": 2, "C": 60, "H": 16, "W": 24}, {"norm": "tanh", "patch_size": 8}),
        Sample("layernorm", {"B": 1, "C": 60, "H": 16, "W": 8}, {"norm": "layernorm", "patch_size": 8}),
        Sample("none", {"B": 1, "C": 60, "H": 8, "W": 24}, {"norm": "none", "patch_size": 8}),
        Sample("patch 4", {"B": 1, "C": 32, "H": 12, "W": 20}, {"norm": "tanh", "patch_size": 4}),
        Sample("patch 16", {"B": 1, "C": 48, "H": 16, "W": 32}, {"norm": "layernorm", "patch_size": 16}),
        Sample("128 channels", {"B": 1, "C": 128, "H": 8, "W": 16}, {"norm": "tanh", "patch_size": 8}),
        Sample("odd channels", {"B": 1, "C": 7, "H": 8, "W": 16}, {"norm": "layernorm", "patch_size": 8}),
        Sample("empty", {"B": 0, "C": 60, "H": 8, "W": 8}, {"norm": "tanh", "patch_size": 8}),
    ],
    rules=[known_norm, patches()],
    # 4 C x C products per token, and q k^T and A v
    macs=lambda s: s["B"] * s["H"] * s["W"] * 6 * s["C"] ** 2,
    backward=_backward,
)
def inner_patch_attention(
    x: Map,
    weights: AttentionWeights,
    norm: str,
    patch_size: int,
) -> Tensor:
    """x + W_o (softmax(t qn kn^T) v) + b_o inside each P x P patch; q, k, v = W norm(x) + b.

    The attention is between channels: q, k, v are [C, P*P] per patch, qn and kn are q and k divided by their length
    over the patch's P*P pixels (at least 1e-12), and the softmax runs over the C channels of k.

    x [B, C, H, W], H and W multiples of patch_size; norm "tanh", "layernorm" (no affine part, eps 1e-5) or "none"
    -> [B, C, H, W], channels-last.

    DITN (ACM MM 2023), inner-patch self-attention; the channel attention is Restormer's (arXiv 2111.09881) per patch.
    """
    tokens = to_patches(x, patch_size).flatten(1, 2)  # [N, T, C]
    qkv = pointwise(normalize(tokens, norm), weights.qkv_weight, weights.qkv_bias)  # [N, T, 3C]
    q, k, v = qkv.transpose(1, 2).chunk(3, dim=1)  # [N, C, T]
    cosines = F.normalize(q, dim=-1, eps=_NORMALIZE_EPS) @ F.normalize(k, dim=-1, eps=_NORMALIZE_EPS).transpose(1, 2)
    attended = torch.softmax(weights.temperature * cosines, dim=-1) @ v  # [N, C, T]
    y = pointwise(attended.transpose(1, 2), weights.out_weight, weights.out_bias)
    return x + from_patches(y.unflatten(1, (patch_size, patch_size)), x, patch_size)
