# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels in float32 as a tensor core computes them, which truncates: `tensor_core.py` stands in for it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import tensor_core
import torch
import triton
import triton.language as tl
from conftest import PROJECT
from test_interpreted import quick_samples, samples
from test_ops import check_backward, check_forward

from benchmarks.oracle.tolerance import assert_as_good
from ditn_kernels import REGISTRY, Op
from ditn_kernels._op import Sample
from ditn_kernels.backends.triton._launch import precision
from ditn_kernels.backends.triton._math import dot

pytestmark = [
    pytest.mark.usefixtures("device", "truncating"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="here tests/kernels/test_ops.py asks the tensor core itself"),
]
COMPILE = """
import sys
import torch
from benchmarks.harness.cases import launches
from ditn_kernels import image_head
from ditn_kernels.backends.triton._compile import ptx
(sample,) = (sample for sample in image_head.samples if sample.name == "stream")
chip = int(sys.argv[1])
(launch,) = launches(image_head, sample, dtype=torch.float32, capability=chip)
print(ptx(launch, chip).text)
"""
# Their gradients take many seconds on even the smallest map. On whole ones `make test-slow` has those of the samples
# with LayerNorm, and `make test-all` the others.
LONG = ("inner_patch_attention", "gated_ffn", "dilated_gate")


@pytest.fixture
def truncating(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor_core.install(monkeypatch)


def cases(*, backward: bool) -> list:
    """The small maps of test_interpreted.py, and the whole ones, which are slow."""
    slow, exhaustive = [pytest.mark.slow], [pytest.mark.slow, pytest.mark.exhaustive]
    found = []
    for op in (op for op in REGISTRY.values() if "triton" in op.backends and (op.backward or not backward)):
        is_long = backward and op.name in LONG
        for sample in quick_samples(op, torch.float32, backward=backward):
            marks = slow if is_long else []
            found.append(pytest.param(op, sample, id=f"{op.name}-{sample.name}-small", marks=marks))
        for sample in samples(op, torch.float32, backward=backward):
            marks = exhaustive if is_long and sample.name != "layernorm" else slow
            found.append(pytest.param(op, sample, id=f"{op.name}-{sample.name}-whole", marks=marks))
    return found


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(("op", "sample"), cases(backward=False))
def test_forward(op: Op, sample: Sample) -> None:
    check_forward(op, sample, torch.float32, ["triton"])


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(("op", "sample"), cases(backward=True))
def test_backward(op: Op, sample: Sample) -> None:
    check_backward(op, sample, torch.float32, ["triton"])


@triton.jit
def _sum_of_products_kernel(
    a_ptr,
    b_ptr,
    y_ptr,
    rounds,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """y = a b, K terms at a time."""
    m = tl.arange(0, M)
    n = tl.arange(0, N)
    y = tl.zeros((M, N), tl.float32)
    for first in range(0, rounds * K, K):
        k = first + tl.arange(0, K)
        a = tl.load(a_ptr + m[:, None] * (rounds * K) + k[None, :])
        b = tl.load(b_ptr + k[:, None] * N + n[None, :])
        y = dot(a, b, y, PRECISION)
    tl.store(y_ptr + m[:, None] * N + n[None, :], y)


@pytest.mark.parametrize("precision", ["tf32x3", "tf32x4"])
@pytest.mark.parametrize("depth", [32, 64, 128])
def test_a_long_sum_of_products(depth: int, precision: str) -> None:
    """All of them positive: the tensor core would cut something off every partial sum."""
    a, b, y = torch.rand(16, 2048), torch.rand(2048, 32), torch.empty(16, 32)
    _sum_of_products_kernel[(1,)](a, b, y, 2048 // depth, M=16, N=32, K=depth, PRECISION=precision)
    assert_as_good(y, a.double() @ b.double(), a @ b, 2.0**-23, f"{precision}, {depth} terms at a time")


def test_the_tensor_core_reads_ten_bits_and_truncates() -> None:
    def product(a: list[float], b: list[float], accumulator: float) -> float:
        row, column = np.array([a], np.float32), np.array(b, np.float32)[:, None]
        return float(tensor_core.multiplied(row, column, np.array([[accumulator]], np.float32))[0, 0])

    unit = 2.0**-23
    assert product([1 + 2**-10], [1.0], 0) == 1 + 2**-10
    assert product([1 + 2**-11], [1.0], 0) == 1
    assert product([1.75], [unit], 1) == 1 + unit  # the nearest would be 1 + 2 unit
    assert product([-1.75], [unit], -1) == -1 - unit
    assert product([-1.0], [unit / 4], 1) == 1 - unit / 2  # the nearest would be 1
    assert product([0.5] * 8, [unit] * 8, 1) == 1 + 4 * unit  # one instruction: exact sum
    assert product([0.5] + [0] * 7 + [0.5] + [0] * 7, [unit] * 16, 1) == 1  # two: each half is lost


def test_plain_tf32_is_for_those_who_allow_it() -> None:
    """By PyTorch's old setting or by its new one, after which the old one cannot be read."""
    products = torch.backends.cuda.matmul
    assert [precision(80, gradient=gradient) for gradient in (False, True)] == ["tf32x3", "tf32x4"]
    try:
        products.allow_tf32 = True
        assert precision(80, gradient=False) == "tf32"
        products.allow_tf32 = False
        products.fp32_precision = "tf32"
        assert precision(80, gradient=False) == "tf32"
    finally:
        products.allow_tf32 = False
        products.fp32_precision = "none"


@pytest.mark.slow
@pytest.mark.parametrize(("chip", "accumulators"), [(80, 4), (90, 1)])
def test_compiled_sums_begin_anew(chip: int, accumulators: int) -> None:
    """A convolution of 64 channels, padded, goes from tap to tap. Each begins with accumulators of its own, on sm_80
    one for each of a warp's four tiles of 16 x 8, and into them go 64 / 8 instructions for each of three products. Then
    there are as many rounded additions as accumulators have values."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", COMPILE, str(chip)]
    text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=PROJECT, env=environment).stdout
    products = re.findall(r"mma[._]\S*\.tf32\S* \{ *(%r\d+), *([^}]*)\}", text)
    first_registers = Counter(first for first, _ in products)
    assert sorted(first_registers.values()) == [3 * 64 // 8] * accumulators
    registers = 1 + len(products[0][1].split(","))
    assert text.count("add.rn.f32") == accumulators * registers
