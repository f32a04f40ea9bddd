# SPDX-License-Identifier: Apache-2.0
"""spatial_stage: all SALs of a UFONE as one operator, for inference. Each layer sees 12 pixels further."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, NamedTuple

from torch import Tensor

from ditn_kernels._op import Layer, Sample, define, in_turn
from ditn_kernels._records import Map, layers
from ditn_kernels.ops._rules import hidden_channels, known_norm
from ditn_kernels.ops.dilated_gate import GateWeights, dilated_gate
from ditn_kernels.ops.gated_ffn import FfnWeights, gated_ffn


class SpatialStageWeights(NamedTuple):
    """The weights of L layers, stacked."""

    gate: Annotated[GateWeights, "L"]
    ffn: Annotated[FfnWeights, "L"]


def _decomposition(weights: SpatialStageWeights, norm: str) -> Iterator[Layer]:
    for gate, ffn in layers(weights):
        yield Layer(dilated_gate, (gate, norm))
        yield Layer(gated_ffn, (ffn, norm, 0))


@define(
    samples=[
        Sample("tanh", {"B": 2, "L": 4, "C": 60, "E": 120, "H": 16, "W": 24}, {"norm": "tanh"}),
        Sample("layernorm", {"B": 1, "L": 2, "C": 60, "E": 120, "H": 37, "W": 19}, {"norm": "layernorm"}),
        Sample("small", {"B": 1, "L": 1, "C": 32, "E": 64, "H": 3, "W": 40}, {"norm": "tanh"}),
        Sample("empty", {"B": 0, "L": 2, "C": 60, "E": 120, "H": 8, "W": 8}, {"norm": "tanh"}),
    ],
    rules=[known_norm, hidden_channels],
    macs=lambda s: s["L"] * s["B"] * s["H"] * s["W"] * (s["C"] * (4 * s["C"] + 25 + 49) + s["E"] * (3 * s["C"] + 18)),
    decomposition=_decomposition,
)
def spatial_stage(x: Map, weights: SpatialStageWeights, norm: str) -> Tensor:
    """L times dilated_gate, then gated_ffn on the whole map. x [B, C, H, W] -> [B, C, H, W], channels-last.

    Where a gradient is wanted, these operators run one by one.
    """
    return in_turn(x, _decomposition(weights, norm))
