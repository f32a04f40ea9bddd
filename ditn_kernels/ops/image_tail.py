# SPDX-License-Identifier: Apache-2.0
"""image_tail: from the residual stream to the enlarged image."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ditn_kernels._op import Sample, define
from ditn_kernels.ops._parts import conv3x3, conv3x3_backward


def _backward(
    grad: Tensor,
    x: Tensor,
    skip: Tensor,
    body_weight: Tensor,
    body_bias: Tensor,
    up_weight: Tensor,
    up_bias: Tensor,
    upscale: int,
) -> tuple[Tensor, ...]:
    deep = conv3x3(x, body_weight, body_bias) + skip
    ddeep, dup_weight, dup_bias = conv3x3_backward(F.pixel_unshuffle(grad, upscale), deep, up_weight)
    dx, dbody_weight, dbody_bias = conv3x3_backward(ddeep, x, body_weight)
    return dx, ddeep, dbody_weight, dbody_bias, dup_weight, dup_bias


@define(
    axes={
        "x": "B C H W",
        "skip": "B C H W",
        "body_weight": "3 3 C C",
        "body_bias": "C",
        "up_weight": "3 3 C D",
        "up_bias": "D",
    },
    output_shape=lambda sizes, args: (
        sizes["B"],
        sizes["D"] // args["upscale"] ** 2,
        sizes["H"] * args["upscale"],
        sizes["W"] * args["upscale"],
    ),
    samples=[
        Sample("x4", {"B": 2, "C": 60, "D": 48, "H": 16, "W": 8}, {"upscale": 4}),
        Sample("x3", {"B": 1, "C": 60, "D": 27, "H": 9, "W": 7}, {"upscale": 3}),
        Sample("x2", {"B": 1, "C": 32, "D": 12, "H": 5, "W": 11}, {"upscale": 2}),
        Sample("x1 gray", {"B": 1, "C": 20, "D": 1, "H": 5, "W": 1}, {"upscale": 1}),
        Sample("empty", {"B": 0, "C": 60, "D": 48, "H": 8, "W": 8}, {"upscale": 4}),
    ],
    macs=lambda s: 9 * s["B"] * s["H"] * s["W"] * s["C"] * (s["C"] + s["D"]),
    backward=_backward,
)
def image_tail(
    x: Tensor,
    skip: Tensor,
    body_weight: Tensor,
    body_bias: Tensor,
    up_weight: Tensor,
    up_bias: Tensor,
    upscale: int,
) -> Tensor:
    """pixel_shuffle(conv3x3(conv3x3(x) + skip)); both convolutions pad with zeros.

    x and skip [B, C, H, W], body_weight [3, 3, C, C], body_bias [C], up_weight [3, 3, C, D], up_bias [D] with
    D = out_channels * upscale**2 -> [B, D / upscale**2, H * upscale, W * upscale], channels-last.
    (Published code: conv_after_body, upsample; pixel shuffle: arXiv 1609.05158.)
    """
    deep = conv3x3(x, body_weight, body_bias) + skip
    return F.pixel_shuffle(conv3x3(deep, up_weight, up_bias), upscale)
