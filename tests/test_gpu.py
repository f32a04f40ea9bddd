# SPDX-License-Identifier: Apache-2.0
"""What only a GPU can show: memory beyond 2^31 elements, CUDA graphs, the official images in half precision. The
operators themselves are tested by test_ops.py, which runs on the GPU where there is one."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import warnings
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from conftest import CUDA, PROJECT
from networks import small
from safetensors.torch import load_file

import ditn
from benchmarks.harness import cases
from benchmarks.oracle import published
from benchmarks.oracle.tolerance import assert_as_good
from ditn.commands.cli import main
from ditn.commands.verify import EXPECTED_DB
from ditn.imaging.sample import sample_image
from ditn.inference.memory import predicted_peak
from ditn_kernels import REGISTRY, Op, _proof, explain, prove
from ditn_kernels._dispatch import reasons_against
from ditn_kernels._op import Sample
from ditn_kernels.backends.native import _hopper, _libraries

pytestmark = [pytest.mark.skipif(not CUDA, reason="needs a CUDA GPU"), pytest.mark.usefixtures("without_tf32")]
# 60 channels on 6016 x 6016 pixels are 2.17e9 elements: the last 66 rows lie beyond 2^31.
SIDE, BEYOND = 6016, 32
# Those and more rows than an operator reaches upwards (four SALs: 48), in whole patches.
CROP = 96


def gpu_ops(*, backward: bool) -> list:
    """Operators and the backends that have kernels for GPUs."""
    return [
        pytest.param(op, backend, id=f"{op.name}-{backend}")
        for op in REGISTRY.values()
        for backend in ("triton", "cuda")
        if (support := op.backends.get(backend)) and (not backward or torch.float16 in support.backward)
    ]


def large(op: Op) -> dict:
    """The operator's first sample in float16, on the large map; drawn on the GPU."""
    sample = cases.enlarged(op.samples[0], SIDE, SIDE)
    torch.cuda.empty_cache()
    needed = 8 * 2 * 64 * SIDE**2  # eight maps of 64 channels
    free = torch.cuda.mem_get_info()[0]
    if free < needed:
        pytest.skip(f"needs {needed / 2**30:.0f} GiB of free GPU memory, there are {free / 2**30:.0f}")
    return cases.inputs(op, sample, dtype=torch.float16, device="cuda")


def cropped(op: Op, args: dict, dtype: torch.dtype) -> dict:
    """The same arguments for the last CROP rows alone."""
    activations = {name for name, axes in op.axes.items() if axes.startswith("B ")}
    crop = {name: value[:, :, -CROP:] if name in activations else value for name, value in args.items()}
    return {name: value.to(dtype) if torch.is_tensor(value) else value for name, value in crop.items()}


@pytest.mark.xdist_group("large")  # one at a time
@pytest.mark.parametrize(("op", "backend"), gpu_ops(backward=False))
def test_forward_beyond_two_to_the_31(op: Op, backend: str) -> None:
    args = large(op)
    if reasons := reasons_against(op, backend, args):
        pytest.skip(", ".join(reasons))
    result = op(*args.values(), backend=backend)
    rows = BEYOND * result.shape[2] // SIDE
    exact, plain = (op.reference(**cropped(op, args, dtype))[:, :, -rows:] for dtype in (torch.float64, torch.float16))
    assert_as_good(result[:, :, -rows:], exact, plain, op.atol_of_max[torch.float16], op.name)


@pytest.mark.xdist_group("large")
@pytest.mark.parametrize(("op", "backend"), gpu_ops(backward=True))
def test_backward_beyond_two_to_the_31(op: Op, backend: str) -> None:
    """The gradient of the activation; those of the weights are sums over all of the map."""
    args = large(op)
    shape = op.output_shape(op.check(args), args)
    grad = torch.randn(shape, dtype=torch.float16, device="cuda").contiguous(memory_format=torch.channels_last)
    overload = getattr(torch.ops.ditn, f"{op.name}_backward").default
    result = overload(grad, *args.values(), backend=backend)[0]
    crop = grad[:, :, -CROP * shape[2] // SIDE :]
    exact, plain = (
        op.backward(crop.to(dtype), *cropped(op, args, dtype).values())[0][:, :, -BEYOND:]
        for dtype in (torch.float64, torch.float16)
    )
    assert_as_good(result[:, :, -BEYOND:], exact, plain, op.atol_of_max[torch.float16], f"{op.name} dx")


@pytest.mark.parametrize(
    ("dtype", "on"), [(torch.float16, True), (torch.float16, False), (torch.bfloat16, True)], ids=str
)
@pytest.mark.parametrize(
    ("op", "sample"),
    [
        pytest.param(op, sample, id=f"{op.name}-{sample.name}")
        for op in REGISTRY.values()
        if "cuda" in op.backends
        for sample in op.samples
        if sample.axes["B"]
    ],
)
def test_kernels_for_hopper_and_for_all_chips(op: Op, sample: Sample, dtype: torch.dtype, on: bool) -> None:
    """On a map on which persistent blocks take several pieces: right, and the same bits each time."""
    device = torch.device("cuda")
    if not _hopper.serves(op.name, device):
        pytest.skip("needs a GPU of compute capability 9.0 and the library's kernels of this operator for it")
    args = cases.inputs(op, cases.enlarged(sample, 544, 960), dtype=dtype, device="cuda")
    if reasons := reasons_against(op, "cuda", args):
        pytest.skip(", ".join(reasons))
    exact, plain = (
        op.reference(*(value.to(of) if torch.is_tensor(value) else value for value in args.values()))
        for of in (torch.float64, dtype)
    )
    with nullcontext() if on else _hopper.without([op.name], device):
        results = [op(*args.values(), backend="cuda") for _ in range(20)]
    assert_as_good(results[0], exact, plain, op.atol_of_max[dtype], op.name)
    assert all(torch.equal(results[0], one) for one in results)


@pytest.mark.parametrize("dtype", EXPECTED_DB, ids=str)
def test_golden_images_on_the_gpu(shared, dtype: torch.dtype) -> None:
    model = ditn.load(shared / "golden" / "DITN_Real_x4.pth", device="cuda", dtype=dtype)
    records = load_file(shared / "golden" / "ditn_real_x4.io.safetensors")
    for case in (key.removesuffix(".x") for key in records if key.endswith(".x")):
        expected = records[f"{case}.y"].double()
        result = model(records[f"{case}.x"].to("cuda", dtype)).double().cpu()
        noise = float((result - expected).square().mean()) / max(1.0, float(expected.abs().max())) ** 2
        assert -10 * np.log10(max(noise, 1e-30)) >= EXPECTED_DB[dtype], case


def test_every_operator_of_a_model_has_a_kernel() -> None:
    """float16, the GPU's type for inference: nothing of DITN-Real is left to plain PyTorch."""
    for op in REGISTRY.values():
        args = op.inputs(op.samples[0], dtype=torch.float16, device="cuda")
        assert explain(op, *args.values()).chosen != "torch", explain(op, *args.values())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*runs as plain PyTorch")
        ditn.load("ditn-real-x4", device="cuda", dtype=torch.float16)(sample_image().to("cuda", torch.float16))


def test_the_cuda_library_is_there_where_it_was_built() -> None:
    """Else a library that does not load would only show as tests that try fewer backends."""
    if "architectures" not in _libraries.build_info().get("cuda", {}):
        pytest.skip(f"the CUDA library {_libraries.why_no_cuda()}")
    assert _libraries.why_no_cuda() is None


def test_a_training_step_on_the_gpu() -> None:
    """Gradients of every parameter against the published formula in float64."""
    model = small(ditn.DITN_Real, dim=60).to("cuda").train().requires_grad_()
    image, target = torch.rand(2, 3, 24, 32, device="cuda"), torch.rand(2, 3, 48, 64, device="cuda")
    wide = {name: value.detach().double().requires_grad_() for name, value in model.state_dict().items()}
    usual = {name: value.detach().clone().requires_grad_() for name, value in model.state_dict().items()}
    (model(image) - target).square().mean().backward()
    (published.network(wide, image.double()) - target.double()).square().mean().backward()
    (published.network(usual, image) - target).square().mean().backward()
    for name, parameter in model.named_parameters():
        # float32 sums over 1,536 pixels in several orders.
        assert_as_good(parameter.grad, wide[name].grad, usual[name].grad, 1e-5, name)


def assert_same(result: torch.Tensor, expected: torch.Tensor) -> None:
    """To float32 rounding: a library may take another algorithm while it is recorded."""
    torch.testing.assert_close(result, expected, rtol=0, atol=2.0**-20 * float(expected.abs().max()))


def test_graphs_give_the_models_result() -> None:
    model = small().to("cuda")
    images = [torch.rand(1, 3, height, width, device="cuda") for height, width in ((16, 24), (9, 8), (16, 24))]
    captured = ditn.CudaGraphRunner(model)
    for _ in range(3):  # as it is, recorded, replayed
        results = [captured(image) for image in images]
        for image, result in zip(images, results, strict=True):
            assert_same(result, model(image))
    assert all(captured._pool.shapes.values())
    with torch.no_grad():
        model.sft.weight.mul_(2)
    for _ in range(3):
        assert_same(captured(images[0]), model(images[0]))
        assert not torch.equal(captured(images[0]), results[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_a_shipped_model_by_graphs(dtype: torch.dtype) -> None:
    model = ditn.load("ditn-real-x4", device="cuda", dtype=dtype)
    captured = ditn.CudaGraphRunner(model)
    for _ in range(3):
        image = torch.rand(1, 3, 45, 64, device="cuda", dtype=dtype)
        expected = model(image).float()
        # A step of the dtype at the largest value, as kernels may be chosen anew while they are recorded.
        bound = max(torch.finfo(dtype).eps, 2.0**-20) * float(expected.abs().max())
        torch.testing.assert_close(captured(image).float(), expected, rtol=0, atol=bound)


def test_graphs_keep_to_their_memory() -> None:
    """What PyTorch holds after shapes of many sizes is within `max_memory`, and given back when graphs are dropped."""
    model = ditn.load("ditn-real-x4", device="cuda", dtype=torch.float16)
    largest = (360, 640)
    budget = predicted_peak(model, largest[0] * largest[1], graph=True)
    captured = ditn.CudaGraphRunner(model, max_memory=budget)
    model(torch.rand(1, 3, 16, 16, device="cuda", dtype=torch.float16))
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    for height, width in ((180, 320), largest, (90, 160), (180, 320), largest, (352, 640), (640, 360)):
        for _ in range(2):
            captured(torch.rand(1, 3, height, width, device="cuda", dtype=torch.float16))
            torch.cuda.empty_cache()  # what lies outside of the graphs' pool
            assert torch.cuda.memory_reserved() - before <= budget
    held = torch.cuda.memory_reserved() - before
    captured._pool.drop()
    assert torch.cuda.memory_reserved() - before < held / 10  # weights as kernels read them stay


def test_graphs_on_other_streams() -> None:
    model = small().to("cuda")
    captured = ditn.CudaGraphRunner(model)
    streams = [torch.cuda.Stream() for _ in range(3)]
    images = [torch.rand(1, 3, 64, 96, device="cuda") for _ in range(30)]
    torch.cuda.synchronize()
    results = []
    for number, image in enumerate(images):
        with torch.cuda.stream(streams[number % 3]):
            results.append(captured(image))
    torch.cuda.synchronize()
    for image, result in zip(images, results, strict=True):
        assert_same(result, model(image))


def test_what_cannot_be_recorded_is_said() -> None:
    """In a process of its own, lest other tests suffer from what such a recording leaves behind."""
    code = """
        import pytest, torch, ditn
        class Synchronous(ditn.DITN_Real):
            def forward(self, image):
                image.sum().item()  # a graph cannot wait for the host
                return super().forward(image)
        model = Synchronous(2, dim=12, itls=1, sals=1).eval().requires_grad_(False).to("cuda")
        upscaler, other = ditn.Upscaler(model, guard="off"), ditn.Upscaler(model, guard="off", cuda_graph=False)
        image = torch.rand(1, 3, 8, 8)
        expected = other(image)
        upscaler(image)
        with pytest.warns(RuntimeWarning, match="runs without CUDA graphs, since recording one failed"):
            assert torch.equal(upscaler(image), expected)
        assert torch.equal(upscaler(image), expected)
        # Everything else goes on: random numbers, memory, other models' graphs.
        torch.rand(8, device="cuda")
        torch.cuda.empty_cache()
        other = ditn.CudaGraphRunner(ditn.DITN_Real(2, dim=12, itls=1, sals=1).eval().requires_grad_(False).to("cuda"))
        image = image.to("cuda")
        results = [other(image) for _ in range(3)]
        torch.testing.assert_close(results[2], results[0])
        assert all(other._pool.shapes.values())
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, cwd=PROJECT)


def test_upscaler_with_graphs_and_tiles() -> None:
    model = small().to("cuda")
    picture = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    for ensemble in (False, True):
        options = {"tile": 48, "self_ensemble": ensemble, "guard": "off"}
        expected = ditn.Upscaler(model, cuda_graph=False, **options)(picture)
        upscaler = ditn.Upscaler(model, **options)
        for _ in range(3):
            # One step of 255 where rounding tips over.
            assert np.abs(upscaler(picture).astype(int) - expected).max() <= 1
        assert all(upscaler._graphs.shapes.values())


def test_warmup_and_verify_on_the_gpu(capsys) -> None:
    assert main(["warmup", "--size", "64x48", "--training"]) == 0
    assert "_fwd" in capsys.readouterr().out
    assert main(["verify"]) == 0


def test_kernels_are_proved_on_the_gpu(monkeypatch, tmp_path) -> None:
    """In processes of their own, and by the first picture: nothing that serves it is refused."""
    monkeypatch.setenv("DITN_PROOF", "on")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(_proof, "_faults", {})
    found = list(prove("cuda", ["tanh_affine"]))
    assert {(one.backend, one.direction) for one in found} >= {("triton", "forward"), ("triton", "backward")}
    assert [one for one in found if one.fault] == []
    model = ditn.load("ditn-real-x4", device="cuda", dtype=torch.float16)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        model(sample_image().to("cuda", torch.float16))
    assert len(list((tmp_path / "ditn-kernels").glob("*.json"))) > len(found)
