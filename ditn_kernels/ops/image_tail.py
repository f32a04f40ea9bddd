# SPDX-License-Identifier: Apache-2.0
"""image_tail: from the residual stream to the enlarged image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from ditn_kernels._op import Sample, define
from ditn_kernels._records import Map
from ditn_kernels.ops._parts import conv3x3, conv3x3_backward


class TailWeights(NamedTuple):
    """D = out_channels * upscale**2."""

    body_weight: Annotated[Tensor, "3 3 C C"]
    body_bias: Annotated[Tensor, "C"]
    up_weight: Annotated[Tensor, "3 3 C D"]
    up_bias: Annotated[Tensor, "D"]


def _backward(
    grad: Tensor,
    x: Map,
    skip: Map,
    weights: TailWeights,
    upscale: int,
) -> tuple[Tensor, Tensor, TailWeights]:
    deep = conv3x3(x, weights.body_weight, weights.body_bias) + skip
    ddeep, dup_weight, dup_bias = conv3x3_backward(F.pixel_unshuffle(grad, upscale), deep, weights.up_weight)
    dx, dbody_weight, dbody_bias = conv3x3_backward(ddeep, x, weights.body_weight)
    return dx, ddeep, TailWeights(dbody_weight, dbody_bias, dup_weight, dup_bias)


def _whole_pixels(sizes: Mapping[str, int], args: Mapping[str, Any]) -> str | None:
    upscale, outputs = args["upscale"], sizes["D"]
    if upscale < 1:
        return f"upscale is {upscale}, must be 1 or more"
    if not outputs or outputs % upscale**2:
        return f"D is {outputs}, must be a positive multiple of upscale**2 = {upscale**2}"
    return None


@define(
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
        Sample("x6", {"B": 1, "C": 60, "D": 108, "H": 5, "W": 7}, {"upscale": 6}),
        Sample("x1 gray", {"B": 1, "C": 20, "D": 1, "H": 5, "W": 1}, {"upscale": 1}),
        Sample("empty", {"B": 0, "C": 60, "D": 48, "H": 8, "W": 8}, {"upscale": 4}),
    ],
    rules=[_whole_pixels],
    macs=lambda s: 9 * s["B"] * s["H"] * s["W"] * s["C"] * (s["C"] + s["D"]),
    backward=_backward,
)
def image_tail(
    x: Map,
    skip: Map,
    weights: TailWeights,
    upscale: int,
) -> Tensor:
    """pixel_shuffle(conv3x3(conv3x3(x) + skip)); both convolutions pad with zeros.

    x and skip [B, C, H, W] -> [B, D / upscale**2, H * upscale, W * upscale], channels-last.
    (Published code: conv_after_body, upsample; pixel shuffle: arXiv 1609.05158.)
    """
    deep = conv3x3(x, weights.body_weight, weights.body_bias) + skip
    return F.pixel_shuffle(conv3x3(deep, weights.up_weight, weights.up_bias), upscale)
