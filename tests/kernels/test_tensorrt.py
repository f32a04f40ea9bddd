# SPDX-License-Identifier: Apache-2.0
"""The TensorRT plugins without TensorRT: what they tell it, and what they compute through the kernels' host library."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cuda_host import PROJECT
from tensorrt_host import (
    BF16,
    BUILD,
    FLOAT,
    FORMATS,
    HALF,
    INT8,
    LINEAR,
    PLUGINS,
    RUNTIME,
    SHIM,
    TYPES,
    Plugin,
    creators,
    describe,
    interface,
    library,
    tensors_of,
    unpacked,
)

from benchmarks.oracle.tolerance import assert_as_good
from ditn_kernels import REGISTRY, Op
from ditn_kernels._op import NORMS, Sample

# The plugins are compiled, with all kernels.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("g++"), reason="needs g++, which is not installed"),
]
OPERATORS = [REGISTRY[name] for name in ("inner_patch_attention", "gated_ffn", "dilated_gate")]
each_operator = pytest.mark.parametrize("op", OPERATORS, ids=lambda op: op.name)
each_dtype = pytest.mark.parametrize("dtype", TYPES, ids=str)
# Small maps: how they are cut is the kernels' business, and tests/kernels/test_cuda.py's.
CASES = [
    pytest.param(op, sample, id=f"{op.name}-{sample.name}")
    for op in OPERATORS
    for sample in (
        Sample("small", op.samples[0].axes | {"B": 1, "E": 40, "H": 8, "W": 16}, op.samples[0].options),
        *(sample for sample in op.samples if sample.name in ("odd channels", "empty")),
    )
]


def options_of(op: Op, **options: Any) -> dict[str, Any]:
    defaults = {"norm": "tanh", "patch_size": 8}
    return {name: value for name, value in (defaults | options).items() if name == "norm" or op.name != "dilated_gate"}


def plugin_of(op: Op, phase: int = BUILD, **options: Any) -> Plugin:
    return Plugin(op.name, options_of(op, **options), phase)


def first(op: Op, dtype: torch.dtype = torch.float16) -> dict[str, torch.Tensor]:
    return tensors_of(op, op.inputs(op.samples[0], dtype=dtype))


def test_creators() -> None:
    assert creators() == [(op.name, "1", "ditn", "PLUGIN CREATOR_V3ONE") for op in OPERATORS]


@each_operator
def test_fields_are_the_options_of_the_operator(op: Op) -> None:
    index = OPERATORS.index(op)
    char, int32 = 6, 5
    wanted = {"norm": (char, 0, None)}
    if op.name != "dilated_gate":
        wanted["patch_size"] = (int32, 1, None)
    assert unpacked(library().creator_fields(index)) == wanted
    assert list(wanted) == list(op.named(op.inputs(op.samples[0]).values()))[len(op.axes) :]


@each_operator
@pytest.mark.parametrize("norm", NORMS)
def test_serialisation(op: Op, norm: str) -> None:
    """What is read back from an engine is the same plugin, and the original may be gone by then."""
    plugin = plugin_of(op, norm=norm, patch_size=4)
    texts = plugin.texts()
    kept = plugin.serialized()
    assert kept["norm"] == (6, len(norm), norm.encode())
    plugin.destroy()
    options = {
        name: data.decode() if name == "norm" else int.from_bytes(data, "little") for name, (_, _, data) in kept.items()
    }
    restored = Plugin(op.name, options, RUNTIME)
    assert restored.serialized() == kept
    assert restored.texts() == texts == [op.name, "1", "ditn", f"norm={norm},patch_size={options.get('patch_size', 0)}"]
    for copy in (restored.clone(), restored.attach()):
        assert copy.serialized() == kept
        assert copy.texts() == texts


@each_operator
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "batchnorm"}, "norm is 'batchnorm', must be none, tanh or layernorm"),
        ({"norm": 1}, "the field norm is missing or of another type, must be a string"),
        ({}, "the field norm is missing"),
    ],
)
def test_impossible_norms_are_named(op: Op, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"{op.name}: {message}"):
        Plugin(op.name, {"patch_size": 8} | options)


def test_impossible_patch_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="inner_patch_attention: patch_size is 0, must be one of 4, 8, 16"):
        Plugin("inner_patch_attention", {"norm": "tanh", "patch_size": 0})
    with pytest.raises(ValueError, match="gated_ffn: patch_size is 5, must be one of 0, 4, 8, 16"):
        Plugin("gated_ffn", {"norm": "tanh", "patch_size": 5})
    with pytest.raises(ValueError, match="gated_ffn: the field patch_size is missing"):
        Plugin("gated_ffn", {"norm": "tanh"})


@each_operator
@each_dtype
def test_output_is_like_the_map(op: Op, dtype: torch.dtype) -> None:
    """Of its type, and its axes are the map's own expressions, whatever they will be."""
    plugin = plugin_of(op)
    described = describe(first(op, dtype), most=(4, 64, 64))
    axes = (ctypes.c_int * 8)()
    assert plugin.call("output_type", described, len(described) - 1) == TYPES[dtype]
    assert plugin.call("output_axes", described, len(described) - 1, axes) == 4
    assert axes[:4] == [0, 1, 2, 3]


@each_operator
def test_formats(op: Op) -> None:
    """Linear and nothing else, halves or floats, and everything of the map's type."""
    plugin = plugin_of(op)
    described = describe(first(op))
    for position in range(len(described)):
        for format_ in FORMATS:
            for type_ in (FLOAT, HALF, INT8, BF16):
                for map_type in (FLOAT, HALF, INT8, BF16):
                    described[0].type, described[0].format = map_type, LINEAR
                    described[position].type, described[position].format = type_, format_
                    actual = described[0].type
                    wanted = format_ == LINEAR and type_ == actual and actual in (FLOAT, HALF)
                    assert plugin.call("supports", position, described, len(described)) == wanted
        described[position].type, described[position].format = HALF, LINEAR


@each_operator
def test_wrong_shapes_are_named(op: Op) -> None:
    """Every weight's shape is checked against the map's channels, when a network is built and when shapes change."""
    plugin = plugin_of(op)
    tensors = first(op)
    for index, (name, axes) in enumerate(op.axes.items()):
        described = describe(tensors)
        described[index].least[0] += 1
        described[index].most[0] += 1
        if name == "x":
            continue  # a larger batch
        for step in ("configure", "shape_change"):
            with pytest.raises(ValueError, match=rf"{op.name}: {name} is \[.*\], must be \[{axes}\], .*C = 60"):
                plugin.check(step, described, len(described))
    for step in ("configure", "shape_change"):
        with pytest.raises(ValueError, match=f"{op.name} takes {len(op.axes)} inputs, not {len(op.axes) - 1}"):
            plugin.check(step, describe(tensors), len(op.axes))


def test_a_map_that_is_no_grid_of_patches() -> None:
    op = REGISTRY["gated_ffn"]
    args = op.inputs(
        Sample("", {"B": 1, "C": 60, "E": 120, "H": 12, "W": 16}, {"norm": "tanh", "patch_size": 4}),
        dtype=torch.float16,
    )
    described = describe(tensors_of(op, args))
    with pytest.raises(ValueError, match="gated_ffn: a map of 12x16 is not a grid of 8-pixel patches"):
        plugin_of(op).check("shape_change", described, len(described))
    plugin_of(op, patch_size=4).check("shape_change", described, len(described))


@each_operator
def test_too_many_channels(op: Op) -> None:
    for dtype in TYPES:
        most = op.backends["cuda"].max_channels
        for channels in (most, most + 4):
            args = op.inputs(Sample("", op.samples[0].axes | {"C": channels}, op.samples[0].options), dtype=dtype)
            described = describe(tensors_of(op, args))
            if channels == most:
                plugin_of(op).check("configure", described, len(described))
                continue
            with pytest.raises(ValueError, match=f"{op.name} takes at most {most} channels, not {channels}"):
                plugin_of(op).check("configure", described, len(described))


def built(op: Op, args: dict[str, Any], most: tuple[int, int, int]) -> tuple[Plugin, int]:
    """A layer of a network that was built for maps up to batch, height and width `most`, and its workspace."""
    plugin = Plugin(op.name, {name: args[name] for name in ("norm", "patch_size") if name in args})
    profile = describe(tensors_of(op, args), most)
    plugin.check("configure", profile, len(profile))
    return plugin, plugin.call("workspace", profile, len(profile))


def run(op: Op, args: dict[str, Any], most: tuple[int, int, int]) -> tuple[torch.Tensor, int, int]:
    """What an engine does with a layer, to its execution. The result, the workspace, and what was used of it."""
    plugin, size = built(op, args, most)
    attached = plugin.attach()
    plugin.destroy()
    tensors = tensors_of(op, args)
    described = describe(tensors)
    attached.check("shape_change", described, len(described))
    used = attached.enqueue(described, size, shift=1)
    attached.destroy()
    return tensors["result"], size, used


@each_dtype
@pytest.mark.parametrize(("op", "sample"), CASES)
def test_results(op: Op, sample: Sample, dtype: torch.dtype) -> None:
    """With exactly the memory that was asked for, at the worst of addresses."""
    args = op.inputs(sample, dtype=dtype)
    batch, _, height, width = args["x"].shape
    result, size, used = run(op, args, (batch, height, width))
    exact = op.reference(*(arg.double() if torch.is_tensor(arg) else arg for arg in args.values()))
    assert_as_good(result, exact, op.reference(*args.values()), op.atol_of_max[dtype], f"{op.name} {sample.name}")
    # Not more than was needed either, but for what alignment may take. Nothing is written for a map of no pixels.
    assert size - used < 512 or not batch


@each_operator
def test_a_map_smaller_than_the_profile_allows(op: Op) -> None:
    """Memory for the largest is enough for it. Only an operator that keeps a map there needs more for larger maps."""
    args = op.inputs(next(sample for sample in op.samples if sample.name == "odd channels"))
    result, large, _ = run(op, args, (4, 64, 96))
    exact = op.reference(*(arg.double() if torch.is_tensor(arg) else arg for arg in args.values()))
    assert_as_good(result, exact, op.reference(*args.values()), op.atol_of_max[torch.float32], op.name)
    _, small = built(op, args, (1, 8, 8))
    assert large > small if op.name == "dilated_gate" else large == small


@pytest.mark.skipif(
    "TENSORRT_INCLUDE" not in os.environ, reason="TENSORRT_INCLUDE names no folder of TensorRT's headers"
)
@pytest.mark.skipif(not shutil.which("nvcc"), reason="TensorRT's headers need CUDA's, and there is no nvcc")
@pytest.mark.parametrize("source", PLUGINS, ids=lambda path: path.name)
def test_compiles_with_tensorrts_own_headers(source: Path) -> None:
    """And with CUDA's own, which nvcc finds for the host's compiler: TensorRT's include cuda_runtime_api.h."""
    headers = [f"-I{interface()}", "-isystem", os.environ["TENSORRT_INCLUDE"], "-Xcompiler", "-fsyntax-only"]
    subprocess.run(["nvcc", "-std=c++20", *headers, "-c", str(source), "-o", os.devnull], check=True)


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("cmake") and shutil.which("nvcc")), reason="needs cmake and nvcc")
def test_the_library_that_is_deployed(tmp_path: Path) -> None:
    """Built by CMake with nvcc, with whichever headers there are. It shows TensorRT two functions, and needs no library
    that TensorRT or CUDA would have to bring."""
    headers = os.environ.get("TENSORRT_INCLUDE", SHIM)
    source = f"{PROJECT}/csrc/tensorrt"
    configure = [
        "cmake",
        "-S",
        source,
        "-B",
        tmp_path,
        f"-DTENSORRT_INCLUDE={headers}",
        f"-DPython3_EXECUTABLE={sys.executable}",
        "-DCMAKE_CUDA_ARCHITECTURES=80",
    ]
    for command in (configure, ["cmake", "--build", tmp_path]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    built = tmp_path / "libditn_tensorrt.so"
    listed = subprocess.run(["nm", "-D", "--defined-only", built], check=True, capture_output=True, text=True).stdout
    assert {line.split()[2] for line in listed.splitlines() if line.split()[1] == "T"} == {
        "getCreators",
        "setLoggerFinder",
    }
    needed = subprocess.run(["objdump", "-p", built], check=True, capture_output=True, text=True).stdout
    assert not [line for line in needed.splitlines() if "NEEDED" in line and ("nvinfer" in line or "cuda" in line)]
    count = ctypes.c_int32()
    ctypes.CDLL(str(built)).getCreators(ctypes.byref(count))
    assert count.value == len(OPERATORS)


@pytest.mark.skipif(not shutil.which("cmake"), reason="needs cmake")
def test_a_build_without_headers_says_what_is_missing(tmp_path: Path) -> None:
    command = ["cmake", "-S", PROJECT / "csrc" / "tensorrt", "-B", tmp_path, f"-DTENSORRT_INCLUDE={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert f"TENSORRT_INCLUDE is '{tmp_path}', must be the folder of TensorRT's NvInfer.h" in " ".join(
        done.stderr.split()
    )


@pytest.mark.skipif(not (shutil.which("cmake") and shutil.which("nvcc")), reason="needs cmake and nvcc")
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here, for which it is built")
def test_a_build_without_a_gpu_asks_for_one(tmp_path: Path) -> None:
    command = ["cmake", "-S", PROJECT / "csrc" / "tensorrt", "-B", tmp_path, f"-DTENSORRT_INCLUDE={SHIM}"]
    environment = {name: value for name, value in os.environ.items() if name != "CUDAARCHS"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode != 0
    message = " ".join(done.stderr.split())
    assert "no GPU is here to build for" in message
    assert '-DCMAKE_CUDA_ARCHITECTURES="75;86;89"' in message
