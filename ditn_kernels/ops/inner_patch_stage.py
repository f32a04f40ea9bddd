# SPDX-License-Identifier: Apache-2.0
"""inner_patch_stage: all ITLs of a UFONE as one operator, for inference. Nothing in it leaves its patch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from ditn_kernels._op import Sample, define
from ditn_kernels.ops.gated_ffn import gated_ffn
from ditn_kernels.ops.inner_patch_attention import inner_patch_attention


def _chain(attention: Callable[..., Tensor], ffn: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(x: Tensor, *args: Tensor | str | int) -> Tensor:
        *weights, norm, patch_size = args
        for layer in zip(*weights, strict=True):
            x = attention(x, *layer[:5], norm, patch_size)
            x = ffn(x, *layer[5:], norm, patch_size)
        return x

    return run


def _decomposition(*args: Tensor | str | int, backend: str | None = None) -> Tensor:
    return _chain(partial(inner_patch_attention, backend=backend), partial(gated_ffn, backend=backend))(*args)


@define(
    axes={
        "x": "B C H W",
        "qkv_weight": "L C 3C",
        "qkv_bias": "L 3C",
        "temperature": "L 1",
        "attn_out_weight": "L C C",
        "attn_out_bias": "L C",
        "in_weight": "L C 2E",
        "in_bias": "L 2E",
        "dw_weight": "L 3 3 2E",
        "dw_bias": "L 2E",
        "ffn_out_weight": "L E C",
        "ffn_out_bias": "L C",
    },
    samples=[
        Sample("tanh", {"B": 2, "L": 4, "C": 60, "E": 120, "H": 16, "W": 24}, {"norm": "tanh", "patch_size": 8}),
        Sample(
            "layernorm", {"B": 1, "L": 2, "C": 60, "E": 120, "H": 8, "W": 16}, {"norm": "layernorm", "patch_size": 8}
        ),
        Sample("patch 4", {"B": 1, "L": 1, "C": 32, "E": 64, "H": 12, "W": 20}, {"norm": "tanh", "patch_size": 4}),
        Sample("empty", {"B": 0, "L": 2, "C": 60, "E": 120, "H": 8, "W": 8}, {"norm": "tanh", "patch_size": 8}),
    ],
    macs=lambda s: s["L"] * s["B"] * s["H"] * s["W"] * (6 * s["C"] ** 2 + s["E"] * (3 * s["C"] + 18)),
    decomposition=_decomposition,
)
def inner_patch_stage(
    x: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    temperature: Tensor,
    attn_out_weight: Tensor,
    attn_out_bias: Tensor,
    in_weight: Tensor,
    in_bias: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor,
    ffn_out_weight: Tensor,
    ffn_out_bias: Tensor,
    norm: str,
    patch_size: int,
) -> Tensor:
    """L times inner_patch_attention, then gated_ffn in patches. Each weight is [L, ...], the L layers' weights stacked
    as the two operators take them. -> [B, C, H, W], channels-last. Where a gradient is wanted, these operators run one
    by one.
    """
    return _chain(inner_patch_attention.reference, gated_ffn.reference)(
        x,
        qkv_weight,
        qkv_bias,
        temperature,
        attn_out_weight,
        attn_out_bias,
        in_weight,
        in_bias,
        dw_weight,
        dw_bias,
        ffn_out_weight,
        ffn_out_bias,
        norm,
        patch_size,
    )
