# SPDX-License-Identifier: Apache-2.0
"""The operators of the DITN super-resolution transformer, each run by the fastest backend that can.

An operator is called like a function, `gated_ffn(x, ..., backend=None)`; its plain PyTorch definition is
`gated_ffn.reference`. `explain(op, *args)` says which backend would run and why not the others; `with
use_backend("torch"):` or the environment variable DITN_BACKEND forces one. Kernels for GPUs are proved before they
serve, or ahead of time by `prove`. The models are in `ditn`.
"""

from __future__ import annotations

from ditn_kernels._dispatch import BackendError, Explanation, conditions, explain, use_backend
from ditn_kernels._info import hint, info
from ditn_kernels._library import register
from ditn_kernels._lowering import lower_to_native, native_libraries
from ditn_kernels._memory import is_out_of_memory
from ditn_kernels._op import Op
from ditn_kernels._prepared import Prepared, is_plain
from ditn_kernels._proof import gpu_lock
from ditn_kernels._proving import Proof, prove
from ditn_kernels._records import layers, map_tensors
from ditn_kernels._transforms import is_transforming
from ditn_kernels.backends.triton._compiling import Compilation, compilations
from ditn_kernels.ops import (
    REGISTRY,
    AttentionWeights,
    FfnWeights,
    GateWeights,
    InnerPatchStageWeights,
    SpatialStageWeights,
    TailWeights,
    dilated_gate,
    gated_ffn,
    image_head,
    image_tail,
    inner_patch_attention,
    inner_patch_stage,
    layer_norm2d,
    spatial_stage,
    tanh_affine,
)

__all__ = [
    "REGISTRY",
    "AttentionWeights",
    "BackendError",
    "Compilation",
    "Explanation",
    "FfnWeights",
    "GateWeights",
    "InnerPatchStageWeights",
    "Op",
    "Prepared",
    "Proof",
    "SpatialStageWeights",
    "TailWeights",
    "compilations",
    "conditions",
    "dilated_gate",
    "explain",
    "gated_ffn",
    "gpu_lock",
    "hint",
    "image_head",
    "image_tail",
    "info",
    "inner_patch_attention",
    "inner_patch_stage",
    "is_out_of_memory",
    "is_plain",
    "is_transforming",
    "layer_norm2d",
    "layers",
    "lower_to_native",
    "map_tensors",
    "native_libraries",
    "prove",
    "spatial_stage",
    "tanh_affine",
    "use_backend",
]

for _op in REGISTRY.values():
    register(_op)
