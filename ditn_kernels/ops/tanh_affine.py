# SPDX-License-Identifier: Apache-2.0
"""tanh_affine: DITN-Real's substitute for LayerNorm.

No model of `ditn` calls it: their operators contain the norm. It is there for other networks.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from ditn_kernels._op import Sample, define
from ditn_kernels._records import Map
from ditn_kernels.ops._parts import pointwise, pointwise_backward


def _backward(grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    u = torch.tanh(x).permute(0, 2, 3, 1)
    du, dweight, dbias = pointwise_backward(grad.permute(0, 2, 3, 1), u, weight)
    return (du * (1 - u * u)).permute(0, 3, 1, 2), dweight, dbias


@define(
    output_shape=lambda sizes, args: (sizes["B"], sizes["D"], sizes["H"], sizes["W"]),
    samples=[
        Sample("default", {"B": 2, "C": 60, "D": 60, "H": 16, "W": 24}),
        Sample("odd", {"B": 1, "C": 20, "D": 36, "H": 5, "W": 7}),
        Sample("empty", {"B": 0, "C": 60, "D": 60, "H": 8, "W": 8}),
    ],
    macs=lambda s: s["B"] * s["H"] * s["W"] * s["C"] * s["D"],
    backward=_backward,
)
def tanh_affine(x: Map, weight: Annotated[Tensor, "C D"], bias: Annotated[Tensor, "D"]) -> Tensor:
    """y = W tanh(x) + b at every pixel.

    x [B, C, H, W], weight [C, D] (input-major), bias [D] -> [B, D, H, W], channels-last.
    (DITN's published code: tanh, then conv1 or conv2.)
    """
    return pointwise(torch.tanh(x).permute(0, 2, 3, 1), weight, bias).permute(0, 3, 1, 2)
