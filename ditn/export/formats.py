# SPDX-License-Identifier: Apache-2.0
"""The formats that `ditn.export` writes (in words, see `options`): how a traced network becomes a file, and how that
file is run."""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config as fx_config

from ditn.export.plugins import PluginGraph, open_reference
from ditn.export.portable import Portable
from ditn.model.network import DITN
from ditn_kernels import lower_to_native, native_libraries

_EXTRA = "ditn.json"
_SIZES = ("batch", "height", "width")
_LARGEST = 1 << 15  # pixels a side, far beyond any memory

Run = Callable[[Tensor], Tensor]


class ExportError(RuntimeError):
    """A file could not be made, or did not compute what the model does and was not kept."""


@dataclass(frozen=True)
class Job:
    """A model to be written with what its file says about it; `bytes_inside` puts the conversion from and to uint8
    into the graph."""

    model: DITN
    facts: Mapping[str, str]
    bytes_inside: bool
    opset: int

    def trace(self, network: nn.Module) -> ExportedProgram:
        """Any batch, height and width from 1 on."""
        config, parameter = self.model.config, next(self.model.parameters())
        size = (3 * config.grid - 3, 2 * config.grid + 3)
        if self.bytes_inside:
            network = Bytes(network, parameter.dtype)
            example = torch.zeros(2, *size, config.in_channels, dtype=torch.uint8, device=parameter.device)
            axes = (0, 1, 2)
        else:
            example = torch.zeros(2, config.in_channels, *size, dtype=parameter.dtype, device=parameter.device)
            axes = (0, 2, 3)
        dynamic = {axis: Dim(name, min=1, max=_LARGEST) for axis, name in zip(axes, _SIZES, strict=True)}
        # Otherwise the graph would assume that no size is 1, and that there is more than one patch.
        with fx_config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
            return torch.export.export(network, (example,), dynamic_shapes=(dynamic,))


class Bytes(nn.Module):
    """uint8 [B, H, W, C] -> uint8 [B, H * s, W * s, C]: to 0..1 before the network, clamped and rounded half to even
    after it, both in float32."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype = network, dtype

    def forward(self, image: Tensor) -> Tensor:
        enlarged = self.network((image.permute(0, 3, 1, 2).float() / 255).to(self.dtype))
        levels: Tensor = (enlarged.float().clamp(0, 1) * 255).round()
        return levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


@dataclass(frozen=True)
class Format:
    """`needs` are the packages that writing takes. `open` loads a file into the runtime it is checked with. A file name
    with its suffix asks for it `by_suffix`."""

    suffix: str
    needs: tuple[str, ...]
    write: Callable[[Job, Path], None]
    open: Callable[[Path], Run]
    by_suffix: bool = True


def _write_onnx(job: Job, path: Path) -> None:
    _write_graph(job, Portable(job.model), path)


def _write_plugin_graph(job: Job, path: Path) -> None:
    _write_graph(job, PluginGraph(job.model), path)


def _write_graph(job: Job, network: nn.Module, path: Path) -> None:
    import onnx

    options: dict[str, Any] = {"input_names": ["image"], "output_names": ["enlarged"], "verbose": False}
    # One file: by default the weights would lie beside it.
    options |= {"external_data": False, "opset_version": job.opset}
    with _quietly():
        torch.onnx.export(job.trace(network), (), str(path), dynamo=True, **options)
    graph = onnx.load(path)
    _name_sizes(graph.graph)
    for node in graph.graph.node:
        del node.metadata_props[:]  # lines of this program, with where it is installed
    onnx.helper.set_model_props(graph, dict(job.facts))
    onnx.checker.check_model(graph)
    onnx.save(graph, path)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what PyTorch's exporter says of itself: its progress, deprecated parts, packages that no graph of ours
    needs. Its errors are raised all the same."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(level)


def _name_sizes(graph: Any) -> None:
    """The exporter numbers the sizes that vary; here they get their names, also in expressions such as 4*height."""
    given = [dim for dim in graph.input[0].type.tensor_type.shape.dim if dim.dim_param]
    names = {dim.dim_param: name for dim, name in zip(given, _SIZES, strict=True)}
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(r"\w+", lambda word: names.get(word[0], word[0]), dim.dim_param)


def _open_onnx(path: Path) -> Run:
    openers = {"onnxruntime": open_onnxruntime, "openvino": open_openvino}
    installed = [name for name in openers if find_spec(name)]
    if not installed:
        raise ExportError(
            "checking an ONNX file needs onnxruntime or openvino, and neither is installed: "
            "pip install 'ditn-kernels[deploy]', or leave the check out (--no-verify)"
        )
    failures = []
    for name in installed:
        try:
            return openers[name](path)
        except RuntimeError as error:
            failures.append(f"{name}: {str(error).splitlines()[0]}")
    raise ExportError(f"no runtime here opens the file, {'; '.join(failures)}")


def open_onnxruntime(path: Path) -> Run:
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # of many types, none of which is RuntimeError
        raise RuntimeError(str(error)) from error
    return lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0])


def open_openvino(path: Path) -> Run:
    import openvino

    core = openvino.Core()
    network = core.read_model(path)
    # Unless told otherwise it computes in bfloat16 where the chip can.
    precision = "bf16" if "bf16" in {str(port.element_type.to_string()) for port in network.inputs} else "f32"
    request = core.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": precision}).create_infer_request()

    def run(image: Tensor) -> Tensor:
        # numpy has no bfloat16, so its bits travel as int16.
        bits = image.dtype == torch.bfloat16
        array = (image.view(torch.int16) if bits else image).contiguous().numpy()
        request.infer(
            [openvino.Tensor(array, list(image.shape), openvino.Type.bf16) if bits else openvino.Tensor(array)]
        )
        found = request.get_output_tensor()
        return torch.from_numpy(found.data.copy().view("int16" if bits else found.data.dtype)).view(image.dtype)

    return run


def _write_program(job: Job, path: Path) -> None:
    torch.export.save(job.trace(job.model.frozen()), path, extra_files={_EXTRA: json.dumps(dict(job.facts))})


def _open_program(path: Path) -> Run:
    module = torch.export.load(path).module()
    return lambda image: module(image)


def _write_package(job: Job, path: Path) -> None:
    from torch._inductor.exc import InvalidCxxCompiler

    program = lower_to_native(job.trace(job.model.frozen()))
    try:
        torch._inductor.aoti_compile_and_package(
            program, package_path=str(path), inductor_configs={"aot_inductor.metadata": dict(job.facts)}
        )
    except InvalidCxxCompiler as error:
        raise ExportError(f"AOTInductor needs a C++ compiler, and finds none: {error}") from error


def _open_package(path: Path) -> Run:
    native_libraries()
    return torch._inductor.aoti_load_package(str(path))


FORMATS = {
    "onnx": Format(".onnx", ("onnx", "onnxscript"), _write_onnx, _open_onnx),
    "trt-onnx": Format(".onnx", ("onnx", "onnxscript"), _write_plugin_graph, open_reference, by_suffix=False),
    "pt2": Format(".pt2", (), _write_program, _open_program),
    "aoti": Format(".pt2", (), _write_package, _open_package),
}
