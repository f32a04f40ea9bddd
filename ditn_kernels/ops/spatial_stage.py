# SPDX-License-Identifier: Apache-2.0
"""spatial_stage: all SALs of a UFONE as one operator, for inference. Each layer sees 12 pixels further."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from ditn_kernels._op import Sample, define
from ditn_kernels.ops.dilated_gate import dilated_gate
from ditn_kernels.ops.gated_ffn import gated_ffn


def _chain(gate: Callable[..., Tensor], ffn: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(x: Tensor, *args: Tensor | str) -> Tensor:
        *weights, norm = args
        for layer in zip(*weights, strict=True):
            x = gate(x, *layer[:10], norm)
            x = ffn(x, *layer[10:], norm, 0)
        return x

    return run


def _decomposition(*args: Tensor | str | int, backend: str | None = None) -> Tensor:
    return _chain(partial(dilated_gate, backend=backend), partial(gated_ffn, backend=backend))(*args)


@define(
    axes={
        "x": "B C H W",
        "gate_in_weight": "L C 2C",
        "gate_in_bias": "L 2C",
        "dw5_weight": "L 5 5 C",
        "dw5_bias": "L C",
        "dw7_weight": "L 7 7 C",
        "dw7_bias": "L C",
        "mix_weight": "L C C",
        "mix_bias": "L C",
        "gate_out_weight": "L C C",
        "gate_out_bias": "L C",
        "in_weight": "L C 2E",
        "in_bias": "L 2E",
        "dw_weight": "L 3 3 2E",
        "dw_bias": "L 2E",
        "ffn_out_weight": "L E C",
        "ffn_out_bias": "L C",
    },
    samples=[
        Sample("tanh", {"B": 2, "L": 4, "C": 60, "E": 120, "H": 16, "W": 24}, {"norm": "tanh"}),
        Sample("layernorm", {"B": 1, "L": 2, "C": 60, "E": 120, "H": 37, "W": 19}, {"norm": "layernorm"}),
        Sample("small", {"B": 1, "L": 1, "C": 32, "E": 64, "H": 3, "W": 40}, {"norm": "tanh"}),
        Sample("empty", {"B": 0, "L": 2, "C": 60, "E": 120, "H": 8, "W": 8}, {"norm": "tanh"}),
    ],
    macs=lambda s: s["L"] * s["B"] * s["H"] * s["W"] * (s["C"] * (4 * s["C"] + 25 + 49) + s["E"] * (3 * s["C"] + 18)),
    decomposition=_decomposition,
)
def spatial_stage(
    x: Tensor,
    gate_in_weight: Tensor,
    gate_in_bias: Tensor,
    dw5_weight: Tensor,
    dw5_bias: Tensor,
    dw7_weight: Tensor,
    dw7_bias: Tensor,
    mix_weight: Tensor,
    mix_bias: Tensor,
    gate_out_weight: Tensor,
    gate_out_bias: Tensor,
    in_weight: Tensor,
    in_bias: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor,
    ffn_out_weight: Tensor,
    ffn_out_bias: Tensor,
    norm: str,
) -> Tensor:
    """L times dilated_gate, then gated_ffn on the whole map. Each weight is [L, ...], the L layers' weights stacked as
    the two operators take them. -> [B, C, H, W], channels-last. Where a gradient is wanted, these operators run one by
    one.
    """
    return _chain(dilated_gate.reference, gated_ffn.reference)(
        x,
        gate_in_weight,
        gate_in_bias,
        dw5_weight,
        dw5_bias,
        dw7_weight,
        dw7_bias,
        mix_weight,
        mix_bias,
        gate_out_weight,
        gate_out_bias,
        in_weight,
        in_bias,
        dw_weight,
        dw_bias,
        ffn_out_weight,
        ffn_out_bias,
        norm,
    )
