# SPDX-License-Identifier: Apache-2.0
"""dilated_gate for sm_90a without a GPU; see test_hopper.py."""

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
OP = REGISTRY["dilated_gate"]
KERNELS = [kernel for kernel in cuda_code.HOPPER_KERNELS if kernel.operator == OP.name]


def arguments(norm: str, dtype: torch.dtype = torch.float16, **axes: int) -> dict:
    return OP.inputs(Sample("", {"B": 1, "C": 60, "H": 16, "W": 24} | axes, {"norm": norm}), dtype=dtype)


def is_chosen(kernels: HostKernels) -> bool:
    """The two kernels as they are counted, and perhaps one that packs weights before. For 64 channels they have planes
    with the biases in shared memory, and with ones and zeros: pieces of 16 bytes for each of 64."""
    alike = [(32 * one.warps, one.shared) for one in KERNELS]
    full = [
        (threads, -(-shared // 16) * 16 + planes * 1024)
        for (threads, shared), planes in zip(alike, (3, 5), strict=True)
    ]
    return kernels.launches()[-2:] in (alike, full)


def check(kernels: HostKernels, args: dict) -> None:
    exact = OP.reference(*(arg.double() if torch.is_tensor(arg) else arg for arg in args.values()))
    assert_as_good(kernels(OP, args), exact, OP.reference(*args.values()), OP.atol_of_max[args["x"].dtype], OP.name)
    assert is_chosen(kernels)


@needs_gcc
@pytest.mark.parametrize(
    ("norm", "dtype", "reverse"),
    [("tanh", torch.float16, False), ("layernorm", torch.float16, True), ("tanh", torch.bfloat16, False)],
)
def test_gate(norm: str, dtype: torch.dtype, reverse: bool) -> None:
    """The image ends inside a tile of either kernel."""
    check(HostKernels(800, hopper=True, reverse=reverse), arguments(norm, dtype, C=12, H=18, W=26))


# As many channels as there may be, and fewer than there are pairs of warps; odd numbers of channels; one pixel; blocks
# that take tiles several times; more images than one; what the 7x7 sees, all of it beyond the image.
SIZES = [
    ("none", {"C": 63, "H": 33, "W": 30}),
    *((norm, {"C": 64, "H": 17, "W": 26}) for norm in NORMS),
    ("tanh", {"C": 20, "H": 70, "W": 100}),
    ("layernorm", {"C": 57, "H": 40, "W": 15}),
    ("layernorm", {"C": 7, "H": 1, "W": 5, "B": 3}),
    ("tanh", {"C": 1, "H": 1, "W": 1}),
    ("none", {"C": 12, "H": 5, "W": 130}),
    ("tanh", {"C": 8, "H": 97, "W": 3}),
]


@needs_gcc
@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "reverse"), [(torch.float16, False), (torch.float16, True), (torch.bfloat16, True)], ids=str
)
@pytest.mark.parametrize(("norm", "axes"), SIZES, ids=str)
def test_gate_of_any_size(norm: str, axes: dict[str, int], dtype: torch.dtype, reverse: bool) -> None:
    check(HostKernels(800, hopper=True, reverse=reverse), arguments(norm, dtype, **axes))


@needs_gcc
@pytest.mark.parametrize("channels", [8, 64])
def test_pixels_outside_the_image_are_zeros(channels: int) -> None:
    """Where a = 0 and near = 0, whatever their biases are: large ones would show at the borders."""
    args = arguments("none", C=channels, H=9, W=12)
    for name in ("in_bias", "dw5_bias"):
        (full,) = (one for one in OP.axes if one.endswith(name))
        args[full] = torch.full_like(args[full], 4)
    check(HostKernels(800, hopper=True), args)


@needs_gcc
def test_what_it_cannot_is_left_to_the_others() -> None:
    kernels = HostKernels(800, hopper=True)
    kernels(OP, arguments("none", C=65, H=1, W=1))
    assert not is_chosen(kernels)
    kernels(OP, arguments("none", torch.float32, C=8, H=1, W=1))
    assert not is_chosen(kernels)
    kernels(OP, arguments("none", C=8, B=0))
    assert len(kernels.launches()) == 1  # only weights are packed
    args = arguments("none", C=8, H=1, W=1)
    kernels.library.ditn_cuda_hopper_turn(OP.name.encode(), 0)
    try:
        kernels(OP, args)
        assert not is_chosen(kernels)
    finally:
        kernels.library.ditn_cuda_hopper_turn(OP.name.encode(), 1)
    check(kernels, args)


@needs_gcc
def test_weights_that_stay_packed() -> None:
    kernels, args = HostKernels(800, hopper=True), arguments("none", C=8, H=1, W=1)
    kernels.library.keep_packed_weights(True)
    try:
        results = [kernels(OP, args) for _ in range(2)]
        assert len(kernels.launches()) == 2
        assert torch.equal(*results)
        check(kernels, args)
    finally:
        kernels.library.keep_packed_weights(False)


def bands(taps: np.ndarray) -> np.ndarray:
    """[line, x', x]: the factor b of mma.m16n8k16 as lanes put it together from one table of 8 places (taps.cuh): of
    d = 2 (l % 4) - l / 4 they hold the pairs at d, if d >= -1, or else at d + 8, which is the same place modulo 8 (PTX
    ISA, "Matrix fragments for mma.m16n8k16": words 0 and 1 are rows 2 (l % 4) and 8 further, column l / 4)."""
    size = len(taps)
    row = np.pad(taps, ((0, 0), (1, 8 - size)))  # from -1 on
    table = np.stack([row[:, place : place + 2] for place in range(8)])
    found = np.zeros((size, 16, 8))
    for lane in range(32):
        first, column = 2 * (lane % 4), lane // 4
        difference = first - column
        rows = first if difference >= -1 else first + 8
        found[:, rows : rows + 2, column] = table[(difference + 1) % 8]
    return found


@pytest.mark.parametrize(("size", "dilation"), [(5, 1), (7, 3)])
def test_lines_times_bands_are_a_convolution(size: int, dilation: int) -> None:
    """16 lines of 8 results, with columns of one phase side by side."""
    random = np.random.default_rng(0)
    taps, seen = (
        random.standard_normal((size, size)),
        random.standard_normal((16 + dilation * (size - 1), 16 * dilation)),
    )
    weight = torch.from_numpy(taps)[None, None]
    exact = F.conv2d(torch.from_numpy(seen)[None, None], weight, dilation=dilation)[0, 0].numpy()
    for phase in range(dilation):
        lines = seen[:, phase::dilation]
        result = sum(lines[dilation * i : dilation * i + 16] @ band for i, band in enumerate(bands(taps)))
        np.testing.assert_allclose(result, exact[:, phase::dilation][:, :8], rtol=0, atol=1e-12)


# Warp-instructions per 64 pixels of both kernels; those for all chips have 10,740.
BUDGETS = {torch.float16: 5_300, torch.bfloat16: 5_600}


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("dtype", BUDGETS, ids=str)
def test_machine_code(dtype: torch.dtype) -> None:
    found = {kernel: count for kernel, count in cuda_code.count_hopper(dtype).items() if kernel in KERNELS}
    assert all(count.fits and not count.stack for count in found.values())
    assert sum(count.instructions * 64 / kernel.pixels for kernel, count in found.items()) <= BUDGETS[dtype]
    for count in found.values():
        assert count.tensor_instructions == TENSOR_INSTRUCTIONS[dtype][count.kernel]
    # No product is missing. Of what the first kernel's block sees, 640 pixels of 64 channels; per channel the 5x5 for
    # 24 results out of 3 times 16 columns, and these sorted. Of 768 pixels in the second three products; the 7x7.
    near, far = (count.macs for count in found.values())
    assert near == 640 * 64 * 64 + 60 * 16 * 24 * (5 * 16 + 24)
    assert far == 768 * (3 * 64 * 64 + 60 * 7 * 16)


@needs_nvcc
@pytest.mark.slow
def test_machine_code_of_other_norms() -> None:
    """Products 64 deep, one and three; for 64 channels 80, the last 16 of which bring the bias."""
    path = cuda_code.cubin(capability=90, source=cuda_code.HOPPER_SOURCE)
    for kernel, products in (("_hopper_gate_near", 1), ("_hopper_gate_far", 3)):
        functions = cuda_code.functions(path, kernel)
        assert functions
        for name, code in functions.items():
            assert code.count("HGMMA.64x64x16.F32") == (5 if "ELb1E" in name else 4) * products


TENSOR_INSTRUCTIONS = {
    torch.float16: {
        "hopper_gate_near": ("HGMMA.64x64x16.F32", "HMMA.16816.F16", "HMMA.1688.F16"),
        "hopper_gate_far": ("HGMMA.64x64x16.F32", "HMMA.16816.F16"),
    },
    torch.bfloat16: {
        "hopper_gate_near": ("HGMMA.64x64x16.F32.BF16", "HMMA.16816.F32.BF16", "HMMA.1688.F32.BF16"),
        "hopper_gate_far": ("HGMMA.64x64x16.F32.BF16", "HMMA.16816.F32.BF16"),
    },
}
