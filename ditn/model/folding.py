# SPDX-License-Identifier: Apache-2.0
"""Exact rewrites: affine maps that stand in front of a linear map become part of it.

    W (A u + c) + b             = (W A) u + (W c + b)         a 1x1 convolution before a 1x1 convolution
    W (gamma * u + beta) + b    = (W diag gamma) u + (W beta + b)      LayerNorm's weight and bias
    s * (W u + b)               = (diag s W) u + s * b        a scale behind a 1x1 convolution

A depthwise convolution with zero padding may follow: the folded bias is inside the map in both forms and absent
outside it in both. Weights come as PyTorch stores them, [out, in] or [out, in, 1, 1], and leave as the operators
take them, input-major [in, out].

Layers of one kind and size are folded together, so that however many there are, it takes the same few products; they
leave stacked, [layers, ...]. The products are differentiable, so training goes through the same operators.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

Linear = nn.Linear | nn.Conv2d


def pointwise(
    layers: Sequence[Linear], before: Sequence[nn.Module] | None = None, scales: Sequence[Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Weights [L, in, out] and biases [L, out] of `scale * layer(before(u))` for L linear or 1x1 layers.

    `before` are 1x1 convolutions, LayerNorms (of which only weight and bias count) or nothing.
    """
    kept = layers[0].weight.dtype
    dtype = torch.promote_types(kept, torch.float32)
    weight, bias = _matrices(layers).to(dtype), _biases(layers).to(dtype)
    if before:
        bias = bias + (weight @ _biases(before).to(dtype).unsqueeze(-1)).squeeze(-1)
        if isinstance(before[0], nn.LayerNorm):
            weight = weight * _stacked(before, "weight").to(dtype).unsqueeze(1)
        else:
            weight = weight @ _matrices(before).to(dtype)
    if scales:
        scale = torch.stack([scale.flatten() for scale in scales]).to(dtype)
        weight, bias = weight * scale.unsqueeze(-1), bias * scale
    return weight.transpose(1, 2).to(kept), bias.to(kept)


def depthwise(layers: Sequence[nn.Conv2d]) -> tuple[Tensor, Tensor]:
    """Weights [L, k, k, C] and biases [L, C] of L depthwise convolutions."""
    return _stacked(layers, "weight").squeeze(2).permute(0, 2, 3, 1), _biases(layers)


class ConvWeights(NamedTuple):
    """Weight [3, 3, in, out] and bias [out] of a 3x3 convolution."""

    weight: Tensor
    bias: Tensor


def conv3x3(layer: nn.Conv2d) -> ConvWeights:
    return ConvWeights(layer.weight.permute(2, 3, 1, 0), _biases([layer])[0])


def _matrices(layers: Sequence[nn.Module]) -> Tensor:
    """[L, out, in]"""
    return _stacked(layers, "weight").flatten(2)


def _biases(layers: Sequence[nn.Module]) -> Tensor:
    """[L, out]; zeros where there are none."""
    weight = cast(Tensor, layers[0].weight)
    return weight.new_zeros(len(layers), len(weight)) if layers[0].bias is None else _stacked(layers, "bias")


def _stacked(layers: Sequence[nn.Module], name: str) -> Tensor:
    return torch.stack([cast(Tensor, getattr(layer, name)) for layer in layers])
