# SPDX-License-Identifier: Apache-2.0
"""inner_patch_stage: all ITLs of a UFONE as one operator, for inference. Nothing in it leaves its patch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, NamedTuple

from torch import Tensor

from ditn_kernels._op import Layer, Sample, define, in_turn
from ditn_kernels._records import Map, layers
from ditn_kernels.ops._rules import hidden_channels, known_norm, patches
from ditn_kernels.ops.gated_ffn import FfnWeights, gated_ffn
from ditn_kernels.ops.inner_patch_attention import AttentionWeights, inner_patch_attention


class InnerPatchStageWeights(NamedTuple):
    """The weights of L layers, stacked."""

    attention: Annotated[AttentionWeights, "L"]
    ffn: Annotated[FfnWeights, "L"]


def _decomposition(weights: InnerPatchStageWeights, norm: str, patch_size: int) -> Iterator[Layer]:
    for attention, ffn in layers(weights):
        yield Layer(inner_patch_attention, (attention, norm, patch_size))
        yield Layer(gated_ffn, (ffn, norm, patch_size))


@define(
    samples=[
        Sample("tanh", {"B": 2, "L": 4, "C": 60, "E": 120, "H": 16, "W": 24}, {"norm": "tanh", "patch_size": 8}),
        Sample(
            "layernorm", {"B": 1, "L": 2, "C": 60, "E": 120, "H": 8, "W": 16}, {"norm": "layernorm", "patch_size": 8}
        ),
        Sample("patch 4", {"B": 1, "L": 1, "C": 32, "E": 64, "H": 12, "W": 20}, {"norm": "tanh", "patch_size": 4}),
        Sample("empty", {"B": 0, "L": 2, "C": 60, "E": 120, "H": 8, "W": 8}, {"norm": "tanh", "patch_size": 8}),
    ],
    rules=[known_norm, hidden_channels, patches()],
    macs=lambda s: s["L"] * s["B"] * s["H"] * s["W"] * (6 * s["C"] ** 2 + s["E"] * (3 * s["C"] + 18)),
    decomposition=_decomposition,
)
def inner_patch_stage(x: Map, weights: InnerPatchStageWeights, norm: str, patch_size: int) -> Tensor:
    """L times inner_patch_attention, then gated_ffn in patches. x [B, C, H, W] -> [B, C, H, W], channels-last.

    Where a gradient is wanted, these operators run one by one.
    """
    return in_turn(x, _decomposition(weights, norm, patch_size))
