# SPDX-License-Identifier: Apache-2.0
"""The network as a graph for TensorRT with this project's plugins: one node per fused operator, the rest standard.

A node has the operator's name in the domain "ditn", its tensors as inputs and its options as attributes, which are what
`csrc/tensorrt` knows a plugin by. Between head and tail a map is [B, H, W, C], the memory that the kernels read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ditn_kernels
from ditn.model.network import DITN, crop, pad_to_grid
from ditn_kernels import REGISTRY, BackendError, Op, inner_patch_stage, spatial_stage

DOMAIN = "ditn"
# TensorRT's parser finds a plugin by these two and the node's name.
_IDENTITY = {"plugin_namespace": DOMAIN, "plugin_version": "1"}


class PluginGraph(nn.Module):
    """Images [B, C, H, W] in 0..1, of the model's dtype -> [B, C, H * s, W * s], as the model gives. To be exported to
    ONNX; run by PyTorch its fused layers give zeros. Raises BackendError for a model that the plugins cannot run."""

    def __init__(self, model: DITN) -> None:
        super().__init__()
        head, ufones, tail = model.folded()
        self.config = config = model.config
        convolutions = (head, (tail.body_weight, tail.body_bias), (tail.up_weight, tail.up_bias))
        self.head, self.body, self.up = (_convolution(*pair) for pair in convolutions)
        self.ufones = nn.ModuleList()
        for itls, sals, last in ufones:
            layers: list[nn.Module] = []
            if itls:
                layers += _nodes(inner_patch_stage, itls, config.norm, config.patch_size)
            if sals:
                layers += _nodes(spatial_stage, sals, config.norm)
            if last:
                layers.append(_ChannelsLast(_convolution(*last)))
            self.ufones.append(nn.Sequential(*layers))

    def forward(self, image: Tensor) -> Tensor:
        scale = self.config.upscale
        height, width = image.shape[-2:]
        skip = self.head(pad_to_grid(image, self.config.grid))
        x = skip.permute(0, 2, 3, 1)
        for ufone in self.ufones:
            x = ufone(x)
        large = F.pixel_shuffle(self.up(self.body(x.permute(0, 3, 1, 2)) + skip), scale)
        return crop(large, height * scale, width * scale)


def _nodes(stage: Op, *arguments: Any) -> Iterator[_Fused]:
    """One node for each operator of a stage."""
    if stage.decomposition is not None:
        for op, (weights, *options) in stage.decomposition(*arguments):
            yield _Fused(op.name, weights, dict(zip(op.options, options, strict=True)))


class _Fused(nn.Module):
    """One node. x [B, H, W, C]; weights as the operator takes them."""

    def __init__(self, op: str, weights: tuple[Tensor, ...], options: dict[str, Any]) -> None:
        super().__init__()
        x = torch.empty(1, weights[-1].shape[0], 1, 1, dtype=weights[0].dtype, device="meta")
        support = dataclasses.replace(REGISTRY[op].backends["cuda"], devices=(), forward_in={})
        if reasons := support.why_not({"x": x} | options, backward=False):
            raise BackendError(f"the TensorRT plugin {op} {', '.join(reasons)}")
        self.op, self.options = op, options
        self.weights = nn.ParameterList(nn.Parameter(weight, requires_grad=False) for weight in weights)

    def forward(self, x: Tensor) -> Tensor:
        name, attributes = f"{DOMAIN}::{self.op}", self.options | _IDENTITY
        return torch.onnx.ops.symbolic(name, (x, *self.weights), attributes, dtype=x.dtype, shape=x.shape, version=1)


class _ChannelsLast(nn.Module):
    """A convolution of [B, H, W, C]."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x.permute(0, 3, 1, 2))
        return y.permute(0, 2, 3, 1)


def _convolution(weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """Of weight [3, 3, in, out] and bias [out]."""
    layer = nn.Conv2d(weight.shape[2], weight.shape[3], 3, padding=1, device="meta")
    layer.weight, layer.bias = (
        nn.Parameter(tensor.contiguous(), requires_grad=False) for tensor in (weight.permute(3, 2, 0, 1), bias)
    )
    return layer


# Runs a node: its name, its options, the map [B, H, W, C] and the weights -> the map.
RunNode = Callable[[str, dict[str, Any], Tensor, tuple[Tensor, ...]], Tensor]


def open_reference(path: Path, run_node: RunNode | None = None) -> Callable[[Tensor], Tensor]:
    """A file with these nodes in ONNX's reference evaluator: slow, and independent of any runtime. The nodes are run by
    the operators themselves, unless `run_node` does that."""
    import onnx
    from onnx.reference import ReferenceEvaluator
    from onnx.reference.op_run import OpRun

    run_node = run_node or _run_operator

    def evaluator_of(op: str) -> type:
        def run(self: Any, *inputs: Any, **attributes: Any) -> tuple[Any, ...]:
            options = {name: value for name, value in attributes.items() if name not in _IDENTITY}
            x, *weights = (torch.from_numpy(array.copy()) for array in inputs)
            return (run_node(op, options, x, tuple(weights)).numpy(),)

        return type(op, (OpRun,), {"op_domain": DOMAIN, "_run": run})

    graph = onnx.load(path)
    names = {node.op_type for node in graph.graph.node if node.domain == DOMAIN}
    evaluator = ReferenceEvaluator(graph, new_ops=[evaluator_of(name) for name in sorted(names)])

    def run(image: Tensor) -> Tensor:
        results: Any = evaluator.run(None, {"image": image.numpy()})
        return torch.from_numpy(results[0])

    return run


def _run_operator(op: str, options: dict[str, Any], x: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
    y: Tensor = getattr(ditn_kernels, op)(x.permute(0, 3, 1, 2), *weights, **options)
    return y.permute(0, 2, 3, 1).contiguous()
