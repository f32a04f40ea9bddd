# SPDX-License-Identifier: Apache-2.0
"""The layers. They hold parameters under the published names, fold them (`fold`) and call operators; the arithmetic
is in `ditn_kernels`.

`fold` gives the weights of several layers of one kind, stacked, as the operators take them. The model computes them
once; a UFONE alone folds for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ditn.model import folding
from ditn.model.config import DITNConfig
from ditn.model.folding import ConvWeights
from ditn_kernels import (
    AttentionWeights,
    FfnWeights,
    GateWeights,
    InnerPatchStageWeights,
    Op,
    SpatialStageWeights,
    image_head,
    inner_patch_stage,
    spatial_stage,
)

# What stands in front of each of several layers, if anything does.
Norms = Sequence[nn.Module] | None


class InnerPatchAttention(nn.Module):
    """Parameters of `inner_patch_attention`. `temperature` is [1, 1, 1]: one head."""

    def __init__(self, config: DITNConfig) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(1, 1, 1))
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.project_out = nn.Conv2d(config.dim, config.dim, 1, bias=config.bias)

    @staticmethod
    def fold(parts: Sequence[InnerPatchAttention], norms: Norms) -> AttentionWeights:
        qkv = folding.pointwise([part.qkv for part in parts], norms)
        temperature = torch.stack([part.temperature.flatten() for part in parts])
        return AttentionWeights(*qkv, temperature, *folding.pointwise([part.project_out for part in parts]))


class FeedForward(nn.Module):
    """Parameters of `gated_ffn`."""

    def __init__(self, config: DITNConfig) -> None:
        super().__init__()
        both = 2 * config.hidden
        self.project_in = nn.Conv2d(config.dim, both, 1, bias=config.bias)
        self.dwconv = nn.Conv2d(both, both, 3, padding=1, groups=both, bias=config.bias)
        self.project_out = nn.Conv2d(config.hidden, config.dim, 1, bias=config.bias)

    @staticmethod
    def fold(parts: Sequence[FeedForward], norms: Norms) -> FfnWeights:
        return FfnWeights(
            *folding.pointwise([part.project_in for part in parts], norms),
            *folding.depthwise([part.dwconv for part in parts]),
            *folding.pointwise([part.project_out for part in parts]),
        )


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

    @staticmethod
    def fold(parts: Sequence[DilatedGate], norms: Norms) -> GateWeights:
        near, far, mix = zip(*(map(conv2d, part.DConvs) for part in parts), strict=True)
        return GateWeights(
            *folding.pointwise([conv2d(part.proj_first[0]) for part in parts], norms),
            *folding.depthwise(near),
            *folding.depthwise(far),
            *folding.pointwise(mix),
            *folding.pointwise([conv2d(part.proj_last[0]) for part in parts], scales=[part.scale for part in parts]),
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

    @staticmethod
    def fold(layers: Sequence[ITL]) -> InnerPatchStageWeights:
        first, second = zip(*(itl.norms() for itl in layers), strict=True)
        return InnerPatchStageWeights(
            InnerPatchAttention.fold([itl.attn for itl in layers], first),
            FeedForward.fold([itl.ffn for itl in layers], second),
        )


class SAL(_Layer):
    """Spatial-aware layer: x += SDA(norm1(x)); x += ffn(norm2(x)), on the whole map."""

    def __init__(self, config: DITNConfig) -> None:
        super().__init__(config)
        self.SDA = DilatedGate(config)
        self.ffn = FeedForward(config)

    @staticmethod
    def fold(layers: Sequence[SAL]) -> SpatialStageWeights:
        first, second = zip(*(sal.norms() for sal in layers), strict=True)
        return SpatialStageWeights(
            DilatedGate.fold([sal.SDA for sal in layers], first),
            FeedForward.fold([sal.ffn for sal in layers], second),
        )


class UFONEWeights(NamedTuple):
    """The weights of all ITLs, and of all SALs, and of the convolution behind them; None where there are none."""

    itls: InnerPatchStageWeights | None
    sals: SpatialStageWeights | None
    conv: ConvWeights | None


class UFONE(nn.Module):
    """One unfolding: all ITLs on patches, then all SALs on the whole map. [B, C, H, W] -> the same shape."""

    def __init__(self, config: DITNConfig, *, fused: bool) -> None:
        super().__init__()
        self.config, self.fused = config, fused
        self.ITLs = nn.ModuleList(ITL(config) for _ in range(config.itls))
        self.SALs = nn.ModuleList(SAL(config) for _ in range(config.sals))
        self.conv = nn.Conv2d(config.dim, config.dim, 3, padding=1) if config.ufone_conv else None

    def fold(self) -> UFONEWeights:
        return UFONEWeights(
            itls=ITL.fold([cast(ITL, itl) for itl in self.ITLs]) if len(self.ITLs) else None,
            sals=SAL.fold([cast(SAL, sal) for sal in self.SALs]) if len(self.SALs) else None,
            conv=folding.conv3x3(self.conv) if self.conv is not None else None,
        )

    def steps(self, weights: UFONEWeights, bind: Bind) -> Iterator[Step]:
        """The operators one after the other. Whoever calls them one by one can let go of each one's input."""
        itls, sals, conv = weights
        if itls:
            yield bind(inner_patch_stage, itls, self.config.norm, self.config.patch_size)
        if sals:
            yield bind(spatial_stage, sals, self.config.norm)
        if conv:
            yield bind(conv3x3, *conv)

    def forward(self, x: Tensor, weights: UFONEWeights | None = None) -> Tensor:
        for step in self.steps(weights or self.fold(), fused if self.fused else unfused):
            x = step(x)
        return x


# The operator of the head is any 3x3 convolution.
conv3x3 = image_head
# One operator with its weights and options, to be called with maps; and what makes it of them.
Step = Callable[..., Tensor]
Bind = Callable[..., Step]


def fused(op: Op, *arguments: Any) -> Step:
    """The operator, which chooses a backend at every call."""
    return lambda *maps: op(*maps, *arguments)


def unfused(op: Op, *arguments: Any) -> Step:
    """Its plain PyTorch definition, which autograd sees through."""
    return lambda *maps: op.definition(*maps, *arguments)


def conv2d(module: nn.Module) -> nn.Conv2d:
    """A member of a Sequential, whose type is lost there."""
    return cast(nn.Conv2d, module)
