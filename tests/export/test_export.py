# SPDX-License-Identifier: Apache-2.0
"""Exported files compute the published formula at any size, say what they are, and are there whole or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from conftest import PROJECT
from networks import small
from torch import Tensor

import ditn
import ditn_kernels
from benchmarks.oracle import published
from ditn.commands import cli
from ditn.export import formats
from ditn.export.export import SIZES
from ditn.export.portable import Portable
from ditn_kernels import BackendError
from ditn_kernels.backends.native import _libraries

NEEDED = ("onnx", "onnxscript", "onnxruntime", "openvino")
absent = [name for name in NEEDED if not find_spec(name)]
needs_onnx = pytest.mark.skipif(bool(absent), reason=f"not installed: {', '.join(absent)} (pip install .[deploy])")
needs_library = pytest.mark.skipif(
    _libraries.why_missing() is not None, reason=f"the compiled library {_libraries.why_missing()}"
)
PLACES = ((1, 1, 1), (3, 2, 31), (1, 37, 20))
# float32 against float64, relative to the largest value: a dozen layers with sums of up to 108 products.
BOUND = 1e-5
MODELS = {
    "tanh": lambda: small(),
    "layernorm": lambda: small(ditn.DITN_Tiny, ufones=2, bias=True, ufone_conv=True, upscale=3, expansion=1.5),
    "patch 16": lambda: small(patch_size=16, in_channels=1, out_channels=1),
    "no ITL": lambda: small(itls=0),
    "no SAL": lambda: small(sals=0, ufones=2),
}


def exactly(model: ditn.DITN, image: Tensor) -> Tensor:
    state = {key: value.double() for key, value in model.state_dict().items()}
    return published.network(state, image.double(), patch_size=model.config.patch_size)


def assert_right(run, model: ditn.DITN) -> None:
    for batch, height, width in PLACES:
        image = torch.rand(batch, model.config.in_channels, height, width)
        expected = exactly(model, image)
        bound = BOUND * float(expected.abs().max())
        torch.testing.assert_close(run(image).double(), expected, rtol=0, atol=bound)


def assert_right_in_bytes(run, model: ditn.DITN, slack: float = 1e-3) -> None:
    """At most half a level from the exact value, and the slack of the arithmetic in between."""
    for batch, height, width in PLACES:
        image = torch.randint(0, 256, (batch, height, width, 3), dtype=torch.uint8)
        expected = exactly(model, image.permute(0, 3, 1, 2) / 255).clamp(0, 1).permute(0, 2, 3, 1) * 255
        result = run(image)
        assert result.dtype == torch.uint8
        torch.testing.assert_close(result.double(), expected, rtol=0, atol=0.5 + slack)


@pytest.mark.parametrize("name", MODELS)
def test_the_portable_graph_is_the_published_formula(name: str) -> None:
    model = MODELS[name]().double()
    for batch, height, width in PLACES:
        image = torch.rand(batch, model.config.in_channels, height, width, dtype=torch.float64)
        # Both sides are float64; the sums are taken in another order.
        torch.testing.assert_close(Portable(model)(image), exactly(model, image), rtol=1e-10, atol=1e-10)


def test_blocks_are_filled_with_zeros_that_stay() -> None:
    graph = Portable(small()).inside
    assert graph.head[0].shape[0] == 16
    assert not graph.head[0][12:].any()
    assert Portable(small(ditn.DITN_Tiny)).inside.head[0].shape[0] == 12  # a mean over channels would see them


@pytest.fixture(scope="module")
def model() -> ditn.DITN:
    return small()


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory, model) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "small.onnx"
    done = ditn.export(model, path)
    assert done.path == path
    assert done.size == path.stat().st_size
    assert 0 < done.error < BOUND
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # weights and all
    return path


@needs_onnx
@pytest.mark.parametrize("opener", ["onnxruntime", "openvino"])
def test_onnx_runs_at_any_size(onnx_file, model, opener: str) -> None:
    assert_right(getattr(formats, f"open_{opener}")(onnx_file), model)


@needs_onnx
def test_onnx_says_what_it_is(onnx_file, model) -> None:
    import onnx

    graph = onnx.load(onnx_file)
    facts = {entry.key: entry.value for entry in graph.metadata_props}
    assert (facts["scale"], facts["grid"], facts["reach"], facts["overlap"]) == ("2", "8", "17", "24")
    assert ditn.DITNConfig(**json.loads(facts["config"])) == model.config
    assert (facts["dtype"], facts["layout"], facts["source"]) == ("float32", "NCHW in 0..1", "DITN_Real")
    assert [opset.version for opset in graph.opset_import if not opset.domain] == [20]
    sizes = [dim.dim_param for dim in graph.graph.input[0].type.tensor_type.shape.dim]
    assert sizes == ["batch", "", "height", "width"]
    sizes = [dim.dim_param for dim in graph.graph.output[0].type.tensor_type.shape.dim]
    assert sizes == ["batch", "", "2*height", "2*width"]
    ranks = [len(value.type.tensor_type.shape.dim) for value in graph.graph.value_info]
    assert max(ranks) == 4
    operators = {node.op_type for node in graph.graph.node}
    assert {"Tanh", "Gelu", "Softmax"} <= operators
    assert not {node.domain for node in graph.graph.node} - {""}


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_onnx_in_bytes(tmp_path, model, dtype: torch.dtype) -> None:
    path = tmp_path / "bytes.onnx"
    ditn.export(model, path, dtype=dtype, uint8=True, opset=21)
    run = formats.open_openvino(path) if dtype == torch.bfloat16 else formats.open_onnxruntime(path)
    # 8 and 11 bits of the largest value, here 3, through two dozen roundings.
    assert_right_in_bytes(run, model, 255 * 3 * 8 * torch.finfo(dtype).eps)


@needs_onnx
@pytest.mark.slow
def test_onnx_of_the_other_networks(tmp_path) -> None:
    for name in ("layernorm", "patch 16"):
        model = MODELS[name]()
        ditn.export(model, tmp_path / f"{name}.onnx")
        for open_file in (formats.open_onnxruntime, formats.open_openvino):
            assert_right(open_file(tmp_path / f"{name}.onnx"), model)


@needs_onnx
@pytest.mark.slow
def test_the_shipped_model_from_the_command_line(tmp_path) -> None:
    """One line is said, and nothing of PyTorch's exporter."""
    path = tmp_path / "real.onnx"
    command = [sys.executable, "-m", "ditn", "export", "ditn-real-x4", "-o", str(path)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    size = path.stat().st_size / 1e6
    assert size < 2.5  # 390,000 weights, channels padded to blocks, four bytes each
    said = f"{path}: {size:.1f} MB, checked at 1x1, 2x31, 8x8, 37x20, 24x40: largest error"
    assert done.stdout.startswith(said)
    assert (done.stdout.count("\n"), done.stderr) == (1, "")


def test_program(tmp_path, model) -> None:
    """Loaded in a process of its own, with the operators registered and no model in sight."""
    path = tmp_path / "small.pt2"
    assert cli.main(["export", save(model, tmp_path), "-o", str(path), "--format", "pt2"]) == 0
    extra = {"ditn.json": ""}
    program = torch.export.load(path, extra_files=extra)
    assert json.loads(extra["ditn.json"])["source"] == "small.safetensors"
    assert not program.state_dict  # the folded weights alone
    called = {node.target for node in program.graph.nodes if str(node.target).startswith("ditn.")}
    assert called == {getattr(torch.ops.ditn, name).default for name in STAGES}
    assert_right(program.module(), model)
    code = (
        "import sys, torch, ditn_kernels; run = torch.export.load(sys.argv[1]).module();"
        "print(*run(torch.zeros(1, 3, 5, 9)).shape); assert 'ditn' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, path], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["1", "3", "10", "18"]


STAGES = ("image_head", "inner_patch_stage", "spatial_stage", "image_tail")


def save(model: ditn.DITN, folder: Path) -> str:
    path = folder / "small.safetensors"
    ditn.save(model, path)
    return str(path)


@needs_library
def test_lowered_programs_call_the_library_alone(model) -> None:
    job = formats.Job(model, {}, bytes_inside=False, opset=20)
    program = ditn_kernels.lower_to_native(job.trace(model.frozen()))
    called = {str(node.target) for node in program.graph.nodes if "ditn" in str(node.target)}
    assert called == {f"ditn_native.{name}.default" for name in ("dense", *STAGES)}
    assert_right(program.module(), model)


@needs_library
def test_what_the_library_cannot_run_is_not_lowered() -> None:
    job = formats.Job(small(dim=130), {}, bytes_inside=False, opset=20)
    with pytest.raises(BackendError, match="takes at most 128 channels, the input has 130"):
        ditn_kernels.lower_to_native(job.trace(job.model.frozen()))
    with pytest.raises(BackendError, match="there is no compiled library for 'tpu'"):
        ditn_kernels.native_libraries("tpu")


@needs_library
@pytest.mark.slow
def test_package(tmp_path, model) -> None:
    path = tmp_path / "small.pt2"
    ditn.export(model, path, format="aoti")
    package = torch._inductor.aoti_load_package(str(path))
    assert package.get_metadata()["scale"] == "2"
    assert_right(package, model)
    # Tiles of a picture and pictures with their colours last, whose strides are not those of the trace.
    image = torch.rand(2, 3, 20, 28)
    last = image.contiguous(memory_format=torch.channels_last)
    for view in (image[..., 3:15, 5:26], image[..., ::2], last, last[:, :, 2:], image[:1].expand(3, -1, -1, -1)):
        torch.testing.assert_close(package(view), model(view), rtol=0, atol=1e-5)


def refused(tmp_path, error, message: str, *args, **options) -> None:
    before = sorted(tmp_path.iterdir())
    with pytest.raises(error, match=message):
        ditn.export(*args, **options)
    assert sorted(tmp_path.iterdir()) == before


def test_errors_say_what_is_wrong_and_leave_nothing(tmp_path, model, monkeypatch) -> None:
    file = tmp_path / "a.pt2"
    refused(tmp_path, ValueError, r"a\.pt2: name the format, pt2 or aoti", model, file)
    refused(tmp_path, ValueError, "name the format, onnx or trt-onnx or pt2 or aoti", model, tmp_path / "a.bin")
    refused(
        tmp_path, ValueError, "format is 'ncnn', must be one of onnx, trt-onnx, pt2, aoti", model, file, format="ncnn"
    )
    refused(tmp_path, ValueError, r"format onnx has the suffix \.onnx", model, file, format="onnx")
    refused(tmp_path, ValueError, r"dtype is torch\.float64", model, file, format="pt2", dtype=torch.float64)
    refused(tmp_path, ValueError, "opset is 19, must be 20 to 23", model, tmp_path / "a.onnx", opset=19)
    refused(tmp_path, FileNotFoundError, "no file and no shipped model", "nothing", file, format="pt2")
    missing = tmp_path / "no" / "a.pt2"
    refused(tmp_path, FileNotFoundError, f"cannot write into {missing.parent}: No such", model, missing, format="pt2")
    file.write_text("mine")
    refused(tmp_path, FileExistsError, "a.pt2 exists", model, file, format="pt2")
    assert file.read_text() == "mine"
    poisoned = small()
    poisoned.sft.weight[0, 0, 0, 0] = torch.nan
    refused(
        tmp_path, ValueError, r"DITN_Real: sft\.weight has 1 values of 324 that are not finite", poisoned, file,
        format="pt2", overwrite=True,
    )  # fmt: skip
    monkeypatch.setattr(sys.modules["ditn.export.export"], "find_spec", lambda name: None)
    refused(
        tmp_path, ditn.ExportError, r"format onnx needs onnx and onnxscript.*ditn-kernels\[deploy\]", model,
        tmp_path / "a.onnx",
    )  # fmt: skip


@needs_onnx
def test_a_runtime_that_is_not_installed(onnx_file, monkeypatch) -> None:
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    with pytest.raises(ditn.ExportError, match="needs onnxruntime or openvino, and neither is installed"):
        formats._open_onnx(onnx_file)


def test_a_file_that_is_wrong_is_not_kept(tmp_path, model, monkeypatch) -> None:
    """At one size of five only, and by little."""
    right = formats.FORMATS["pt2"]

    def open_wrongly(path: Path):
        run = right.open(path)
        return lambda image: run(image) + 1e-4 * (tuple(image.shape[2:]) == SIZES[3])

    wrong = formats.Format(".pt2", (), right.write, open_wrongly)
    monkeypatch.setitem(formats.FORMATS, "pt2", wrong)
    file = tmp_path / "a.pt2"
    refused(tmp_path, ditn.ExportError, "the file is wrong at 1 x 37 x 20: error 0.0001", model, file, format="pt2")
    assert ditn.export(model, file, format="pt2", verify=False).error is None
    assert file.exists()


def test_an_interruption_leaves_nothing(tmp_path, model, monkeypatch) -> None:
    def interrupted(job, path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    half = formats.Format(".pt2", (), interrupted, formats.FORMATS["pt2"].open)
    monkeypatch.setitem(formats.FORMATS, "pt2", half)
    refused(tmp_path, KeyboardInterrupt, "", model, tmp_path / "a.pt2", format="pt2")


def test_the_check_takes_one_thread_and_each_image_once(tmp_path, monkeypatch) -> None:
    """float64 is slow: the larger batch holds the smaller one's image, and threads would wait for each other."""
    model, exact, threads, calls = small(), [], set(), []

    def run(image: Tensor) -> Tensor:
        threads.add(torch.get_num_threads())
        calls.append(tuple(image.shape))
        return model(image)

    forward = ditn.DITN.forward

    def counted(self: ditn.DITN, image: Tensor) -> Tensor:
        if image.dtype == torch.float64:
            exact.append(image.shape[0] * image.shape[2] * image.shape[3])
        return forward(self, image)

    fake = formats.Format(".pt2", (), lambda job, path: path.write_bytes(b"file"), lambda path: run)
    monkeypatch.setitem(formats.FORMATS, "pt2", fake)
    monkeypatch.setattr(ditn.DITN, "forward", counted)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert ditn.export(model, tmp_path / "a.pt2", format="pt2").error < 1e-5
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert threads == {1}
    assert calls == [(batch, 3, *size) for size in SIZES for batch in (1, 3)]
    assert sum(exact) == 3 * sum(height * width for height, width in SIZES)
