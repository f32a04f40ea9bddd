# SPDX-License-Identifier: Apache-2.0
"""The TensorRT plugins in Python without TensorRT: what an engine would get, that it fits Triton's PTX, and that the
kernels, interpreted with exactly that, compute the operators."""

from __future__ import annotations

import importlib
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorrt_python
import torch
from networks import small
from tensorrt_python import BINDINGS_SHIM, PROCESSORS, PROJECT, SHIM, Case, node_of
from triton.backends.nvidia.compiler import get_ptxas

import ditn
from benchmarks.oracle.tolerance import assert_as_good
from benchmarks.tools.estimate import CHIPS
from ditn_kernels import REGISTRY, BackendError, Op, tensorrt_plugins
from ditn_kernels._op import Sample
from ditn_kernels.backends.triton import _compile
from ditn_kernels.backends.triton._dispatch import Triton
from ditn_kernels.backends.triton._launch import recording
from ditn_kernels.tensorrt_plugins import AHEAD_OF_TIME, IN_PYTHON, Chip

# DITN-Real's layers, and what differs most from them.
QUICK = (
    Case("inner_patch_attention", "float16", 90),
    Case("gated_ffn", "float16", 90),
    Case("gated_ffn", "float16", 80, patch_size=0),
    Case("inner_patch_attention", "float32", 80, norm="layernorm"),
    Case("gated_ffn", "float32", 80),
    Case("inner_patch_attention", "float16", 90, most_shared=48 << 10),
    Case("gated_ffn", "float16", 90, patch_size=0, most_shared=48 << 10),
)
SLOW = tuple(
    Case(op, dtype, capability, patch_size, norm, channels, 2 * channels)
    for op, patch_sizes in (("inner_patch_attention", (4, 8, 16)), ("gated_ffn", (0, 4, 8, 16)))
    for dtype in ("float16", "float32")
    for capability, patch_size, norm, channels in (
        *((80, patch_size, "layernorm", 48) for patch_size in patch_sizes),
        (75, 8, "tanh", 60),
        (90, 8, "none", 128),
        (120, 8, "tanh", 60),
    )
)
quick_and_slow = pytest.mark.parametrize(
    ("cases", "case"),
    [
        *(pytest.param(QUICK, case, id=str(case)) for case in QUICK),
        *(pytest.param(SLOW, case, id=str(case), marks=pytest.mark.slow) for case in SLOW),
    ],
)
needs_interpreter = pytest.mark.skipif(
    bool(Triton().missing(REGISTRY["gated_ffn"], torch.device("cpu"), backward=False)),
    reason="Triton does not interpret here",
)


def engine_gets(cases: tuple[Case, ...], case: Case) -> dict[str, Any]:
    return tensorrt_python.compiled(*cases)[cases.index(case)]


def entry_of(found: dict[str, Any]) -> tuple[list[str], str]:
    """The types of the kernel's parameters, and what follows them."""
    (head,) = re.findall(r"\.visible \.entry (\w+)\((.*?)\n\)(.*)", found["code"], re.DOTALL)
    assert head[0] == found["kernel"]
    return re.findall(r"\.param \.(\w+)", head[1]), head[2]


@quick_and_slow
def test_an_engine_passes_what_the_kernel_takes(cases: tuple[Case, ...], case: Case) -> None:
    """Inputs, integers, outputs, in the order of the kernel's own names, and nothing besides."""
    found = engine_gets(cases, case)
    op = REGISTRY[case.op]
    names, outputs = found["names"], ["y_ptr", "scratch_ptr"]
    integers = names[len(op.axes) : -len(outputs)]
    assert names == [*(f"{name}_ptr" for name in op.axes), *integers, *outputs]
    types, body = entry_of(found)
    assert types == ["u64"] * len(op.axes) + ["u32"] * len(integers) + ["u64"] * len(outputs)
    assert all(len(launch["engine"][1]) == len(integers) for launch in found["launches"])
    last = max(int(number) for number in re.findall(rf"{found['kernel']}_param_(\d+)", body))
    assert last < len(names)


@quick_and_slow
def test_launches_are_those_of_triton(cases: tuple[Case, ...], case: Case) -> None:
    """Programs and integers at every size, threads, shared memory."""
    found = engine_gets(cases, case)
    for launch in found["launches"]:
        assert launch["engine"] == launch["triton"]
    # Both that all programs have one task, and that they have several.
    programs = [launch["engine"][0] for launch in found["launches"]]
    assert min(programs) < max(programs) == found["most_programs"]
    assert (found["grid_y"], found["grid_z"]) == (1, 1)
    _, body = entry_of(found)
    assert [found["block_x"]] == [found["threads"]] == [int(n) for n in re.findall(r"\.reqntid (\d+)\n", body)]
    assert (".extern .shared" in found["code"]) == (found["shared_mem"] > 0)
    assert found["shared_mem"] <= (case.most_shared or CHIPS[case.capability].shared_per_block)


@quick_and_slow
def test_outputs_are_the_map_and_enough_scratch(cases: tuple[Case, ...], case: Case) -> None:
    found = engine_gets(cases, case)
    batch, height, width = case.sizes[-1]
    assert found["outputs"][0] == [batch, height, width, case.channels]
    if case.most_shared is None:  # else it is not Triton's own launch
        assert found["outputs"][1] == [max(found["most_programs"] * found["scratch"], 1)]
    assert len(found["outputs"]) == 2


@quick_and_slow
def test_the_code_assembles_and_says_nothing_of_this_machine(
    cases: tuple[Case, ...], case: Case, tmp_path: Path
) -> None:
    found = engine_gets(cases, case)
    (target,) = re.findall(r"\.target (\w+)", found["code"])
    assert target.rstrip("a") == f"sm_{case.capability}"
    assert not re.search(r"\.(file|loc)\b", found["code"])
    assert "ditn_kernels/" not in found["code"]
    (tmp_path / "kernel.ptx").write_text(found["code"])
    assembler = get_ptxas(case.capability).path
    command = [assembler, f"--gpu-name={target}", "-v", tmp_path / "kernel.ptx", "-o", tmp_path / "kernel.cubin"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    assert f"Compiling entry function '{found['kernel']}' for '{target}'" in said
    if case in QUICK:  # the network's layers; that the code is for all sizes costs no registers
        assert "0 bytes stack frame, 0 bytes spill stores" in said


def forget_tensorrt() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorrt"]:
        del sys.modules[name]


@pytest.fixture
def shim(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """`tensorrt.plugin`, with nothing registered. What is there is taken away again."""
    monkeypatch.syspath_prepend(str(SHIM))
    plugin = importlib.import_module("tensorrt.plugin")
    plugin.PLUGINS.clear()
    yield plugin
    forget_tensorrt()


@pytest.fixture
def interpreted(shim: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The plugins registered with kernels that are interpreted, not compiled: the launches, as they are asked for. So
    few programs that each has several tiles."""
    launches: list[Any] = []

    def remember(launch: Any, capability: int) -> Any:
        launches.append(launch)
        return _compile.Ptx(launch.name, "", 32 * launch.config.num_warps, 0)

    monkeypatch.setattr(tensorrt_plugins, "interpreted", lambda: False)
    monkeypatch.setattr(_compile, "ptx", remember)
    tensorrt_plugins.register(Chip(90, processors=1))
    return launches


def build(shim: ModuleType, op: Op, sizes: dict[str, Any], options: dict[str, Any], dtype: str = "float16") -> Any:
    return shim.build(f"ditn::{op.name}", getattr(sys.modules["tensorrt"], dtype), node_of(op, sizes), options)


def as_engine(shim: ModuleType, launches: list[Any], op: Op, args: dict[str, Any]) -> torch.Tensor:
    """The result of a kernel that is given what an engine would give it. Memory that nobody wrote to is NaN."""
    x, *weights = (args[name] for name in op.axes)
    options = {name: value for name, value in args.items() if name not in op.axes}
    known = op.check(args)
    dynamic = known | {axis: axis for axis in "BHW"}
    built = build(shim, op, dynamic, options, str(x.dtype).removeprefix("torch."))
    nhwc = x.permute(0, 2, 3, 1).contiguous()
    shapes = [[axis.evaluate(known) for axis in desc.shape_expr] for desc in built.outputs]
    outputs = [torch.full(shape, torch.nan, dtype=x.dtype) for shape in shapes]
    guard = 64
    outputs[1] = torch.full((shapes[1][0] + guard,), torch.nan, dtype=x.dtype)
    launch = launches[-1]
    integers = [one.evaluate(known) for one in built.extra]
    grid = (built.params.grid_x.evaluate(known),)
    launch.kernel[grid](nhwc, *weights, *integers, *outputs, **launch.constants, num_warps=launch.config.num_warps)
    assert outputs[1][-guard:].isnan().all(), "written behind the scratch memory"
    assert integers[-1] > grid[0], "no program has several tiles"
    return outputs[0].permute(0, 3, 1, 2)


SAMPLES = (
    ("inner_patch_attention", "patch", {"B": 2, "H": 8, "W": 16}, {"norm": "tanh", "patch_size": 8}),
    ("gated_ffn", "patch", {"B": 1, "H": 8, "W": 40}, {"norm": "layernorm", "patch_size": 8}),
    ("gated_ffn", "map", {"B": 1, "H": 9, "W": 21}, {"norm": "tanh", "patch_size": 0}),
)


@needs_interpreter
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(("name", "kind", "sizes", "options"), SAMPLES, ids=[f"{s[0]}-{s[1]}" for s in SAMPLES])
def test_the_kernels_compute_the_operators_from_it(
    shim, interpreted, name: str, kind: str, sizes: dict[str, int], options: dict[str, Any], dtype: torch.dtype
) -> None:
    op = REGISTRY[name]
    sample = Sample(kind, {"C": 60, "E": 40} | sizes, options)
    args = op.inputs(sample, dtype=dtype)
    exact = op.reference(*(arg.double() if isinstance(arg, torch.Tensor) else arg for arg in args.values()))
    plain = op.reference(*args.values())
    assert_as_good(as_engine(shim, interpreted, op, args), exact, plain, op.atol_of_max[dtype], f"{name} {kind}")


@pytest.mark.skipif(
    "TENSORRT_BINDINGS" not in os.environ, reason="needs TENSORRT_BINDINGS, a folder with TensorRT's plugin"
)
@pytest.mark.parametrize("name", AHEAD_OF_TIME)
def test_tensorrts_own_python_files_take_the_plugins(monkeypatch, name: str) -> None:
    """Their checks, and the builder's calls, with expressions in place of TensorRT's."""
    monkeypatch.syspath_prepend(str(BINDINGS_SHIM))
    monkeypatch.setattr(tensorrt_plugins, "interpreted", lambda: False)
    monkeypatch.setattr(_compile, "ptx", lambda launch, _: _compile.Ptx("kernel", "code", 128, 1000))
    try:
        takes_the_plugin(name)
    finally:
        forget_tensorrt()


def takes_the_plugin(name: str) -> None:
    trt = importlib.import_module("tensorrt")
    assert Path(importlib.import_module("tensorrt.plugin").__file__).is_relative_to(os.environ["TENSORRT_BINDINGS"])
    tensorrt_plugins.register(Chip(90, PROCESSORS))
    creator = trt.get_plugin_registry().get_creator(name, "1", "ditn")
    fields = [trt.PluginField("norm", np.frombuffer(b"tanh", np.int8), trt.PluginFieldType.CHAR)]
    fields.append(trt.PluginField("patch_size", np.array([8], np.int32), trt.PluginFieldType.INT32))
    assert [one.name for one in creator.field_names] == [one.name for one in fields]
    request = trt.QuickPluginCreationRequest.UNKNOWN  # as the parser, where neither kind was asked for
    plugin = creator.create_plugin(name, "ditn", fields, trt.TensorRTPhase.BUILD, request)
    shapes = node_of(REGISTRY[name], {"B": "B", "H": "H", "W": "W", "C": 60, "E": 120})
    assert plugin.get_num_outputs() == 2
    assert plugin.get_output_data_types([trt.float16] * len(shapes), list(map(len, shapes))) == [trt.float16] * 2
    expressions = [[trt.IDimensionExpr(axis) for axis in shape] for shape in shapes]
    described = plugin.get_output_shapes(expressions, [], trt.IExprBuilder())
    sizes = {"B": 1, "H": 384, "W": 384}
    assert [axis.evaluate(sizes) for axis in described[0]] == [1, 384, 384, 60]
    tensors = []
    for shape in (*shapes, shapes[0], [described[1][0].evaluate({})]):
        dims = trt.Dims(-1 if isinstance(axis, str) else axis for axis in shape)
        tensors.append(trt.DynamicPluginTensorDesc(trt.PluginTensorDesc(dims, trt.float16)))
    formats = plugin.get_supported_format_combinations(tensors, len(shapes))
    assert [(one.type, one.format) for one in formats] == [(trt.float16, trt.TensorFormat.LINEAR)] * len(tensors)
    for tensor in tensors:
        tensor.desc.format = trt.TensorFormat.LINEAR
    plugin.configure_plugin(tensors[: len(shapes)], tensors[len(shapes) :])
    plugin.set_tactic(0)
    params, extra = SimpleNamespace(), type("Setter", (dict,), {})()
    plugin.get_launch_params(expressions, tensors, len(shapes), params, extra, trt.IExprBuilder())
    kernel = plugin.get_kernel(
        [one.desc for one in tensors[: len(shapes)]], [one.desc for one in tensors[len(shapes) :]]
    )
    assert kernel == ("kernel", b"code")
    assert [extra[index].expr.evaluate(sizes) for index in range(extra.nbSymExprs)] == integers_of_triton(name, sizes)
    assert {one.dtype for one in extra.values()} == {trt.PluginArgDataType.INT32}
    launched = {what: getattr(params, what).expr.evaluate(sizes) for what in vars(params)}
    alone = dict.fromkeys(("grid_y", "grid_z", "block_y", "block_z"), 1)
    assert launched == alone | {"grid_x": 2 * PROCESSORS, "block_x": 128, "shared_mem": 1000}


def integers_of_triton(name: str, sizes: dict[str, int]) -> list[int]:
    """What Triton's own launch passes to the kernel besides tensors, in DITN-Real's shape."""
    op = REGISTRY[name]
    sample = Sample("", sizes | {"C": 60, "E": 120}, {"norm": "tanh", "patch_size": 8})
    forward = importlib.import_module(f"ditn_kernels.backends.triton.{name}").forward
    with recording(90) as launches:
        forward(*op.structured(op.inputs(sample, dtype=torch.float16, device="meta").values()))
    (launch,) = launches
    return [argument for argument in launch.args if not isinstance(argument, torch.Tensor)]


@needs_interpreter
def test_several_kernels_are_called_in_python(shim, interpreted, monkeypatch) -> None:
    """Which leaves the result in the engine's own memory."""
    op = REGISTRY["dilated_gate"]
    args = op.inputs(Sample("", {"B": 1, "C": 16, "H": 7, "W": 5}, {"norm": "tanh"}))
    streams: list[int] = []
    monkeypatch.setattr(tensorrt_plugins, "_as_torch", lambda tensor: tensor)
    monkeypatch.setattr(tensorrt_plugins, "_on_stream", lambda stream: streams.append(stream) or nullcontext())
    x, *weights = (args[name] for name in op.axes)
    result = torch.full((1, 7, 5, 16), torch.nan)
    assert build(shim, op, op.check(args), {"norm": "tanh"}).code == ""
    shim.PLUGINS["ditn::dilated_gate"].call(x.permute(0, 2, 3, 1), *weights, "tanh\0", (result,), stream=7)
    assert streams == [7]
    exact = op.reference(*(arg.double() if isinstance(arg, torch.Tensor) else arg for arg in args.values()))
    plain = op.reference(*args.values())
    assert_as_good(result.permute(0, 3, 1, 2), exact, plain, op.atol_of_max[torch.float32], "dilated_gate")


def test_every_operator_is_one_kernel_or_is_called(shim, interpreted) -> None:
    """The operators that the graph for TensorRT has, and those compiled ahead are one launch without more."""
    assert set(shim.PLUGINS) == {f"ditn::{name}" for name in (*AHEAD_OF_TIME, *IN_PYTHON)}
    for name in (*AHEAD_OF_TIME, *IN_PYTHON):
        op = REGISTRY[name]
        args = op.inputs(op.samples[0], dtype=torch.float16, device="meta")
        with recording(90) as launches:
            Triton().kernel(op, backward=False)(*args.values())
        assert (len(launches) == 1) == (name in AHEAD_OF_TIME)


@pytest.mark.skipif(not (find_spec("onnx") and find_spec("onnxscript")), reason="not installed: onnx, onnxscript")
def test_nodes_of_the_exported_graph_are_what_the_plugins_take(shim, interpreted, tmp_path: Path) -> None:
    """Names, attributes, inputs and, when it is completed, outputs; nothing else is changed."""
    import onnx

    model = small()
    ditn.export(model, tmp_path / "small.onnx", format="trt-onnx", verify=False)
    graph, exported = onnx.load(tmp_path / "small.onnx"), onnx.load(tmp_path / "small.onnx")
    tensorrt_plugins.complete(graph)
    tensorrt_plugins.complete(graph)  # which is complete
    example = runpy.run_path(str(PROJECT / "examples" / "tensorrt_upscale.py"))
    assert onnx.load_from_string(example["graph_of"](tmp_path / "small.onnx", "python")) == graph
    assert example["graph_of"](tmp_path / "small.onnx", "plugins.so") == (tmp_path / "small.onnx").read_bytes()
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.graph.initializer}
    types = {tensor.name: tensor.data_type for tensor in graph.graph.initializer}
    names = [name for node in graph.graph.node for name in node.output]
    assert len(set(names)) == len(names)
    nodes = [node for node in graph.graph.node if node.domain == "ditn"]
    assert {node.op_type for node in nodes} == {*AHEAD_OF_TIME, *IN_PYTHON}
    for node in nodes:
        values = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        options = {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}
        assert (options.pop("plugin_namespace"), options.pop("plugin_version")) == ("ditn", "1")
        weights = node.input[1:]
        assert all(types[name] == onnx.TensorProto.FLOAT for name in weights)
        inputs = [["B", "H", "W", model.config.dim], *(shapes[name] for name in weights)]
        built = shim.build(f"ditn::{node.op_type}", sys.modules["tensorrt"].float32, inputs, options)
        assert len(built.outputs) == len(node.output)
        assert built.outputs[0].shape_expr[3].constant_value() == model.config.dim
        del node.output[1:]
    assert graph == exported


def test_what_the_kernels_cannot_run_is_refused(shim, interpreted) -> None:
    op = REGISTRY["gated_ffn"]
    options = {"norm": "tanh", "patch_size": 8}
    sizes = {"B": "B", "H": "H", "W": "W", "C": 60, "E": 120}
    for what, error, message in (
        ({"sizes": sizes | {"C": 132}}, BackendError, "the TensorRT plugin gated_ffn takes at most 128 channels"),
        ({"options": options | {"patch_size": 12}}, BackendError, "takes patch sizes 0, 4, 8, 16, asked for 12"),
        ({"options": options | {"norm": "batch"}}, ValueError, "norm is 'batch', must be one of 'tanh'"),
        ({"dtype": "bfloat16"}, TypeError, "gated_ffn takes HALF or FLOAT, x is BF16"),
        ({"sizes": sizes | {"C": "C"}}, RuntimeError, "non-constant"),
    ):
        with pytest.raises(error, match=message):
            build(shim, **{"op": op, "sizes": sizes, "options": options} | what)
    shapes = node_of(op, sizes)
    shapes[3] = [3, 3, 238]
    with pytest.raises(ValueError, match=r"dw_weight has shape \[3, 3, 238\], expected \[3, 3, 2E=240\]"):
        shim.build("ditn::gated_ffn", sys.modules["tensorrt"].float16, shapes, options)


def test_a_chip_that_is_too_old(shim, monkeypatch) -> None:
    monkeypatch.setattr(tensorrt_plugins, "interpreted", lambda: False)
    tensorrt_plugins.register(Chip(70, PROCESSORS))
    sizes = {"B": "B", "H": "H", "W": "W", "C": 60, "E": 120}
    with pytest.raises(BackendError, match=r"needs compute capability \(7, 5\), the GPU has \(7, 0\)"):
        build(shim, REGISTRY["inner_patch_attention"], sizes, {"norm": "tanh", "patch_size": 8})


def test_too_little_shared_memory(shim, monkeypatch) -> None:
    """Configurations become smaller until they fit, or there is none."""
    asked: list[Any] = []

    def compile_to(launch: Any, capability: int) -> Any:
        asked.append((launch.config.num_stages, launch.config.blocks["SLICE"]))
        return _compile.Ptx(launch.name, "", 32 * launch.config.num_warps, 1000 * launch.config.blocks["SLICE"])

    monkeypatch.setattr(tensorrt_plugins, "interpreted", lambda: False)
    monkeypatch.setattr(_compile, "ptx", compile_to)
    op, options = REGISTRY["gated_ffn"], {"norm": "tanh", "patch_size": 8}
    sizes = {"B": "B", "H": "H", "W": "W", "C": 60, "E": 120}
    tensorrt_plugins.register(Chip(90, PROCESSORS), most_shared=40_000)
    built = build(shim, op, sizes, options)
    assert (built.params.shared_mem.evaluate({}), asked[-1]) == (32_000, (1, 32))
    assert [axis.constant_value() for axis in built.outputs[1].shape_expr] == [4 * PROCESSORS * 10 * 10 * 2 * 32]
    shim.PLUGINS.clear()
    tensorrt_plugins.register(Chip(90, PROCESSORS), most_shared=15_000)
    with pytest.raises(BackendError, match="gated_ffn needs 16000 bytes of shared memory, at most 15000 are allowed"):
        build(shim, op, sizes, options)


def test_what_is_missing_is_named(shim, monkeypatch) -> None:
    monkeypatch.setattr(tensorrt_plugins, "interpreted", lambda: True)
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET is set"):
        tensorrt_plugins.register()
    monkeypatch.setattr(tensorrt_plugins, "interpreted", lambda: False)
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match=r"no GPU to build engines for: name one, register\(Chip\("):
            tensorrt_plugins.register()
    monkeypatch.setattr(tensorrt_plugins, "why_missing", lambda: ("needs Triton, which is not installed",))
    with pytest.raises(ImportError, match="the TensorRT plugins in Python: needs Triton, which is not installed"):
        tensorrt_plugins.register()


def test_a_tensorrt_that_is_missing_or_too_old_is_named(monkeypatch) -> None:
    needed = "the TensorRT plugins in Python need TensorRT 10.9 or newer"
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.7.0"))
    for plugin in (SimpleNamespace(register=None), None):
        monkeypatch.setitem(sys.modules, "tensorrt.plugin", plugin)
        with pytest.raises(ImportError, match=f"{needed}, 10.7.0 is installed"):
            tensorrt_plugins.register()
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(ImportError, match=f"{needed}: pip install tensorrt"):
        tensorrt_plugins.register()


def test_scratch_that_a_kernel_uses_is_not_taken_away() -> None:
    text = ".visible .entry k(\n\t.param .u64 k_param_0,\n\t.param .u64 k_param_1\n)\n{ ld [k_param_%d]; }"
    assert _compile._without_scratch(text % 0, "k", 1) == text.replace(",\n\t.param .u64 k_param_1", "") % 0
    assert _compile._without_scratch(text % 1, "k", 2) == text % 1
    with pytest.raises(RuntimeError, match=r"k uses memory that Triton's launcher allocates \(.param .u64 k_param_1\)"):
        _compile._without_scratch(text % 1, "k", 1)
