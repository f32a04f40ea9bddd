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
import pytest
import torch
import torch.nn.functional as F

import ditn
import ditn_kernels
from benchmarks import published
from ditn_kernels import REGISTRY, _native, explain, use_backend

PROJECT = Path(__file__).parent.parent
REASON = _native.why_missing()
needs_library = pytest.mark.skipif(REASON is not None, reason=f"the compiled library {REASON}")
FUSED = [op for op in REGISTRY.values() if "cpu" in op.backends]


def levels() -> list[str]:
    """The levels that were compiled in and that this CPU runs."""
    flags = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
    needed = {"avx2": "avx2", "avx512": "avx512vl", "avx512bf16": "avx512_bf16", "neon": "asimd"}
    return [level for level in _native.build_info().get("levels", []) if needed[level] in flags]


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
            results.append(op(*args, backend="cpu"))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


@needs_library
def test_two_python_threads_may_call_at_once() -> None:
    op = ditn_kernels.spatial_stage
    inputs = [list(op.inputs(op.samples[0], seed=seed).values()) for seed in range(4)]
    alone = [op(*args, backend="cpu") for args in inputs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda args: op(*args, backend="cpu"), inputs * 3))
    assert all(torch.equal(result, alone[i % 4]) for i, result in enumerate(together))


@needs_library
def test_compiled_forward_and_plain_backward_make_a_gradient() -> None:
    """What training on a CPU runs by default, against float64 autograd through the definition."""
    op = ditn_kernels.gated_ffn
    args, options = op.inputs(op.samples[1]), op.samples[1].options
    assert explain(op, *args.values()).chosen == "cpu"
    leaves = [args[name].requires_grad_() for name in op.axes]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    found = torch.autograd.grad(op(*leaves, **options).square().sum(), leaves)
    expected = torch.autograd.grad(op.reference(*exact, **options).square().sum(), exact)
    for name, got, want in zip(op.axes, found, expected, strict=True):
        # float32 sums over 546 pixels: a hundred units in the last place of the largest value.
        bound = 100 * torch.finfo(torch.float32).eps * float(want.abs().max())
        torch.testing.assert_close(got.double(), want, rtol=0, atol=bound, msg=name)


@needs_library
def test_maps_that_no_tile_divides() -> None:
    """Sizes around strips of 96 columns and bands of 16 rows, where halos and borders meet."""
    for op in (ditn_kernels.dilated_gate, ditn_kernels.gated_ffn):
        sample = next(sample for sample in op.samples if not sample.options.get("patch_size"))
        for height, width in ((1, 1), (2, 96), (17, 97), (33, 129), (70, 5), (15, 200)):
            args = op.inputs(type(sample)("size", {**sample.axes, "B": 2, "H": height, "W": width}, sample.options))
            expected = op.reference(*(a.double() if isinstance(a, torch.Tensor) else a for a in args.values()))
            # float32, sums of up to 240 terms: a few units in the last place of the largest value.
            bound = 32 * torch.finfo(torch.float32).eps * float(expected.abs().max())
            result = op(*args.values(), backend="cpu").double()
            torch.testing.assert_close(result, expected, rtol=0, atol=bound, msg=f"{op.name} {height}x{width}")


@needs_library
def test_nan_stays_nan_and_stays_where_it_was() -> None:
    op = ditn_kernels.inner_patch_attention
    args = op.inputs(op.samples[0])
    args["x"][0, 3, 2, 2] = torch.nan
    result = op(*args.values(), backend="cpu")
    assert result[0, :, :8, :8].isnan().all()
    assert not result[0, :, :8, 8:].isnan().any()
    assert not result[1].isnan().any()


@needs_library
@pytest.mark.parametrize("level", levels())
def test_every_level_passes_the_operator_tests(level: str) -> None:
    code = (
        "import sys, pytest; from ditn_kernels import _native; assert _native.why_missing() is None;"
        "sys.exit(pytest.main(['-k', 'test_backends_forward', 'tests/test_ops.py']))"
    )
    environment = os.environ | {"DITN_CPU_LEVEL": level, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    passed = re.search(r"(\d+) passed", result.stdout)
    assert passed
    assert int(passed[1]) == 3 * sum(len(op.samples) for op in REGISTRY.values())  # float32, float16, bfloat16


@needs_library
@pytest.mark.parametrize("level", levels())
def test_halves_are_read_and_rounded_as_torch_does(level: str) -> None:
    """The sum of two channels is exact in float32 for these numbers; its rounding to 16 bits must be torch's, bit for
    bit. Every finite number of 16 bits comes in that is not subnormal, as dot products take those for zero."""
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
    image = torch.stack((a, b), dim=-1).reshape(1, -1, 1, 2)
    got = torch.ops.ditn_native.image_head(image, weight, torch.zeros(1, dtype=dtype)).flatten()
    want = (a.float() + b.float()).to(dtype)
    assert torch.equal(got.view(torch.int16), want.view(torch.int16)), got[got != want]
    special = torch.tensor([torch.inf, -torch.inf, torch.nan], dtype=dtype)
    got = torch.ops.ditn_native.layer_norm2d(special.reshape(1, 3, 1, 1), *torch.zeros(2, 1, dtype=dtype), 1e-5)
    assert got.isnan().all(), got
"""
    code = "from ditn_kernels import _native; assert _native.why_missing() is None" + code
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
    with use_backend("cpu"):
        fused = model.bfloat16()(image.bfloat16())
    error, allowed = ((y.double() - exact).square().mean().sqrt() for y in (fused, autocast))
    assert error <= 1.02 * allowed


@needs_library
def test_a_level_that_is_not_there_is_a_reason() -> None:
    code = "from ditn_kernels import _native; print(_native.why_missing())"
    environment = os.environ | {"DITN_CPU_LEVEL": "avx9"}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=True)
    assert "DITN_CPU_LEVEL is avx9, compiled are" in result.stdout


def test_without_the_library_there_is_a_reason_and_plain_pytorch_runs(monkeypatch, tmp_path) -> None:
    (tmp_path / "build_info.json").write_text(json.dumps({"reason": "is not built: no C++ compiler was found"}))
    monkeypatch.setattr(_native, "_FOLDER", tmp_path)
    _native.why_missing.cache_clear()
    _native.build_info.cache_clear()
    try:
        op = ditn_kernels.dilated_gate
        found = explain(op, *op.inputs(op.samples[0]).values())
        assert found.chosen == "torch"
        assert found.refusals["cpu"] == ("is not built: no C++ compiler was found",)
    finally:
        monkeypatch.undo()
        _native.why_missing.cache_clear()
        _native.build_info.cache_clear()


@needs_library
def test_the_library_needs_no_python_and_no_unstable_torch() -> None:
    """One file serves every Python and every torch from 2.10 on: it may use libtorch's C shims only."""
    if platform.system() != "Linux":
        pytest.skip("reads symbols with nm, from Linux' binutils")
    library = Path(_native.__file__).parent / "_C.so"
    listed = subprocess.run(["nm", "-D", "--undefined-only", str(library)], capture_output=True, text=True, check=True)
    symbols = [line.split()[-1] for line in listed.stdout.splitlines()]
    assert any(symbol.startswith("aoti_torch_") for symbol in symbols)
    unstable = [
        s for s in symbols if s.startswith(("Py", "_Py", "_ZN3c10", "_ZNK3c10", "_ZN2at", "_ZNK2at", "_ZN5torch"))
    ]
    assert not unstable
