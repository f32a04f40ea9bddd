# SPDX-License-Identifier: Apache-2.0
"""dilated_gate: the first half of a SAL."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from ditn_kernels._op import Sample, define
from ditn_kernels._records import Map
from ditn_kernels.ops._parts import (
    depthwise,
    depthwise_backward,
    normalize,
    normalize_backward,
    pointwise,
    pointwise_backward,
)
from ditn_kernels.ops._rules import known_norm

_DILATION = 3


class GateWeights(NamedTuple):
    """Input-major: a product is u @ weight."""

    in_weight: Annotated[Tensor, "C 2C"]
    in_bias: Annotated[Tensor, "2C"]
    dw5_weight: Annotated[Tensor, "5 5 C"]
    dw5_bias: Annotated[Tensor, "C"]
    dw7_weight: Annotated[Tensor, "7 7 C"]
    dw7_bias: Annotated[Tensor, "C"]
    mix_weight: Annotated[Tensor, "C C"]
    mix_bias: Annotated[Tensor, "C"]
    out_weight: Annotated[Tensor, "C C"]
    out_bias: Annotated[Tensor, "C"]


def _backward(
    grad: Tensor,
    x: Map,
    weights: GateWeights,
    norm: str,
) -> tuple[Tensor, GateWeights]:
    tokens, grad_tokens = x.permute(0, 2, 3, 1), grad.permute(0, 2, 3, 1)
    u = normalize(tokens, norm)
    a, g = pointwise(u, weights.in_weight, weights.in_bias).chunk(2, dim=-1)
    near = depthwise(a, weights.dw5_weight, weights.dw5_bias)
    far = depthwise(near, weights.dw7_weight, weights.dw7_bias, _DILATION)
    mixed = pointwise(far, weights.mix_weight, weights.mix_bias)

    dgated, dout_weight, dout_bias = pointwise_backward(grad_tokens, g * mixed, weights.out_weight)
    dfar, dmix_weight, dmix_bias = pointwise_backward(dgated * g, far, weights.mix_weight)
    dnear, ddw7_weight, ddw7_bias = depthwise_backward(dfar, near, weights.dw7_weight, _DILATION)
    da, ddw5_weight, ddw5_bias = depthwise_backward(dnear, a, weights.dw5_weight)
    du, din_weight, din_bias = pointwise_backward(torch.cat((da, dgated * mixed), dim=-1), u, weights.in_weight)
    dx = (grad_tokens + normalize_backward(du, tokens, u, norm)).permute(0, 3, 1, 2)
    dweights = GateWeights(
        din_weight,
        din_bias,
        ddw5_weight,
        ddw5_bias,
        ddw7_weight,
        ddw7_bias,
        dmix_weight,
        dmix_bias,
        dout_weight,
        dout_bias,
    )
    return dx, dweights


@define(
    samples=[
        Sample("tanh", {"B": 2, "C": 60, "H": 16, "W": 24}, {"norm": "tanh"}),
        Sample("layernorm", {"B": 1, "C": 60, "H": 13, "W": 29}, {"norm": "layernorm"}),
        Sample("none", {"B": 1, "C": 60, "H": 25, "W": 9}, {"norm": "none"}),
        Sample("128 channels", {"B": 1, "C": 128, "H": 9, "W": 11}, {"norm": "tanh"}),
        Sample("odd channels", {"B": 1, "C": 7, "H": 1, "W": 5}, {"norm": "layernorm"}),
        Sample("empty", {"B": 0, "C": 60, "H": 8, "W": 8}, {"norm": "tanh"}),
    ],
    rules=[known_norm],
    macs=lambda s: s["B"] * s["H"] * s["W"] * s["C"] * (4 * s["C"] + 25 + 49),
    backward=_backward,
)
def dilated_gate(
    x: Map,
    weights: GateWeights,
    norm: str,
) -> Tensor:
    """x + W_out (g * (W_mix far + b_mix)) + b_out, where a, g = W_in norm(x) + b_in and
    far = dw7x7(dw5x5(a)), the 7x7 with dilation 3; every depthwise convolution pads with zeros and has a bias.

    x [B, C, H, W]; norm "tanh", "layernorm" (no affine part, eps 1e-5) or "none" -> [B, C, H, W], channels-last.

    DITN (ACM MM 2023), spatial-aware layer; the large-kernel decomposition is VAN's (arXiv 2202.09741).
    """
    w = weights
    u = normalize(x.permute(0, 2, 3, 1), norm)  # [B, H, W, C]
    a, g = pointwise(u, w.in_weight, w.in_bias).chunk(2, dim=-1)
    far = depthwise(depthwise(a, w.dw5_weight, w.dw5_bias), w.dw7_weight, w.dw7_bias, _DILATION)
    y = pointwise(g * pointwise(far, w.mix_weight, w.mix_bias), w.out_weight, w.out_bias)
    return x + y.permute(0, 3, 1, 2)
