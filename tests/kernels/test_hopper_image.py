# SPDX-License-Identifier: Apache-2.0
"""image_head and image_tail for sm_90a without a GPU; see test_hopper.py."""

from __future__ import annotations

import re
import shutil

import pytest
import torch
from cuda_host import HostKernels

from benchmarks.harness import cases
from benchmarks.oracle.tolerance import assert_as_good
from benchmarks.tools import cuda_code, sass
from ditn_kernels import REGISTRY, Op
from ditn_kernels._op import Sample

needs_gcc = pytest.mark.skipif(not shutil.which("g++"), reason="needs g++, which is not installed")
needs_nvcc = pytest.mark.skipif(cuda_code.NVCC is None, reason="needs nvcc, which is not installed")
HEAD, TAIL = REGISTRY["image_head"], REGISTRY["image_tail"]
KERNELS = [kernel for kernel in cuda_code.HOPPER_KERNELS if kernel.operator == TAIL.name]
THREADS = 512  # of a block, where the kernels for all chips have fewer


def arguments(op: Op, dtype: torch.dtype = torch.float16, **axes: int) -> dict:
    """`upscale` is the tail's option."""
    options = {"upscale": axes.pop("upscale")} if op is TAIL else {}
    return op.inputs(Sample("", {"B": 1, "C": 60} | axes, options), dtype=dtype)


def is_chosen(kernels: HostKernels) -> bool:
    return any(threads == THREADS for threads, _ in kernels.launches())


def check(kernels: HostKernels, op: Op, args: dict) -> None:
    exact = op.reference(*(arg.double() if torch.is_tensor(arg) else arg for arg in args.values()))
    assert_as_good(
        kernels(op, args), exact, op.reference(*args.values()), op.atol_of_max[next(iter(args.values())).dtype], op.name
    )


@needs_gcc
@pytest.mark.parametrize(
    ("dtype", "reverse"), [(torch.float16, False), (torch.float16, True), (torch.bfloat16, False)], ids=str
)
def test_tail(dtype: torch.dtype, reverse: bool) -> None:
    """Two tiles, in the second of which are two pixels of each line, and in the second squares of both one line."""
    kernels = HostKernels(800, hopper=True, reverse=reverse)
    check(kernels, TAIL, arguments(TAIL, dtype, D=48, H=9, W=34, upscale=4))
    assert is_chosen(kernels)


# Every number of columns of a product; outputs in two parts; squares whose lines are no multiple of four values, and
# channels that are none; as many as there may be, and one; one pixel; several images; blocks that take many tiles.
SIZES = [
    (TAIL, {"D": 48, "H": 18, "W": 70, "B": 2, "upscale": 4}),
    (TAIL, {"D": 27, "H": 9, "W": 7, "upscale": 3}),
    (TAIL, {"C": 33, "D": 12, "H": 33, "W": 40, "upscale": 2}),
    (TAIL, {"C": 64, "D": 108, "H": 17, "W": 7, "upscale": 6}),
    (TAIL, {"C": 64, "D": 128, "H": 1, "W": 33, "upscale": 8}),
    (TAIL, {"C": 1, "D": 3, "H": 1, "W": 1, "B": 3, "upscale": 1}),
    (TAIL, {"C": 8, "D": 50, "H": 5, "W": 65, "upscale": 5}),
    (HEAD, {"N": 60, "C": 60, "H": 18, "W": 40, "B": 2}),
    (HEAD, {"N": 4, "C": 126, "H": 9, "W": 8}),
    (HEAD, {"N": 37, "C": 61, "H": 20, "W": 5}),
]


@needs_gcc
@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "reverse"), [(torch.float16, False), (torch.float16, True), (torch.bfloat16, True)], ids=str
)
@pytest.mark.parametrize(("op", "axes"), SIZES, ids=lambda value: getattr(value, "name", ""))
def test_any_size(op: Op, axes: dict[str, int], dtype: torch.dtype, reverse: bool) -> None:
    kernels = HostKernels(800, hopper=True, reverse=reverse)
    kernels.library.ditn_cuda_hopper_blocks(2)
    try:
        check(kernels, op, arguments(op, dtype, **axes))
    finally:
        kernels.library.ditn_cuda_hopper_blocks(0)
    assert is_chosen(kernels)
    assert kernels.blocks() <= 2 * -(-axes.get("D", axes.get("C", 60)) // 64)


@needs_gcc
def test_what_it_cannot_is_left_to_the_others() -> None:
    kernels = HostKernels(800, hopper=True)
    left = (
        (TAIL, arguments(TAIL, C=65, D=3, H=1, W=1, upscale=1)),
        (TAIL, arguments(TAIL, torch.float32, C=8, D=3, H=1, W=1, upscale=1)),
        (HEAD, arguments(HEAD, N=65, C=8, H=1, W=1)),
        (HEAD, arguments(HEAD, N=3, C=60, H=1, W=1)),  # an image, for which there is a better one on all chips
    )
    for op, args in left:
        kernels(op, args)
        assert not is_chosen(kernels), op.name
    kernels = HostKernels(800)
    kernels(TAIL, arguments(TAIL, C=8, D=3, H=1, W=1, upscale=1))
    assert not is_chosen(kernels)


@needs_gcc
@pytest.mark.parametrize("op", [HEAD, TAIL], ids=lambda op: op.name)
def test_weights_that_stay_packed(op: Op) -> None:
    """For these kernels and for those for all chips, which want them otherwise; each operator has its own switch."""
    kernels = HostKernels(800, hopper=True)
    args = arguments(op, C=8, H=2, W=3, **({"N": 4} if op is HEAD else {"D": 3, "upscale": 1}))
    kernels.library.keep_packed_weights(True)
    launches = []
    try:
        for on in (1, 0, 1, 0):
            kernels.library.ditn_cuda_hopper_turn(op.name.encode(), on)
            check(kernels, op, args)
            assert is_chosen(kernels) == on
            launches.append(len(kernels.launches()))
    finally:
        kernels.library.ditn_cuda_hopper_turn(op.name.encode(), 1)
        kernels.library.keep_packed_weights(False)
    assert min(launches[:2]) > launches[2] == launches[3] == (2 if op is TAIL else 1)


@needs_gcc
def test_the_kernels_that_are_counted_are_launched_so() -> None:
    kernels = HostKernels(800, hopper=True)
    kernels(TAIL, arguments(TAIL, D=48, H=1, W=1, upscale=4))
    assert kernels.launches()[-2:] == [(32 * one.warps, one.shared) for one in KERNELS]


def sums_used_too_early(code: str) -> list[str]:
    """The instructions that name a register of sums between the product and the wait for it. There are two groups of
    sums: of one the products are computed while the other's are stored."""
    busy: set[str] = set()
    found = []
    for address, (name, operands) in sorted(sass.parse(code).items()):
        registers = re.findall(r"\bR\d+", operands)
        if name.startswith("HGMMA"):
            first, columns = int(registers[0][1:]), int(name.split("x")[1])
            busy |= {f"R{first + i}" for i in range(columns // 2)}
        elif name.startswith("WARPGROUP.DEPBAR") and operands.endswith("0x0"):
            busy.clear()
        elif busy & set(registers):
            found.append(f"{address:x} {name} {operands}")
    return found


def test_sums_used_too_early_are_found() -> None:
    lines = ["HGMMA.64x16x16.F32 R24, gdesc[UR8], RZ, !UPT", "FADD R1, R31, R2", "WARPGROUP.DEPBAR.LE gsb0, 0x1"]
    lines += ["FADD R30, R1, R2", "FADD R1, R32, R2", "WARPGROUP.DEPBAR.LE gsb0, 0x0", "FADD R31, R31, R2"]
    code = "".join(f"        /*{16 * i:04x}*/                   {line} ;\n" for i, line in enumerate(lines))
    assert [one.split()[0] for one in sums_used_too_early(code)] == ["10", "30"]


def stores_beside_products(instructions: list[tuple[str, str]]) -> int:
    """How many stores to global memory lie between a product and the wait for it."""
    under_way, found = False, 0
    for name, operands in instructions:
        if name.startswith("HGMMA"):
            under_way = True
        elif name.startswith("WARPGROUP.DEPBAR") and operands.endswith("0x0"):
            under_way = False
        found += under_way and name.startswith("STG")
    return found


# Warp-instructions per 64 pixels of both convolutions of the tail x4; those for all chips take 12,998.
BUDGET = 4_200


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_machine_code(dtype: torch.dtype) -> None:
    """No product is lost, all are asynchronous (nvcc warns of others), and other work is done meanwhile."""
    path = cuda_code.cubin(cuda_code.NETWORK, capability=90, source=cuda_code.HOPPER_SOURCE)
    named = f"_hopper_conv3x3_kernelI{'6__half' if dtype == torch.float16 else '13__nv_bfloat16'}"
    functions = cuda_code.functions(path, named)
    assert len(functions) == 5
    for mangled, code in functions.items():
        assert sums_used_too_early(code) == []
        instructions = [one for _, one in sorted(sass.parse(code).items())]
        assert sum(name.startswith("HGMMA") for name, _ in instructions) == 2 * 9 * 4  # squares, taps, 16 channels
        columns = int(re.findall(r"conv3x3_kernelI\w+Li(\d+)ELb", mangled)[0])
        assert stores_beside_products(instructions) >= 2 * columns / 16, (
            "a square is stored while nothing is multiplied"
        )
    counts = {kernel: found for kernel, found in cuda_code.count_hopper(dtype).items() if kernel in KERNELS}
    assert all(found.fits and not found.stack for found in counts.values())
    assert sum(found.instructions * 64 / kernel.pixels for kernel, found in counts.items()) <= BUDGET
    assert [found.macs / kernel.pixels for kernel, found in counts.items()] == [9 * 64 * 64, 9 * 64 * 48]
    pixels = cases.pixels(cases.framed_samples(TAIL)[0])
    assert all(cuda_code.on_map(kernel, found, pixels).blocks <= 132 for kernel, found in counts.items())
