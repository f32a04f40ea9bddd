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
from types import MethodType
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

Linear = nn.Linear | nn.Conv2d
# What layers compute that are their weight and bias alone; classes made by a parametrization inherit it.
_FORWARDS = (nn.Linear.forward, nn.Conv2d.forward, nn.LayerNorm.forward)
# Hooks that make a layer's weight before each call, an attribute then and no parameter.
_MAKERS = (BasePruningMethod, SpectralNorm, WeightNorm)


class StrangeLayerError(TypeError):
    """A layer that computes something else than its weight and bias say, which folding would lose."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__(
            f"this {type(layer).__name__} computes something else than nn.Linear, nn.Conv2d or nn.LayerNorm of its "
            "weight and bias, which would be lost, since inner layers are not called; merge it into the weight (LoRA), "
            "or make it a parametrization (torch.nn.utils.parametrize)"
        )
        self.layer = layer


def pointwise(
    layers: Sequence[Linear], before: Sequence[nn.Module] | None = None, scales: Sequence[Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Weights [L, in, out] and biases [L, out] of `scale * layer(before(u))` for L linear or 1x1 layers.

    `before` are 1x1 convolutions, LayerNorms (of which only weight and bias count) or nothing.
    """
    weight, bias = _matrices(layers), _biases(layers)
    kept = weight.dtype
    dtype = torch.promote_types(kept, torch.float32)
    weight, bias = weight.to(dtype), bias.to(dtype)
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
    return ConvWeights(_tensor(layer, "weight").permute(2, 3, 1, 0), _biases([layer])[0])


def _matrices(layers: Sequence[nn.Module]) -> Tensor:
    """[L, out, in]"""
    return _stacked(layers, "weight").flatten(2)


def _biases(layers: Sequence[nn.Module]) -> Tensor:
    """[L, out]; zeros where there are none."""
    if layers[0].bias is not None:
        return _stacked(layers, "bias")
    weight = _tensor(layers[0], "weight")
    return weight.new_zeros(len(layers), len(weight))


def _stacked(layers: Sequence[nn.Module], name: str) -> Tensor:
    return torch.stack([_tensor(layer, name) for layer in layers])


def _tensor(layer: nn.Module, name: str) -> Tensor:
    for hook in layer._forward_pre_hooks.values():
        if isinstance(hook, _MAKERS) and name in (getattr(hook, "name", None), getattr(hook, "_tensor_name", None)):
            hook(layer, ())
    tensor, forward = getattr(layer, name), layer.forward
    if not (isinstance(forward, MethodType) and forward.__func__ in _FORWARDS and isinstance(tensor, Tensor)):
        raise StrangeLayerError(layer)
    return tensor
