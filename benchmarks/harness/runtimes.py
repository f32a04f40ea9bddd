# SPDX-License-Identifier: Apache-2.0
"""Runtimes: functions of a network and a task, each with its best settings, that give a function of an image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness.peers.layout import padded
from benchmarks.harness.timing import seconds
from ditn_kernels import native_libraries

Call = Callable[[Tensor], Tensor]
# Pixels of a piece that is large enough to tell memory layouts apart.
_SAMPLE = 128


@dataclass(frozen=True)
class Task:
    """What a network, which enlarges `scale` times and pads to multiples of `grid`, is to do with images [B, 3, H, W].

    One image may be optimised for; several are a stream, in which the next one may have any size. `target` has the
    result's shape, if there is training to do. `folder` is for files that providers make of themselves.
    """

    images: list[Tensor]
    target: Tensor | None
    scale: int
    grid: int
    threads: int
    folder: Path

    @property
    def stream(self) -> bool:
        return len(self.images) > 1


Runtime = Callable[[nn.Module, Task], Call]


def eager(network: nn.Module, task: Task) -> Call:
    network(task.images[0][..., :8, :8])  # loads oneDNN, which is no memory of the call
    return network


def eager_in_best_layout(network: nn.Module, task: Task) -> Call:
    sample = task.images[0][..., :_SAMPLE, :_SAMPLE]
    times = {layout: _best_time(network, sample, layout) for layout in (torch.channels_last, torch.contiguous_format)}
    best = min(times, key=times.__getitem__)
    network.to(memory_format=best)  # type: ignore[call-overload]
    return lambda image: network(image.contiguous(memory_format=best))


def compiled(network: nn.Module, task: Task) -> Call:
    options: dict[str, Any] = {"freezing": True} if task.images[0].device.type == "cpu" else {}
    call = torch.compile(network, fullgraph=True, dynamic=task.stream, options=options)
    return _started(call, task)


def tuned(network: nn.Module, task: Task) -> Call:
    """Compiled with every choice measured, and replayed from a CUDA graph unless sizes change."""
    mode = "max-autotune-no-cudagraphs" if task.stream else "max-autotune"
    call = torch.compile(network, fullgraph=True, dynamic=task.stream, mode=mode)
    # The next replay would overwrite the result.
    return _started(call if task.stream else lambda image: call(image).clone(), task)


def ahead_of_time(network: nn.Module, task: Task) -> Call:
    example, sizes = _example(task)
    program = torch.export.export(network, (example,), dynamic_shapes=sizes)
    package = torch._inductor.aoti_compile_and_package(
        program, package_path=str(task.folder / "network.pt2"), inductor_configs={"freezing": True}
    )
    return _started(torch._inductor.aoti_load_package(package), task)


def onnx_runtime(network: nn.Module, task: Task) -> Call:
    return _on_grid(in_onnx_runtime(_onnx(network, task), task), task)


def in_onnx_runtime(path: str, task: Task) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = task.threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda image: torch.from_numpy(session.run(None, {name: image.numpy()})[0])


def openvino(precision: str) -> Runtime:
    return lambda network, task: _on_grid(in_openvino(_onnx(network, task), task, precision), task)


def in_openvino(path: str, task: Task, precision: str = "f32") -> Call:
    import openvino

    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
    settings |= {"INFERENCE_NUM_THREADS": task.threads}
    request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()
    return lambda image: torch.from_numpy(next(iter(request.infer([image.numpy()]).values())))


def in_inductor(path: str, task: Task) -> Call:
    native_libraries()
    return torch._inductor.aoti_load_package(path)


def _best_time(network: nn.Module, image: Tensor, layout: torch.memory_format) -> float:
    network.to(memory_format=layout)  # type: ignore[call-overload]
    image = image.contiguous(memory_format=layout)
    return min(seconds(lambda: network(image)) for _ in range(3))


def _started(call: Call, task: Task) -> Call:
    """For one size, whatever happens at the first call only has happened; in a stream it counts."""
    if not task.stream:
        call(task.images[0])
    return _on_grid(call, task)


def _on_grid(call: Call, task: Task) -> Call:
    """For graphs of a stream, whose sizes are multiples of the network's grid: pad, call, crop."""

    def run(image: Tensor) -> Tensor:
        height, width = (task.scale * length for length in image.shape[2:])
        return call(padded(image, task.grid))[:, :, :height, :width]

    return run if task.stream else call


def _example(task: Task) -> tuple[Tensor, Any]:
    """The image to trace with, and its free sizes."""
    if not task.stream:
        return task.images[0], None
    height, width = (task.grid * torch.export.Dim(name, min=2, max=512) for name in ("rows", "columns"))
    return padded(task.images[0], task.grid), {"image": {2: height, 3: width}}


def _onnx(network: nn.Module, task: Task) -> str:
    path = str(task.folder / "network.onnx")
    example, sizes = _example(task)
    options: dict[str, Any] = {"dynamo": True, "external_data": False, "verbose": False}
    torch.onnx.export(network, (example,), path, dynamic_shapes=sizes, **options)
    return path
