# SPDX-License-Identifier: Apache-2.0
"""image_head: from the image to the residual stream."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from ditn_kernels._op import Sample, define
from ditn_kernels.ops._parts import conv3x3, conv3x3_backward


def _backward(grad: Tensor, image: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    return conv3x3_backward(grad, image, weight)


@define(
    samples=[
        Sample("rgb", {"B": 2, "N": 3, "C": 60, "H": 16, "W": 24}),
        Sample("odd", {"B": 1, "N": 1, "C": 20, "H": 5, "W": 7}),
        Sample("stream", {"B": 1, "N": 60, "C": 60, "H": 9, "W": 8}),
        Sample("empty", {"B": 0, "N": 3, "C": 60, "H": 8, "W": 8}),
    ],
    macs=lambda s: 9 * s["B"] * s["H"] * s["W"] * s["N"] * s["C"],
    backward=_backward,
)
def image_head(
    image: Annotated[Tensor, "B N H W"],
    weight: Annotated[Tensor, "3 3 N C"],
    bias: Annotated[Tensor, "C"],
) -> Tensor:
    """A 3x3 convolution with zero padding. Where the configuration asks for a convolution at the end of each UFONE,
    that is this operator too, from C channels.

    image [B, N, H, W], weight [3, 3, N, C], bias [C] -> [B, C, H, W], channels-last. (Published code: sft.)
    """
    return conv3x3(image, weight, bias)
