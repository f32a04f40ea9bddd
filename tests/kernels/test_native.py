# SPDX-License-Identifier: Apache-2.0
"""The compiled library: its functions over their whole range, threads, levels, and what is said when it is not there.

That its operators are right is tested with all the others in test_ops.py, for the level that this machine chooses; here
the other levels are put through the same tests.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import torch.nn.functional as F
from conftest import PROJECT
from test_ops import NO_SENSE, without_sense

import ditn
import ditn_kernels
from benchmarks.oracle import published
from benchmarks.oracle.tolerance import assert_as_good
from ditn_kernels import REGISTRY, explain, use_backend
from ditn_kernels._axes import is_map
from ditn_kernels._op import NORMS
from ditn_kernels.backends import BACKENDS
from ditn_kernels.backends.native import _libraries
from ditn_kernels.backends.native._dispatch import NORM_CODES

REASON = _libraries.why_missing()
needs_library = pytest.mark.skipif(REASON is not None, reason=f"the compiled library {REASON}")
FUSED = [op for op in REGISTRY.values() if "cpp" in op.backends]
TRAINED = [op for op in FUSED if op.backends["cpp"].backward]


def levels() -> list[str]:
    """The levels that were compiled in and that this CPU runs."""
    flags = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
    needed = {"avx2": "avx2", "avx512": "avx512vl", "avx512bf16": "avx512_bf16", "amx": "amx_bf16", "neon": "asimd"}
    return [level for level in _libraries.build_info().get("levels", []) if needed[level] in flags]


def test_every_norm_has_a_code() -> None:
    assert set(NORM_CODES) == set(NORMS)


def test_the_library_is_there_where_it_can_be_built() -> None:
    """Else a broken build would only show as skipped tests."""
    if platform.system() != "Linux" or platform.machine() != "x86_64" or not shutil.which("g++"):
        pytest.skip(f"needs g++ on x86-64 Linux; this is {platform.system()} on {platform.machine()}")
    if "DITN_BUILD was none" in (REASON or ""):
        pytest.skip(f"the compiled library {REASON}")
    assert REASON is None


@needs_library
@pytest.mark.parametrize(("name", "ulps"), [("exp", 3), ("tanh", 6), ("erf", 6)])
def test_functions_over_every_magnitude(name: str, ulps: int) -> None:
    """Against float64, in units of the last place: every 4,099th float of either sign."""
    bits = np.arange(0, 2**32, 4099, dtype=np.uint64).astype(np.uint32)
    x = bits.view(np.float32)
    x = x[np.isfinite(x)]
    got = torch.ops.ditn_native.function(name, torch.from_numpy(x)).double().numpy()
    with np.errstate(all="ignore"):
        exact = getattr(torch.special if name == "erf" else torch, name)(torch.from_numpy(x).double()).numpy()
        expected = exact.astype(np.float32)
        normal = np.isfinite(expected) & (np.abs(exact) >= np.finfo(np.float32).tiny)
        error = np.abs(got - exact)[normal] / np.spacing(np.abs(expected[normal]).astype(np.float32))
        assert error.max() <= ulps, f"{name}({x[normal][error.argmax()]!r}) is {error.max():.1f} ulp off"
        # Below the normal numbers and beyond the largest: as close as these can be told apart.
        tiny = np.abs(exact) < np.finfo(np.float32).tiny
        assert (np.abs(got - exact)[tiny] <= np.finfo(np.float32).tiny).all()
        assert (got[np.isinf(expected)] == np.inf).all()


@needs_library
@pytest.mark.parametrize("name", ["exp", "tanh", "erf"])
def test_functions_of_infinities_and_nan(name: str) -> None:
    x = torch.tensor([math.inf, -math.inf, math.nan, 0.0])
    result = torch.ops.ditn_native.function(name, x).tolist()
    limits = {"exp": [math.inf, 0, 1], "tanh": [1, -1, 0], "erf": [1, -1, 0]}[name]
    assert [result[0], result[1], result[3]] == pytest.approx(limits)
    assert math.isnan(result[2])


@needs_library
@pytest.mark.parametrize("op", FUSED, ids=lambda op: op.name)
def test_results_do_not_depend_on_threads(op) -> None:
    args = op.inputs(op.samples[0]).values()
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(op(*args, backend="cpp"))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


@needs_library
@pytest.mark.parametrize("op", TRAINED, ids=lambda op: op.name)
def test_gradients_do_not_depend_on_threads(op) -> None:
    args = list(op.inputs(op.samples[0]).values())
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(gradients(op, args))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for result in results for a, b in zip(result, results[0], strict=True))


def gradients(op, args: list) -> tuple[torch.Tensor, ...]:
    overload = getattr(torch.ops.ditn, f"{op.name}_backward").default
    return overload(op.reference(*args).flip(2), *args, backend="cpp")


@needs_library
@pytest.mark.parametrize("op", FUSED, ids=lambda op: op.name)
def test_prepared_weights_give_the_same_for_any_map(op) -> None:
    """They are a copy, which outlives the tensors that it was made of."""
    for dtype in (torch.float32, torch.bfloat16):
        for sample in op.samples[:2]:
            args = op.inputs(sample, dtype=dtype)
            maps = [args[name] for name, axes in op.axes.items() if is_map(axes)]
            still = list(args.values())[len(maps) :]
            copies = [value.clone() if isinstance(value, torch.Tensor) else value for value in still]
            run = BACKENDS["cpp"].prepared(op, copies)
            del copies
            for given in (maps, [torch.cat([x, x.flip(0)]) for x in maps]):
                assert torch.equal(run(*given), op(*given, *still, backend="cpp"))


@needs_library
def test_prepared_weights_are_released() -> None:
    op = REGISTRY["image_tail"]
    x, skip, *weights = op.inputs(op.samples[0]).values()
    packed = 16 * 4 * 60 * 64  # bytes at least of each: Winograd's sixteen products of the body's [60, 60]

    def prepare(number: int) -> int:
        before = psutil.Process().memory_info().rss
        for _ in range(number):
            ditn_kernels.Prepared(op, *weights)(x, skip)
        return psutil.Process().memory_info().rss - before

    prepare(20)
    assert prepare(200) < 50 * packed


@needs_library
def test_two_python_threads_may_call_at_once() -> None:
    op = ditn_kernels.spatial_stage
    inputs = [list(op.inputs(op.samples[0], seed=seed).values()) for seed in range(4)]
    alone = [op(*args, backend="cpp") for args in inputs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda args: op(*args, backend="cpp"), inputs * 3))
    assert all(torch.equal(result, alone[i % 4]) for i, result in enumerate(together))


@needs_library
def test_two_python_threads_may_differentiate_at_once() -> None:
    op = ditn_kernels.dilated_gate
    inputs = [list(op.inputs(op.samples[0], seed=seed).values()) for seed in range(4)]
    alone = [gradients(op, args) for args in inputs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda args: gradients(op, args), inputs * 3))
    for i, result in enumerate(together):
        assert all(torch.equal(a, b) for a, b in zip(result, alone[i % 4], strict=True))


@needs_library
@pytest.mark.parametrize("op", TRAINED, ids=lambda op: op.name)
def test_gradients_are_compiled_for_every_sample(op) -> None:
    for sample in op.samples:
        for dtype in (torch.float32, torch.bfloat16):
            found = explain(op, *op.inputs(sample, dtype=dtype).values(), backward=True)
            assert found.chosen == "cpp", f"{sample.name}: {found}"


@needs_library
def test_the_gradient_of_nothing_is_zero() -> None:
    for op in TRAINED:
        args = list(op.inputs(next(sample for sample in op.samples if sample.name == "empty")).values())
        for name, gradient in zip(op.axes, gradients(op, args), strict=True):
            assert not gradient.any(), f"{op.name} d{name}"


@needs_library
def test_a_training_step_runs_no_plain_pytorch(monkeypatch) -> None:
    """Loss and gradients of a whole network, every operator forced off plain PyTorch, against float64."""

    def refuse(self, op, *, backward: bool):
        raise AssertionError(f"{op.name} {'backward' if backward else 'forward'} ran as plain PyTorch")

    model = ditn.DITN_Real(2).train()
    for parameter in model.parameters():  # a new SAL's scale is 0, which would leave its gate without a gradient
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    image, target = torch.rand(1, 3, 24, 40), torch.rand(1, 3, 48, 80)
    state = {key: value.detach().double().requires_grad_() for key, value in model.state_dict().items()}
    (published.network(state, image.double()) - target).square().mean().backward()
    monkeypatch.setattr(type(BACKENDS["torch"]), "kernel", refuse)
    (model(image) - target).square().mean().backward()
    for name, parameter in model.named_parameters():
        want = state[name].grad
        # float32 through 16 layers and back: at most 1.4e-6 of the largest was measured, and as much in plain PyTorch.
        bound = 1e-5 * float(want.abs().max())
        torch.testing.assert_close(parameter.grad.double(), want, rtol=0, atol=bound, msg=name)


@needs_library
def test_maps_that_no_tile_divides() -> None:
    """Sizes around strips of 160 columns and bands of 16 rows, where halos and borders meet."""
    for op in (ditn_kernels.dilated_gate, ditn_kernels.gated_ffn):
        sample = next(sample for sample in op.samples if not sample.options.get("patch_size"))
        for height, width in ((1, 1), (2, 160), (17, 161), (33, 129), (70, 5), (15, 340)):
            args = op.inputs(type(sample)("size", {**sample.axes, "B": 2, "H": height, "W": width}, sample.options))
            expected = op.reference(*(a.double() if isinstance(a, torch.Tensor) else a for a in args.values()))
            # float32, sums of up to 240 terms: a few units in the last place of the largest value.
            bound = 32 * torch.finfo(torch.float32).eps * float(expected.abs().max())
            result = op(*args.values(), backend="cpp").double()
            torch.testing.assert_close(result, expected, rtol=0, atol=bound, msg=f"{op.name} {height}x{width}")


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("op", [op for op in TRAINED if op.name != "inner_patch_attention"], ids=lambda op: op.name)
def test_gradients_on_maps_that_no_tile_divides(op, dtype: torch.dtype) -> None:
    """Sizes around the 16 x 48 tiles and 64-pixel runs, and more images than are taken at a time."""
    sample = next(sample for sample in op.samples if not sample.options.get("patch_size"))
    sizes = ((2, 1, 1), (2, 16, 48), (1, 17, 49), (2, 18, 50), (1, 15, 97), (1, 33, 129), (3, 64, 40))
    for batch, height, width in sizes:
        axes = {**sample.axes, "B": batch, "C": 12, "E": 20, "H": height, "W": width}
        args = op.inputs(type(sample)("size", axes, sample.options), dtype=dtype)
        grad = op.reference(*args.values()).flip(2)

        def autograd(dtype: torch.dtype, args: dict = args, grad: torch.Tensor = grad) -> tuple[torch.Tensor, ...]:
            leaves = [args[name].to(dtype).requires_grad_() for name in op.axes]
            return torch.autograd.grad(op.reference(*leaves, **sample.options), leaves, grad.to(dtype))

        found = zip(op.axes, gradients(op, list(args.values())), autograd(torch.float64), autograd(dtype), strict=True)
        for name, got, want, plain in found:
            what = f"{op.name} {height}x{width} d{name}"
            if dtype == torch.float32:
                # Sums of up to 7,680 terms: a hundred units in the last place of the largest value.
                bound = 100 * torch.finfo(torch.float32).eps * float(want.abs().max())
                torch.testing.assert_close(got.double(), want, rtol=0, atol=bound, msg=what)
            else:
                assert_as_good(got, want, plain, op.atol_of_max[dtype], what)


@needs_library
def test_nan_stays_nan_and_stays_where_it_was() -> None:
    op = ditn_kernels.inner_patch_attention
    args = op.inputs(op.samples[0])
    args["x"][0, 3, 2, 2] = torch.nan
    result = op(*args.values(), backend="cpp")
    assert result[0, :, :8, :8].isnan().all()
    assert not result[0, :, :8, 8:].isnan().any()
    assert not result[1].isnan().any()


@needs_library
@pytest.mark.parametrize(("name", "axes", "options", "message"), NO_SENSE)
def test_values_without_sense_do_not_crash(name: str, axes: dict, options: dict, message: str) -> None:
    """Where no Python has checked them: in `torch.ops.ditn_native` and in exported programs."""
    op, args = without_sense(name, axes, options)
    said = re.escape(message.split(",")[0])
    with pytest.raises(RuntimeError, match=f"ditn_native: {said}"):
        BACKENDS["cpp"].kernel(op, backward=False)(*args)
    if op.backends["cpp"].backward:
        with pytest.raises(RuntimeError, match=f"ditn_native: {said}"):
            BACKENDS["cpp"].kernel(op, backward=True)(args[0], *args)


@needs_library
@pytest.mark.parametrize("level", levels())
def test_far_negative_gates_are_shut(level: str) -> None:
    """From -10 on gelu(x) is less than 1e-21, which is nothing times 1000. NaN is no such gate. 19 hidden channels:
    whole vectors and a rest."""
    code = """
import torch
from ditn_kernels import gated_ffn
def inputs(gate, dtype):
    centre = torch.zeros(3, 3, 38)
    centre[1, 1] = 1
    bias = torch.tensor([gate] * 19 + [1000.0] * 19)
    x, none, out = torch.zeros(1, 1, 1, 1), torch.zeros(38), torch.ones(19, 1)
    return [t.to(dtype) for t in (x, none[None], bias, centre, none, out, none[:1])]
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    for gate in (-10.0, -1000.0, -6e4):
        args = inputs(gate, dtype)
        exact = [arg.double().requires_grad_() for arg in args]
        y, one = gated_ffn.reference(*exact, "none", 0), torch.ones(1, 1, 1, 1, dtype=dtype)
        found = {"y": (gated_ffn(*args, "none", 0, backend="cpp"), y)}
        if dtype != torch.float16:
            got = torch.ops.ditn.gated_ffn_backward(one, *args, "none", 0, backend="cpp")
            found |= dict(zip(gated_ffn.axes, zip(got, torch.autograd.grad(y, exact, one.double()))))
        for name, (got, want) in found.items():
            what = f"{name} of {gate} in {dtype}"
            torch.testing.assert_close(got.double(), want, rtol=0, atol=1e-15, msg=what)
    args = inputs(torch.nan, dtype)
    assert gated_ffn(*args, "none", 0, backend="cpp").isnan()
    if dtype != torch.float16:
        assert torch.ops.ditn.gated_ffn_backward(one, *args, "none", 0, backend="cpp")[2].isnan().all()
"""
    code = "from ditn_kernels.backends.native import _libraries; assert _libraries.why_missing() is None" + code
    command, environment = [sys.executable, "-c", code], os.environ | {"DITN_CPU_LEVEL": level}
    result = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@needs_library
@pytest.mark.slow
@pytest.mark.parametrize("level", levels())
def test_every_level_passes_the_operator_tests(level: str) -> None:
    code = (
        "import sys, pytest; from ditn_kernels.backends.native import _libraries;"
        "assert _libraries.why_missing() is None;"
        "chosen = 'test_backends_forward or test_backends_backward';"
        "sys.exit(pytest.main(['-k', chosen, 'tests/kernels/test_ops.py']))"
    )
    # Triton's interpreter would take minutes, for nothing that a level of the CPU changes.
    environment = os.environ | {"DITN_CPU_LEVEL": level, "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    passed = re.search(r"(\d+) passed", result.stdout)
    assert passed
    forward = sum(len(op.samples) for op in REGISTRY.values())
    backward = sum(sample.name != "empty" for op in REGISTRY.values() if op.backward for sample in op.samples)
    assert int(passed[1]) == 3 * (forward + backward)  # float32, float16, bfloat16


@needs_library
@pytest.mark.parametrize("level", levels())
def test_halves_are_read_and_rounded_as_torch_does(level: str) -> None:
    """The sum of two channels is exact in float32 for these numbers; its rounding to 16 bits must be torch's, bit for
    bit. Every finite number of 16 bits comes in that is not subnormal, as AVX512-BF16 takes those for zero. Four rows
    apart, since the convolution adds and subtracts neighbours before it multiplies."""
    code = """
import torch
bits = torch.arange(-(2**15), 2**15, dtype=torch.int32)
for dtype in (torch.bfloat16, torch.float16):
    a = bits.to(torch.int16).view(dtype)
    b = a * (0.125 * (bits % 7 + 1)).to(dtype)
    kept = a.isfinite() & (torch.minimum(a.abs(), b.abs()) >= torch.finfo(dtype).tiny)
    a, b = a[kept], b[kept]
    assert len(a) > 55_000, len(a)
    weight = torch.zeros(3, 3, 2, 1, dtype=dtype)
    weight[1, 1] = 1
    image = torch.zeros(1, 4 * len(a), 1, 2, dtype=dtype)
    image[0, ::4, 0] = torch.stack((a, b), dim=-1)
    got = torch.ops.ditn_native.image_head(image, weight, torch.zeros(1, dtype=dtype))[0, ::4].flatten()
    want = (a.float() + b.float()).to(dtype)
    assert torch.equal(got.view(torch.int16), want.view(torch.int16)), got[got != want]
    special = torch.tensor([torch.inf, -torch.inf, torch.nan], dtype=dtype)
    got = torch.ops.ditn_native.layer_norm2d(special.reshape(1, 3, 1, 1), *torch.zeros(2, 1, dtype=dtype), 1e-5)
    assert got.isnan().all(), got
"""
    code = "from ditn_kernels.backends.native import _libraries; assert _libraries.why_missing() is None" + code
    environment = os.environ | {"DITN_CPU_LEVEL": level}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@needs_library
@pytest.mark.parametrize("size", [(48, 64), (21, 37)], ids=str)
def test_bfloat16_network_is_as_good_as_autocast(size: tuple[int, int]) -> None:
    """The shipped weights on a picture without noise, root mean square error to float64: against the published formula
    under PyTorch's autocast. Most of either error is the rounding of the result; 2 % are the chance of the rest."""
    model = ditn.load("ditn-real-x4").requires_grad_(False)
    image = F.interpolate(torch.rand(1, 3, 6, 8), size, mode="bicubic").clamp(0, 1)
    state = model.state_dict()
    exact = published.network({name: value.double() for name, value in state.items()}, image.double())
    with torch.autocast("cpu", torch.bfloat16):
        autocast = published.network(state, image)
    with use_backend("cpp"):
        fused = model.bfloat16()(image.bfloat16())
    error, allowed = ((y.double() - exact).square().mean().sqrt() for y in (fused, autocast))
    assert error <= 1.02 * allowed


@needs_library
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc and RLIMIT_DATA")
def test_full_memory_is_said_in_words_that_are_known() -> None:
    """By which a tile that is too large is known. In a process that may have 200 MB more, for maps of 38 MB."""
    code = """
import resource, torch
from ditn_kernels import Prepared, is_out_of_memory, tanh_affine, use_backend
torch.set_num_threads(1)
large = torch.rand(1, 60, 400, 400).contiguous(memory_format=torch.channels_last)
weights = torch.rand(60, 60), torch.rand(60)
used = int(open("/proc/self/statm").read().split()[5]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_DATA, (used + 200 * 2**20, resource.RLIM_INFINITY))
with use_backend("cpp"):
    for run in (Prepared(tanh_affine, *weights), lambda x: tanh_affine(x, *weights)):
        kept = []
        try:
            for _ in range(100):
                kept.append(run(large))
        except RuntimeError as error:
            assert kept and is_out_of_memory(error), error
            assert "ditn_native: out of memory, there is no room for a tensor of 1 x 400 x 400 x 60" in str(error)
        else:
            raise AssertionError("there was room")
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@needs_library
def test_a_level_that_is_not_there_is_a_reason() -> None:
    code = "from ditn_kernels.backends.native import _libraries; print(_libraries.why_missing())"
    environment = os.environ | {"DITN_CPU_LEVEL": "avx9"}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=True)
    assert "DITN_CPU_LEVEL is avx9, compiled are" in result.stdout


def test_without_the_library_there_is_a_reason_and_plain_pytorch_runs(monkeypatch, tmp_path) -> None:
    (tmp_path / "build_info.json").write_text(json.dumps({"reason": "is not built: no C++ compiler was found"}))
    monkeypatch.setattr(_libraries, "FOLDER", tmp_path)
    _libraries.why_missing.cache_clear()
    _libraries.build_info.cache_clear()
    try:
        op = ditn_kernels.dilated_gate
        found = explain(op, *op.inputs(op.samples[0]).values())
        assert found.chosen == "torch"
        assert found.refusals["cpp"] == ("is not built: no C++ compiler was found",)
    finally:
        monkeypatch.undo()
        _libraries.why_missing.cache_clear()
        _libraries.build_info.cache_clear()


@needs_library
def test_the_library_needs_no_python_and_no_unstable_torch() -> None:
    """One file serves every Python and every torch from 2.10 on: it may use libtorch's C shims only."""
    if platform.system() != "Linux":
        pytest.skip("reads symbols with nm, from Linux' binutils")
    library = _libraries.FOLDER / "_C.so"
    listed = subprocess.run(["nm", "-D", "--undefined-only", str(library)], capture_output=True, text=True, check=True)
    symbols = [line.split()[-1] for line in listed.stdout.splitlines()]
    assert any(symbol.startswith("aoti_torch_") for symbol in symbols)
    unstable = [
        s for s in symbols if s.startswith(("Py", "_Py", "_ZN3c10", "_ZNK3c10", "_ZN2at", "_ZNK2at", "_ZN5torch"))
    ]
    assert not unstable
