# SPDX-License-Identifier: Apache-2.0
"""gated_ffn on a map for sm_90a without a GPU; see test_hopper.py."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cuda_host import HostKernels

from benchmarks.oracle.tolerance import assert_as_good
from benchmarks.tools import cuda_code
from ditn_kernels import REGISTRY
from ditn_kernels._op import NORMS, Sample

needs_gcc = pytest.mark.skipif(not shutil.which("g++"), reason="needs g++, which is not installed")
needs_nvcc = pytest.mark.skipif(cuda_code.NVCC is None, reason="needs nvcc, which is not installed")
OP = REGISTRY["gated_ffn"]
(KERNEL,) = (kernel for kernel in cuda_code.HOPPER_KERNELS if kernel.operator == OP.name)


def arguments(norm: str, dtype: torch.dtype = torch.float16, patch_size: int = 0, **axes: int) -> dict:
    sizes = {"B": 1, "C": 60, "E": 120, "H": 14, "W": 22} | axes
    return OP.inputs(Sample("", sizes, {"norm": norm, "patch_size": patch_size}), dtype=dtype)


def named(ending: str) -> str:
    (found,) = (name for name in OP.axes if name.endswith(ending))
    return found


def is_chosen(kernels: HostKernels) -> bool:
    """The kernel as it is counted. For 64 channels it has more in shared memory: for each slice planes with the biases
    and with zeros, and for each pixel a 1 and zeros, all of them pieces of 16 bytes."""
    full = KERNEL.shared + 16 * (4 * 2 * 64 + 2 * 16 * 24)
    return kernels.launches()[-1] in [(32 * KERNEL.warps, shared) for shared in (KERNEL.shared, full)]


def check(kernels: HostKernels, args: dict) -> None:
    exact = OP.reference(*(arg.double() if torch.is_tensor(arg) else arg for arg in args.values()))
    assert_as_good(kernels(OP, args), exact, OP.reference(*args.values()), OP.atol_of_max[args["x"].dtype], OP.name)
    assert is_chosen(kernels)


@needs_gcc
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_map(dtype: torch.dtype) -> None:
    """As much as a tile has results for, with all slices of the hidden channels."""
    check(HostKernels(800, hopper=True), arguments("tanh", dtype))


@needs_gcc
@pytest.mark.parametrize("axes", [{"C": 9, "H": 15, "W": 23}, {"C": 64, "H": 3, "W": 5}], ids=str)
def test_pixels_outside_the_image_are_zeros(axes: dict[str, int]) -> None:
    """Where hidden channels are 0, whatever their biases are: large ones would show at the borders. Four tiles, of
    which three end outside; and one, most of which is outside."""
    args = arguments("layernorm", E=7, **axes)
    args[named("in_bias")] = torch.full_like(args[named("in_bias")], 4)
    check(HostKernels(800, hopper=True, reverse=True), args)


# As many channels as there may be; a last slice with only the bias in it; odd numbers of channels, which end anywhere
# in four; blocks that take tiles several times, of several images; tiles that see nothing, or one pixel.
SIZES = [
    ("tanh", {}),
    ("layernorm", {}),
    ("none", {"B": 2, "C": 63, "E": 127, "H": 30, "W": 10}),
    ("tanh", {"B": 2, "C": 64, "E": 127, "H": 15, "W": 45}),
    ("layernorm", {"C": 64, "E": 32, "H": 29, "W": 45}),
    ("none", {"C": 64, "E": 63, "H": 30, "W": 10}),
    ("tanh", {"E": 96, "H": 43, "W": 70}),
    ("layernorm", {"B": 3, "C": 61, "E": 31, "H": 29, "W": 45}),
    ("layernorm", {"C": 62, "E": 65, "H": 14, "W": 44}),
    ("tanh", {"B": 7, "C": 1, "E": 1, "H": 1, "W": 1}),
    ("none", {"C": 8, "E": 32, "H": 1, "W": 130}),
    ("tanh", {"C": 12, "E": 33, "H": 97, "W": 3}),
]


@needs_gcc
@pytest.mark.slow
@pytest.mark.parametrize(
    ("i", "dtype"),
    [*((i, torch.float16) for i in range(len(SIZES))), *((i, torch.bfloat16) for i in (1, 2, 3, 4, 5, 8))],
    ids=str,
)
def test_map_of_any_size(i: int, dtype: torch.dtype) -> None:
    """Every other one with warps and lanes from the last to the first."""
    norm, axes = SIZES[i]
    check(HostKernels(800, hopper=True, reverse=i % 2 == 0), arguments(norm, dtype, **axes))


@needs_gcc
def test_large_hidden_values() -> None:
    """Gates of -600 have a GELU of 0, whatever their values are."""
    args = arguments("tanh", E=24, H=2, W=3)
    bias = args[named("dw_bias")]
    args[named("dw_bias")] = torch.cat([torch.full_like(bias[:24], -600), torch.full_like(bias[24:], 300)])
    check(HostKernels(800, hopper=True), args)


@needs_gcc
def test_what_it_cannot_is_left_to_the_others() -> None:
    kernels = HostKernels(800, hopper=True)
    pixel = {"E": 8, "H": 1, "W": 1}
    patch = {"C": 8, "E": 8, "H": 8, "W": 8}
    for args in (
        arguments("none", **pixel | {"C": 65}),
        arguments("none", **pixel | {"E": 128}),
        arguments("none", torch.float32, **pixel),
        arguments("none", patch_size=8, **patch),
        arguments("none", patch_size=4, **patch),
    ):
        kernels(OP, args)
        assert not is_chosen(kernels)
    kernels(OP, arguments("none", B=0))
    assert not kernels.launches()
    kernels.library.ditn_cuda_hopper_turn(OP.name.encode(), 0)
    try:
        kernels(OP, arguments("none", **pixel))
        assert not is_chosen(kernels)
    finally:
        kernels.library.ditn_cuda_hopper_turn(OP.name.encode(), 1)
    check(kernels, arguments("none", **pixel))


@needs_gcc
def test_weights_that_stay_packed() -> None:
    kernels = HostKernels(800, hopper=True)
    args = arguments("none", C=8, E=8, H=2, W=2)
    kernels.library.keep_packed_weights(True)
    try:
        check(kernels, args)
        assert len(kernels.launches()) == 2
        check(kernels, args)
        assert len(kernels.launches()) == 1
    finally:
        kernels.library.keep_packed_weights(False)


def bands(taps: np.ndarray) -> np.ndarray:
    """[line, x', x]: the factor b of mma.m16n8k16 as lanes put it together from one table of 5 places: of d = 2 (l % 4)
    - l / 4 they hold the pairs at d, if d >= -1, or else at d + 8 (PTX ISA, "Matrix fragments for mma.m16n8k16": words
    0 and 1 are rows 2 (l % 4) and 8 further, column l / 4)."""
    row = np.pad(taps, ((0, 0), (1, 2)))  # from -1 on
    table = [row[:, place : place + 2] for place in range(4)] + [np.zeros((3, 2))]
    found = np.zeros((3, 16, 8))
    for lane in range(32):
        first, column = 2 * (lane % 4), lane // 4
        difference = first - column
        rows = first if difference >= -1 else first + 8
        found[:, rows : rows + 2, column] = table[min((difference + 1) % 8, 4)]
    return found


def test_lines_times_bands_are_a_convolution() -> None:
    """Three blocks of 8 results from lines of 24 columns: the first two see 16 of these, the last one 8."""
    random = np.random.default_rng(0)
    taps, seen = random.standard_normal((3, 3)), random.standard_normal((16, 24))
    exact = F.conv2d(torch.from_numpy(seen)[None, None], torch.from_numpy(taps)[None, None])[0, 0].numpy()
    for block in range(3):
        depth = min(16, 24 - 8 * block)
        lines = seen[:, 8 * block : 8 * block + depth]
        result = sum(lines[i : i + 14] @ band[:depth] for i, band in enumerate(bands(taps)))
        expected = exact[:, 8 * block : 8 * block + 8]
        np.testing.assert_allclose(result[:, : expected.shape[1]], expected, rtol=0, atol=1e-12)


# Warp-instructions per 64 pixels; the kernel for all chips has 11,292.
BUDGETS = {torch.float16: 5_800, torch.bfloat16: 6_600}


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("dtype", BUDGETS, ids=str)
def test_machine_code(dtype: torch.dtype) -> None:
    """Warnings, spills and registers that are written too early are for test_hopper.py."""
    found = cuda_code.count_hopper(dtype)[KERNEL]
    usage = cuda_code.resources(cuda_code.cubin(capability=90, source=cuda_code.HOPPER_SOURCE))
    assert sum("_hopper_map_ffn_kernel" in name for name in usage) == 2 * len(NORMS) * len(BUDGETS)
    assert found.fits
    assert not found.stack
    assert found.instructions * 64 / KERNEL.pixels <= BUDGETS[dtype]
    # No product is missing: of 13 tiles of 384 pixels, 64 channels and 256 hidden ones; for each of these 16 lines of
    # three blocks of 8 results, from 16, 16 and 8 columns.
    assert found.macs == 13 * (384 * 64 * (256 + 128) + 256 * 3 * 16 * 8 * (16 + 16 + 8))
    products, taps = (".F32", ".F16") if dtype == torch.float16 else (".F32.BF16", ".F32.BF16")
    assert found.tensor_instructions == (
        *(f"HGMMA.64x{columns}x16{products}" for columns in (32, 64, 96)),
        *(f"HMMA.{size}{taps}" for size in (16816, 1688)),
    )


@needs_nvcc
@pytest.mark.slow
def test_machine_code_of_other_norms() -> None:
    """W_in's product 64 deep; for 64 channels 80, the last 16 of which bring the bias. W_out's 32, in two parts."""
    path = cuda_code.cubin(capability=90, source=cuda_code.HOPPER_SOURCE)
    functions = cuda_code.functions(path, "_hopper_map_ffn_kernel")
    assert len(functions) == 2 * len(NORMS) * len(BUDGETS)
    for name, code in functions.items():
        depths = {96: 5 if "ELb1E" in name else 4, 64: 2, 32: 2}
        assert {columns: code.count(f"HGMMA.64x{columns}x16.F32") for columns in depths} == depths
