# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels without a GPU: their logic, run on the host, and their machine code, compiled and looked at."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import PROJECT
from cuda_host import HostKernels

from benchmarks.compare import assert_as_good
from ditn_kernels import REGISTRY, Op
from ditn_kernels._op import Sample

pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="needs g++, which is not installed")
DTYPES = (torch.float16, torch.float32)
OPERATORS = [op for op in REGISTRY.values() if "cuda" in op.backends]
CASES = [pytest.param(op, sample, id=f"{op.name}-{sample.name}") for op in OPERATORS for sample in op.samples]


def check(kernels: HostKernels, op: Op, sample: Sample, dtype: torch.dtype) -> None:
    args = op.inputs(sample, dtype=dtype)
    support = dataclasses.replace(op.backends["cuda"], devices=())
    if reasons := support.why_not(args, backward=False):
        with pytest.raises(RuntimeError, match=op.name):
            kernels(op, args)
        pytest.skip(", ".join(reasons))
    exact = op.reference(*(arg.double() if torch.is_tensor(arg) else arg for arg in args.values()))
    plain = op.reference(*args.values())
    assert_as_good(kernels(op, args), exact, plain, op.floor[dtype], f"{op.name} {sample.name}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("op", "sample"), CASES)
def test_kernels_on_the_host(op: Op, sample: Sample, dtype: torch.dtype) -> None:
    """As sm_80 runs them: m16n8k16."""
    check(HostKernels(800), op, sample, dtype)


# Maps of one pixel, and some that no tile divides; as many channels and outputs as there may be.
SIZES = [
    ("gated_ffn", {"B": 1, "C": 1, "E": 1, "H": 1, "W": 1}, {"norm": "tanh", "patch_size": 0}),
    ("gated_ffn", {"B": 2, "C": 61, "E": 33, "H": 9, "W": 17}, {"norm": "layernorm", "patch_size": 0}),
    ("gated_ffn", {"B": 1, "C": 128, "E": 7, "H": 4, "W": 12}, {"norm": "none", "patch_size": 4}),
    ("gated_ffn", {"B": 1, "C": 66, "E": 120, "H": 32, "W": 16}, {"norm": "tanh", "patch_size": 16}),
    ("dilated_gate", {"B": 1, "C": 1, "H": 1, "W": 1}, {"norm": "none"}),
    ("dilated_gate", {"B": 2, "C": 64, "H": 25, "W": 25}, {"norm": "tanh"}),
    ("image_head", {"B": 1, "N": 128, "C": 128, "H": 3, "W": 17}, {}),
    ("image_tail", {"B": 1, "C": 61, "D": 128, "H": 9, "W": 1}, {"upscale": 4}),
    ("image_tail", {"B": 2, "C": 128, "D": 27, "H": 1, "W": 18}, {"upscale": 3}),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "axes", "options"), SIZES, ids=lambda value: "")
def test_any_size_on_the_host(name: str, axes: dict[str, int], options: dict, dtype: torch.dtype) -> None:
    check(HostKernels(800), REGISTRY[name], Sample("", axes, options), dtype)


@pytest.mark.parametrize("arch", [700, 750])
@pytest.mark.parametrize("op", OPERATORS, ids=lambda op: op.name)
def test_kernels_of_older_chips_on_the_host(op: Op, arch: int) -> None:
    check(HostKernels(arch), op, op.samples[0], torch.float16)


@pytest.mark.parametrize("op", OPERATORS, ids=lambda op: op.name)
def test_no_barrier_is_missing(op: Op) -> None:
    """Warps and lanes from the last to the first: who reads before it was written finds NaN."""
    check(HostKernels(800, reverse=True), op, op.samples[0], torch.float16)


@pytest.mark.slow
def test_kernels_under_sanitizers() -> None:
    """In a process of its own, which the sanitizers' libraries enter first."""
    libraries = [
        subprocess.run(["g++", f"-print-file-name={name}"], check=True, capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    # Python frees nothing at its end; a fiber's stack is not the one that the sanitizer knows.
    environment = os.environ | {"LD_PRELOAD": " ".join(libraries), "ASAN_OPTIONS": "detect_leaks=0"}
    command = [sys.executable, PROJECT / "tests" / "cuda_host.py", "800"]
    environment["PYTHONPATH"] = str(PROJECT)
    result = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert len(result.stdout.splitlines()) == 2 * len(OPERATORS)
