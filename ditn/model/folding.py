# SPDX-License-Identifier: Apache-2.0
"""Exact rewrites: affine maps that stand in front of a linear map become part of it.

    W (A u + c) + b             = (W A) u + (W c + b)         a 1x1 convolution before a 1x1 convolution
    W (gamma * u + beta) + b    = (W diag gamma) u + (W beta + b)      LayerNorm's weight and bias
    s * (W u + b)               = (diag s W) u + s * b        a scale behind a 1x1 convolution

A depthwise convolution with zero padding may follow: the folded bias is inside the map in both forms and absent
outside it in both. Weights come as PyTorch stores them, [out, in] or [out, in, 1, 1], and leave as the operators
take them, input-major [in, out].

The products are a few 60 x 60 matrices and differentiable, so training goes through the same operators.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


def pointwise(
    layer: nn.Linear | nn.Conv2d, before: nn.Module | None = None, scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Weight [in, out] and bias [out] of `scale * layer(before(u))` for a linear or 1x1 layer.

    `before` is a 1x1 convolution, a LayerNorm (of which only weight and bias count) or nothing.
    """
    dtype = torch.promote_types(layer.weight.dtype, torch.float32)
    weight = layer.weight.flatten(1).to(dtype)
    bias = weight.new_zeros(weight.shape[0]) if layer.bias is None else layer.bias.to(dtype)
    if isinstance(before, nn.Conv2d):
        bias = bias + weight @ _bias(before).to(dtype)
        weight = weight @ before.weight.flatten(1).to(dtype)
    elif isinstance(before, nn.LayerNorm):
        bias = bias + weight @ before.bias.to(dtype)
        weight = weight * before.weight.to(dtype)
    if scale is not None:
        weight, bias = weight * scale.reshape(-1, 1).to(dtype), bias * scale.flatten().to(dtype)
    return weight.t().to(layer.weight.dtype), bias.to(layer.weight.dtype)


def depthwise(layer: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Weight [k, k, C] and bias [C] of a depthwise convolution."""
    return layer.weight.squeeze(1).permute(1, 2, 0), _bias(layer)


class ConvWeights(NamedTuple):
    """Weight [3, 3, in, out] and bias [out] of a 3x3 convolution."""

    weight: Tensor
    bias: Tensor


def conv3x3(layer: nn.Conv2d) -> ConvWeights:
    return ConvWeights(layer.weight.permute(2, 3, 1, 0), _bias(layer))


def _bias(layer: nn.Conv2d) -> Tensor:
    return layer.weight.new_zeros(layer.weight.shape[0]) if layer.bias is None else layer.bias
