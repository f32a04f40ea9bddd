# SPDX-License-Identifier: Apache-2.0
"""layer_norm2d: the norm of DITN and DITN-Tiny.

No model of `ditn` calls it: their operators contain the norm. It is there for other networks.
"""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from torch import Tensor

from ditn_kernels._op import Sample, define
from ditn_kernels._records import Map
from ditn_kernels.ops._parts import LAYER_NORM_EPS, layer_norm_backward


def _backward(grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
    tokens, grad = x.permute(0, 2, 3, 1), grad.permute(0, 2, 3, 1)
    u = F.layer_norm(tokens, (x.shape[1],), eps=eps)
    dx = layer_norm_backward(grad * weight, tokens, u, eps)
    return dx.permute(0, 3, 1, 2), (grad * u).sum((0, 1, 2)), grad.sum((0, 1, 2))


@define(
    samples=[
        Sample("default", {"B": 2, "C": 60, "H": 16, "W": 24}),
        Sample("odd", {"B": 1, "C": 20, "H": 5, "W": 7}),
        Sample("empty", {"B": 0, "C": 60, "H": 8, "W": 8}),
    ],
    macs=lambda s: 4 * s["B"] * s["H"] * s["W"] * s["C"],
    backward=_backward,
)
def layer_norm2d(
    x: Map, weight: Annotated[Tensor, "C"], bias: Annotated[Tensor, "C"], eps: float = LAYER_NORM_EPS
) -> Tensor:
    """LayerNorm over the channels of every pixel: weight * (x - mean) / sqrt(var + eps) + bias, var biased.

    x [B, C, H, W], weight [C], bias [C] -> [B, C, H, W], channels-last. (Ba et al. 2016, arXiv 1607.06450.)
    """
    return F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), weight, bias, eps).permute(0, 3, 1, 2)
