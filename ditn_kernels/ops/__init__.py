# SPDX-License-Identifier: Apache-2.0
"""The operators, in the order in which networks use them. There is no other list of them."""

from __future__ import annotations

from ditn_kernels._op import Op
from ditn_kernels.ops.dilated_gate import GateWeights, dilated_gate
from ditn_kernels.ops.gated_ffn import FfnWeights, gated_ffn
from ditn_kernels.ops.image_head import image_head
from ditn_kernels.ops.image_tail import TailWeights, image_tail
from ditn_kernels.ops.inner_patch_attention import AttentionWeights, inner_patch_attention
from ditn_kernels.ops.inner_patch_stage import InnerPatchStageWeights, inner_patch_stage
from ditn_kernels.ops.layer_norm2d import layer_norm2d
from ditn_kernels.ops.spatial_stage import SpatialStageWeights, spatial_stage
from ditn_kernels.ops.tanh_affine import tanh_affine

REGISTRY: dict[str, Op] = {
    op.name: op
    for op in (
        tanh_affine,
        layer_norm2d,
        image_head,
        inner_patch_attention,
        gated_ffn,
        dilated_gate,
        inner_patch_stage,
        spatial_stage,
        image_tail,
    )
}

__all__ = [
    "REGISTRY",
    "AttentionWeights",
    "FfnWeights",
    "GateWeights",
    "InnerPatchStageWeights",
    "SpatialStageWeights",
    "TailWeights",
    "dilated_gate",
    "gated_ffn",
    "image_head",
    "image_tail",
    "inner_patch_attention",
    "inner_patch_stage",
    "layer_norm2d",
    "spatial_stage",
    "tanh_affine",
]
