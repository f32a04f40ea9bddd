# SPDX-License-Identifier: Apache-2.0
"""The layers. They hold parameters under the published names, fold them (`fold`) and call operators; the arithmetic
is in `ditn_kernels`.

`fold()` gives a layer's weights as its operators take them, which the model computes once; a UFONE alone folds for
itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ditn.model import folding
from ditn.model.config import DITNConfig
from ditn_kernels import Op, image_head, inner_patch_stage, spatial_stage

Operands = tuple[Tensor, ...]


class InnerPatchAttention(nn.Module):
    """Parameters of `inner_patch_attention`. `temperature` is [1, 1, 1]: one head."""

    def __init__(self, config: DITNConfig) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(1, 1, 1))
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.project_out = nn.Conv2d(config.dim, config.dim, 1, bias=config.bias)

    def fold(self, norm: nn.Module | None) -> Operands:
        return *folding.pointwise(self.qkv, norm), self.temperature.flatten(), *folding.pointwise(self.project_out)


class FeedForward(nn.Module):
    """Parameters of `gated_ffn`."""

    def __init__(self, config: DITNConfig) -> None:
        super().__init__()
        both = 2 * config.hidden
        self.project_in = nn.Conv2d(config.dim, both, 1, bias=config.bias)
        self.dwconv = nn.Conv2d(both, both, 3, padding=1, groups=both, bias=config.bias)
        self.project_out = nn.Conv2d(config.hidden, config.dim, 1, bias=config.bias)

    def fold(self, norm: nn.Module | None) -> Operands:
        first = folding.pointwise(self.project_in, norm)
        return *first, *folding.depthwise(self.dwconv), *folding.pointwise(self.project_out)


class DilatedGate(nn.Module):
    """Parameters of `dilated_gate`. `scale` starts at 0: a new SAL passes its input on."""

    def __init__(self, config: DITNConfig) -> None:
        super().__init__()
        dim = config.dim
        self.scale = nn.Parameter(torch.zeros(1, dim, 1, 1))
        self.DConvs = nn.Sequential(
            nn.Conv2d(dim, dim, 5, padding=2, groups=dim),
            nn.Conv2d(dim, dim, 7, padding=9, dilation=3, groups=dim),
            nn.Conv2d(dim, dim, 1),
        )
        self.proj_first = nn.Sequential(nn.Conv2d(dim, 2 * dim, 1))
        self.proj_last = nn.Sequential(nn.Conv2d(dim, dim, 1))

    def fold(self, norm: nn.Module | None) -> Operands:
        near, far, mix = map(conv2d, self.DConvs)
        return (
            *folding.pointwise(conv2d(self.proj_first[0]), norm),
            *folding.depthwise(near),
            *folding.depthwise(far),
            *folding.pointwise(mix),
            *folding.pointwise(conv2d(self.proj_last[0]), scale=self.scale),
        )


class _Layer(nn.Module):
    """The two norms of a layer: `norm1`, `norm2` are LayerNorms; or, behind a tanh, `conv1`, `conv2` are 1x1."""

    def __init__(self, config: DITNConfig) -> None:
        super().__init__()
        self._norms = ("conv1", "conv2") if config.norm == "tanh" else ("norm1", "norm2")
        for name in self._norms:
            self.add_module(name, _norm(config))

    def norms(self) -> list[nn.Module]:
        return [self.get_submodule(name) for name in self._norms]


def _norm(config: DITNConfig) -> nn.Module:
    return nn.Conv2d(config.dim, config.dim, 1) if config.norm == "tanh" else nn.LayerNorm(config.dim)


class ITL(_Layer):
    """Inner-patch transformer layer: x += attn(norm1(x)); x += ffn(norm2(x)), inside each patch."""

    def __init__(self, config: DITNConfig) -> None:
        super().__init__(config)
        self.attn = InnerPatchAttention(config)
        self.ffn = FeedForward(config)

    def fold(self) -> Operands:
        norm1, norm2 = self.norms()
        return *self.attn.fold(norm1), *self.ffn.fold(norm2)


class SAL(_Layer):
    """Spatial-aware layer: x += SDA(norm1(x)); x += ffn(norm2(x)), on the whole map."""

    def __init__(self, config: DITNConfig) -> None:
        super().__init__(config)
        self.SDA = DilatedGate(config)
        self.ffn = FeedForward(config)

    def fold(self) -> Operands:
        norm1, norm2 = self.norms()
        return *self.SDA.fold(norm1), *self.ffn.fold(norm2)


class UFONEOperands(NamedTuple):
    """Each weight of the ITLs, and of the SALs, stacked over the layers; the convolution's weight and bias, if any."""

    itls: Operands
    sals: Operands
    conv: Operands


class UFONE(nn.Module):
    """One unfolding: all ITLs on patches, then all SALs on the whole map. [B, C, H, W] -> the same shape."""

    def __init__(self, config: DITNConfig, *, fused: bool) -> None:
        super().__init__()
        self.config, self.fused = config, fused
        self.ITLs = nn.ModuleList(ITL(config) for _ in range(config.itls))
        self.SALs = nn.ModuleList(SAL(config) for _ in range(config.sals))
        self.conv = nn.Conv2d(config.dim, config.dim, 3, padding=1) if config.ufone_conv else None

    def fold(self) -> UFONEOperands:
        return UFONEOperands(
            itls=_stack([cast(ITL, itl).fold() for itl in self.ITLs]),
            sals=_stack([cast(SAL, sal).fold() for sal in self.SALs]),
            conv=folding.conv3x3(self.conv) if self.conv is not None else (),
        )

    def steps(self, operands: UFONEOperands) -> Iterator[Callable[[Tensor], Tensor]]:
        """The operators one after the other. Whoever calls them one by one can let go of each one's input."""
        itls, sals, conv = operands
        config = self.config
        if itls:
            yield lambda x: implementation(inner_patch_stage, self.fused)(x, *itls, config.norm, config.patch_size)
        if sals:
            yield lambda x: implementation(spatial_stage, self.fused)(x, *sals, config.norm)
        if conv:
            yield lambda x: implementation(image_head, self.fused)(x, *conv)

    def forward(self, x: Tensor, operands: UFONEOperands | None = None) -> Tensor:
        for step in self.steps(operands or self.fold()):
            x = step(x)
        return x


def implementation(op: Op, fused: bool) -> Callable[..., Tensor]:
    """The operator, which chooses a backend; or its plain PyTorch definition, which autograd sees through."""
    return op if fused else op.reference


def conv2d(module: nn.Module) -> nn.Conv2d:
    """A member of a Sequential, whose type is lost there."""
    return cast(nn.Conv2d, module)


def _stack(layers: Sequence[Operands]) -> Operands:
    return tuple(torch.stack(weights) for weights in zip(*layers, strict=True))
