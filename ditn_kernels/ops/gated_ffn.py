# SPDX-License-Identifier: Apache-2.0
"""gated_ffn: the second half of an ITL (inside patches) and of a SAL (on the whole map)."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ditn_kernels._op import Sample, define
from ditn_kernels._records import Map
from ditn_kernels.ops._parts import (
    depthwise,
    depthwise_backward,
    from_patches,
    normalize,
    normalize_backward,
    pointwise,
    pointwise_backward,
    to_patches,
)
from ditn_kernels.ops._rules import hidden_channels, known_norm, patches


class FfnWeights(NamedTuple):
    """Input-major: a product is u @ weight. E are the hidden channels."""

    in_weight: Annotated[Tensor, "C 2E"]
    in_bias: Annotated[Tensor, "2E"]
    dw_weight: Annotated[Tensor, "3 3 2E"]
    dw_bias: Annotated[Tensor, "2E"]
    out_weight: Annotated[Tensor, "E C"]
    out_bias: Annotated[Tensor, "C"]


def _backward(
    grad: Tensor,
    x: Map,
    weights: FfnWeights,
    norm: str,
    patch_size: int,
) -> tuple[Tensor, FfnWeights]:
    tokens = to_patches(x, patch_size)
    u = normalize(tokens, norm)
    hidden = pointwise(u, weights.in_weight, weights.in_bias)
    a, b = depthwise(hidden, weights.dw_weight, weights.dw_bias).chunk(2, dim=-1)
    activated = F.gelu(a)

    grad_tokens = to_patches(grad, patch_size)
    dgated, dout_weight, dout_bias = pointwise_backward(grad_tokens, activated * b, weights.out_weight)
    da = torch.ops.aten.gelu_backward(dgated * b, a)
    dmixed = torch.cat((da, dgated * activated), dim=-1)
    dhidden, ddw_weight, ddw_bias = depthwise_backward(dmixed, hidden, weights.dw_weight)
    du, din_weight, din_bias = pointwise_backward(dhidden, u, weights.in_weight)
    dx = grad + from_patches(normalize_backward(du, tokens, u, norm), x, patch_size)
    return dx, FfnWeights(din_weight, din_bias, ddw_weight, ddw_bias, dout_weight, dout_bias)


@define(
    samples=[
        Sample("patch", {"B": 2, "C": 60, "E": 120, "H": 16, "W": 24}, {"norm": "tanh", "patch_size": 8}),
        Sample("map", {"B": 2, "C": 60, "E": 120, "H": 13, "W": 21}, {"norm": "tanh", "patch_size": 0}),
        Sample("layernorm", {"B": 1, "C": 60, "E": 120, "H": 16, "W": 8}, {"norm": "layernorm", "patch_size": 8}),
        Sample("none", {"B": 1, "C": 60, "E": 120, "H": 7, "W": 9}, {"norm": "none", "patch_size": 0}),
        Sample("patch 4", {"B": 1, "C": 32, "E": 64, "H": 12, "W": 20}, {"norm": "tanh", "patch_size": 4}),
        Sample("patch 16", {"B": 1, "C": 48, "E": 96, "H": 16, "W": 32}, {"norm": "layernorm", "patch_size": 16}),
        Sample("128 channels", {"B": 1, "C": 128, "E": 256, "H": 9, "W": 11}, {"norm": "tanh", "patch_size": 0}),
        Sample("large patches", {"B": 1, "C": 100, "E": 20, "H": 16, "W": 32}, {"norm": "none", "patch_size": 16}),
        Sample("odd channels", {"B": 1, "C": 7, "E": 19, "H": 1, "W": 5}, {"norm": "layernorm", "patch_size": 0}),
        Sample("empty", {"B": 0, "C": 60, "E": 120, "H": 8, "W": 8}, {"norm": "tanh", "patch_size": 8}),
    ],
    rules=[known_norm, hidden_channels, patches(or_map=True)],
    macs=lambda s: s["B"] * s["H"] * s["W"] * s["E"] * (3 * s["C"] + 18),
    backward=_backward,
)
def gated_ffn(
    x: Map,
    weights: FfnWeights,
    norm: str,
    patch_size: int,
) -> Tensor:
    """x + W_out (gelu(d[:E]) * d[E:]) + b_out, where d = dw3x3(W_in norm(x) + b_in) + b_dw; gelu by erf.

    The depthwise 3x3 pads with zeros at the border of every patch_size x patch_size patch, or of the map if
    patch_size is 0. The padding comes after b_in: outside there is 0, not b_in.

    x [B, C, H, W]; norm "tanh", "layernorm" (no affine part, eps 1e-5) or "none" -> [B, C, H, W], channels-last.

    DITN (ACM MM 2023); the gated depthwise feed-forward network is Restormer's (arXiv 2111.09881).
    """
    w = weights
    u = normalize(to_patches(x, patch_size), norm)  # [N, h, w, C]
    a, b = depthwise(pointwise(u, w.in_weight, w.in_bias), w.dw_weight, w.dw_bias).chunk(2, dim=-1)  # [N, h, w, E]
    return x + from_patches(pointwise(F.gelu(a) * b, w.out_weight, w.out_bias), x, patch_size)
