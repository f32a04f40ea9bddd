# SPDX-License-Identifier: Apache-2.0
"""What else one could run a DITN with on a CPU, each with its best settings: static shape, constant weights, latency.

A contestant is made of a network (the published formula, or the folded operators in plain PyTorch) and the input image,
and is a function without arguments that returns the result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import ditn
from benchmarks import published
from ditn_kernels import use_backend

Call = Callable[[], Tensor]


@dataclass(frozen=True)
class Task:
    """A model and what it is to do: `image` [B, 3, H, W] float32; `target`, of the result's shape, if it is to train.
    `folder` is for files that contestants make of themselves."""

    model: ditn.DITN
    image: Tensor
    target: Tensor | None
    threads: int
    folder: Path


class Published(nn.Module):
    """The published formula, layer by layer."""

    def __init__(self, state: published.State) -> None:
        super().__init__()
        self.names = list(state)
        self.tensors = nn.ParameterList(nn.Parameter(state[name].detach().clone()) for name in self.names)

    def forward(self, image: Tensor) -> Tensor:
        return published.network(dict(zip(self.names, self.tensors, strict=True)), image)


def folded(model: ditn.DITN) -> ditn.DITN:
    """The operators' plain PyTorch definitions on folded weights, channels-last."""
    network = ditn.DITN(config=model.config, fused=False).eval()
    network.load_state_dict(model.state_dict())
    return network


def eager(network: nn.Module, task: Task) -> Call:
    network(task.image[..., :8, :8])  # loads oneDNN, which is no memory of the call
    return lambda: network(task.image)


def compiled(network: nn.Module, task: Task) -> Call:
    call = torch.compile(network, fullgraph=True, options={"freezing": True})
    call(task.image)
    return lambda: call(task.image)


def ahead_of_time(network: nn.Module, task: Task) -> Call:
    program = torch.export.export(network, (task.image,))
    package = torch._inductor.aoti_compile_and_package(
        program, package_path=str(task.folder / "network.pt2"), inductor_configs={"freezing": True}
    )
    call = torch._inductor.aoti_load_package(package)
    return lambda: call(task.image)


def onnx_runtime(network: nn.Module, task: Task) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = task.threads
    path = _onnx(network, task)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: task.image.numpy()}
    return lambda: torch.from_numpy(session.run(None, feed)[0])


def openvino(precision: str) -> Callable[[nn.Module, Task], Call]:
    def make(network: nn.Module, task: Task) -> Call:
        import openvino

        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
        settings |= {"INFERENCE_NUM_THREADS": task.threads}
        request = openvino.Core().compile_model(_onnx(network, task), "CPU", settings).create_infer_request()
        feed = [task.image.numpy()]
        return lambda: torch.from_numpy(next(iter(request.infer(feed).values())))

    return make


def fused(dtype: torch.dtype) -> Callable[[Task], Call]:
    def make(task: Task) -> Call:
        model, image = task.model.to(dtype), task.image.to(dtype)

        def run() -> Tensor:
            with use_backend("cpu"):
                return model(image)  # type: ignore[no-any-return]

        with use_backend("cpu"):
            model(image[..., :8, :8])  # loads the library and folds the weights, which is no memory of a call
        return run

    return make


def training_step(network: nn.Module, task: Task) -> Call:
    """Forward, backward and an update. Returns all gradients as one vector."""
    network.train().requires_grad_()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    target = task.target
    assert target is not None

    def run() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.enable_grad():
            (network(task.image) - target).square().mean().backward()
        optimizer.step()
        return torch.cat([p.grad.flatten() for p in network.parameters()])  # type: ignore[union-attr]

    return run


def _on_both(name: str, make: Callable[[nn.Module, Task], Call]) -> dict[str, Callable[[Task], Call]]:
    return {
        f"{name}, published": lambda task: make(Published(task.model.state_dict()).requires_grad_(False), task),
        f"{name}, folded": lambda task: make(folded(task.model).requires_grad_(False), task),
    }


# In the order of the tables. The first is what ratios are quoted against.
INFERENCE: dict[str, Callable[[Task], Call]] = {
    **_on_both("PyTorch eager", eager),
    **_on_both("torch.compile", compiled),
    **_on_both("AOTInductor", ahead_of_time),
    **_on_both("ONNX Runtime", onnx_runtime),
    **_on_both("OpenVINO f32", openvino("f32")),
    **_on_both("OpenVINO bf16", openvino("bf16")),
    "fused float32": fused(torch.float32),
    "fused bfloat16": fused(torch.bfloat16),
}
TRAINING: dict[str, Callable[[Task], Call]] = {
    "PyTorch eager, published": lambda task: training_step(Published(task.model.state_dict()), task),
    "PyTorch eager, folded": lambda task: training_step(folded(task.model), task),
    "fused float32": lambda task: training_step(task.model, task),
}


def is_bfloat16(name: str) -> bool:
    return "bf16" in name or "bfloat16" in name


def _onnx(network: nn.Module, task: Task) -> str:
    path = str(task.folder / "network.onnx")
    options: dict[str, Any] = {"dynamo": True, "external_data": False, "verbose": False}
    torch.onnx.export(network, (task.image,), path, **options)
    return path
