# SPDX-License-Identifier: Apache-2.0
"""What one could run a network with, each with its best settings.

A provider is made of a network and a task, and is a function of an image. A network is one of
`benchmarks.harness.peers`, or a DITN in one of three forms: the published formula, the folded operators in plain
PyTorch, the fused operators.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

import ditn
from benchmarks.harness.runtimes import (
    Call,
    Runtime,
    Task,
    ahead_of_time,
    compiled,
    eager,
    eager_in_best_layout,
    in_inductor,
    in_onnx_runtime,
    in_openvino,
    onnx_runtime,
    openvino,
    tuned,
)
from benchmarks.oracle import published
from ditn_kernels import use_backend

OfDITN = Callable[[ditn.DITN, Task], Call]


class Published(nn.Module):
    """The published formula, layer by layer."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        state = model.state_dict()
        self.names = list(state)
        self.tensors = nn.ParameterList(nn.Parameter(state[name].detach().clone()) for name in self.names)

    def forward(self, image: Tensor) -> Tensor:
        return published.network(dict(zip(self.names, self.tensors, strict=True)), image)


def folded(model: ditn.DITN) -> ditn.DITN:
    """The operators' plain PyTorch definitions on folded weights, channels-last; for training if `model` is."""
    network = ditn.DITN(config=model.config, fused=False).to(model.sft.weight)
    network.load_state_dict(model.state_dict())
    return network.train(model.training).requires_grad_(model.training)


def exported(format: str, suffix: str, start: Callable[[str, Task], Call]) -> OfDITN:
    """The file of `ditn export`, whose sizes are free."""

    def make(model: ditn.DITN, task: Task) -> Call:
        path = task.folder / f"network{suffix}"
        ditn.export(model, path, format=format, verify=False)
        return start(str(path), task)

    return make


def _portable(model: ditn.DITN) -> nn.Module:
    """The network that `ditn export` writes for runtimes that are not PyTorch."""
    from ditn.export.portable import Portable  # not public: other commits may have it elsewhere

    return Portable(model)


def fused(backend: str, dtype: torch.dtype) -> OfDITN:
    def make(model: ditn.DITN, task: Task) -> Call:
        model.to(dtype)

        def run(image: Tensor) -> Tensor:
            with use_backend(backend):
                return model(image.to(dtype))  # type: ignore[no-any-return]

        run(task.images[0][..., :8, :8])  # loads the library and folds the weights, which is no memory of a call
        return run

    return make


def fused_graph(model: ditn.DITN, task: Task) -> Call:
    """The launches recorded once per size."""
    from ditn.inference.graphs import CudaGraphRunner

    return CudaGraphRunner(model)


def training_step(network: nn.Module, task: Task, dtype: torch.dtype = torch.float32) -> Call:
    """Forward, backward and an update that leaves the weights as they are, in mixed precision for other dtypes than
    float32. Returns all gradients as one vector."""
    network.train().requires_grad_()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.0)
    target = task.target
    assert target is not None

    def run(image: Tensor) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.enable_grad():
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                output = network(image)
            (output.to(target) - target).square().mean().backward()
        optimizer.step()
        return torch.cat([p.grad.flatten() for p in network.parameters()])  # type: ignore[union-attr]

    return run


def _on_both(runtimes: Mapping[str, Runtime]) -> dict[str, OfDITN]:
    found: dict[str, OfDITN] = {}
    for name, make in runtimes.items():
        found[f"{name}, published"] = lambda model, task, make=make: make(Published(model).requires_grad_(False), task)  # type: ignore[misc]
        found[f"{name}, folded"] = lambda model, task, make=make: make(folded(model), task)  # type: ignore[misc]
    return found


_COMMON: dict[str, Runtime] = {
    "torch.compile": compiled,
    "AOTInductor": ahead_of_time,
    "ONNX Runtime": onnx_runtime,
    "OpenVINO f32": openvino("f32"),
    "OpenVINO bf16": openvino("bf16"),
}
_GPU: dict[str, Runtime] = {"torch.compile": compiled, "torch.compile, max-autotune": tuned}
# A provider whose freed memory goes back to the system, as the C library does unless it is told otherwise.
AS_INSTALLED = ", as installed"
FREED_MEMORY_KEPT = ", freed memory kept"
# Of a peer, by device; a peer's eager form is its published one, and has a choice of layout.
RUNTIMES: dict[str, dict[str, Runtime]] = {
    "cpu": {
        "PyTorch eager": eager_in_best_layout,
        **_COMMON,
        f"PyTorch eager{AS_INSTALLED}": eager_in_best_layout,
    },
    "cuda": {"PyTorch eager": eager_in_best_layout, **_GPU},
}
# Of a DITN, in the order of the tables. The first is what ratios are quoted against.
INFERENCE: dict[str, dict[str, OfDITN]] = {
    "cpu": {
        **_on_both({"PyTorch eager": eager, **_COMMON}),
        "fused float32": fused("cpu", torch.float32),
        "fused bfloat16": fused("cpu", torch.bfloat16),
        f"PyTorch eager, published{AS_INSTALLED}": lambda model, task: eager(Published(model), task),
        f"fused float32{AS_INSTALLED}": fused("cpu", torch.float32),
    },
    "cuda": {
        **_on_both({"PyTorch eager": eager, **_GPU}),
        "fused": fused("triton", torch.float16),
        "fused, graph": fused_graph,
    },
}
# What `ditn export` is compared with: the plain graph at one size, and its own graph at one size.
DEPLOYMENT: dict[str, OfDITN] = {
    "ONNX Runtime, published": INFERENCE["cpu"]["ONNX Runtime, published"],
    "ONNX Runtime, exported": exported("onnx", ".onnx", in_onnx_runtime),
    "ONNX Runtime, exported, one size": lambda model, task: onnx_runtime(_portable(model), task),
    "OpenVINO f32, published": INFERENCE["cpu"]["OpenVINO f32, published"],
    "OpenVINO f32, exported": exported("onnx", ".onnx", in_openvino),
    "OpenVINO f32, exported, one size": lambda model, task: openvino("f32")(_portable(model), task),
    "AOTInductor, published": INFERENCE["cpu"]["AOTInductor, published"],
    "AOTInductor, exported": exported("aoti", ".pt2", in_inductor),
}
TRAINING: dict[str, OfDITN] = {
    "PyTorch eager, published": lambda model, task: training_step(Published(model), task),
    "PyTorch eager, folded": lambda model, task: training_step(folded(model), task),
    "fused float32": training_step,
    "fused bfloat16": lambda model, task: training_step(model, task, torch.bfloat16),
}


def title(name: str) -> str:
    """What tables call a provider on a CPU: of eager PyTorch, whose time depends on it most, also what becomes of freed
    memory."""
    return name + FREED_MEMORY_KEPT * ("eager" in name and not name.endswith(AS_INSTALLED))


def dtype_of(name: str, device: str) -> torch.dtype:
    """In which a provider computes."""
    if device == "cuda":
        return torch.float16
    return torch.bfloat16 if "bf16" in name or "bfloat16" in name else torch.float32
