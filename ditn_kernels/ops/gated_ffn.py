# SPDX-License-Identifier: Apache-2.0
"""gated_ffn: the second half of an ITL (inside patches) and of a SAL (on the whole map)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ditn_kernels._op import Sample, define
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


def _backward(
    grad: Tensor,
    x: Tensor,
    in_weight: Tensor,
    in_bias: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    norm: str,
    patch_size: int,
) -> tuple[Tensor, ...]:
    tokens = to_patches(x, patch_size)
    u = normalize(tokens, norm)
    hidden = pointwise(u, in_weight, in_bias)
    a, b = depthwise(hidden, dw_weight, dw_bias).chunk(2, dim=-1)
    activated = F.gelu(a)

    grad_tokens = to_patches(grad, patch_size)
    dgated, dout_weight, dout_bias = pointwise_backward(grad_tokens, activated * b, out_weight)
    da = torch.ops.aten.gelu_backward(dgated * b, a)
    dmixed = torch.cat((da, dgated * activated), dim=-1)
    dhidden, ddw_weight, ddw_bias = depthwise_backward(dmixed, hidden, dw_weight)
    du, din_weight, din_bias = pointwise_backward(dhidden, u, in_weight)
    dx = grad + from_patches(normalize_backward(du, tokens, u, norm), x, patch_size)
    return dx, din_weight, din_bias, ddw_weight, ddw_bias, dout_weight, dout_bias


@define(
    axes={
        "x": "B C H W",
        "in_weight": "C 2E",
        "in_bias": "2E",
        "dw_weight": "3 3 2E",
        "dw_bias": "2E",
        "out_weight": "E C",
        "out_bias": "C",
    },
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
    macs=lambda s: s["B"] * s["H"] * s["W"] * s["E"] * (3 * s["C"] + 18),
    backward=_backward,
)
def gated_ffn(
    x: Tensor,
    in_weight: Tensor,
    in_bias: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    norm: str,
    patch_size: int,
) -> Tensor:
    """x + W_out (gelu(d[:E]) * d[E:]) + b_out, where d = dw3x3(W_in norm(x) + b_in) + b_dw; gelu by erf.

    The depthwise 3x3 pads with zeros at the border of every patch_size x patch_size patch, or of the map if
    patch_size is 0. The padding comes after b_in: outside there is 0, not b_in.

    x [B, C, H, W]; in_weight [C, 2E], dw_weight [3, 3, 2E], out_weight [E, C]; in_bias [2E], dw_bias [2E],
    out_bias [C]; norm "tanh", "layernorm" (no affine part, eps 1e-5) or "none" -> [B, C, H, W], channels-last.

    DITN (ACM MM 2023); the gated depthwise feed-forward network is Restormer's (arXiv 2111.09881).
    """
    u = normalize(to_patches(x, patch_size), norm)  # [N, h, w, C]
    a, b = depthwise(pointwise(u, in_weight, in_bias), dw_weight, dw_bias).chunk(2, dim=-1)  # [N, h, w, E]
    return x + from_patches(pointwise(F.gelu(a) * b, out_weight, out_bias), x, patch_size)
