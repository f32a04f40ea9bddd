# SPDX-License-Identifier: Apache-2.0
"""The kernels for sm_90a without a GPU: run on the host, where wgmma, its descriptors, named barriers and bulk copies
are spelled out and races are looked for (tests/cuda_shim/hopper, races.h); and their machine code."""

from __future__ import annotations

import re
import shutil

import pytest
import torch
from cuda_host import HostKernels

from benchmarks.oracle.tolerance import assert_as_good
from benchmarks.tools import cuda_code, sass
from ditn_kernels import REGISTRY
from ditn_kernels._op import NORMS, Sample
from ditn_kernels.backends.native import _dispatch, _hopper

needs_gcc = pytest.mark.skipif(not shutil.which("g++"), reason="needs g++, which is not installed")
needs_nvcc = pytest.mark.skipif(cuda_code.NVCC is None, reason="needs nvcc, which is not installed")
OP = REGISTRY["inner_patch_stage"]
# A block has four warpgroups, and the kernels for all chips fewer.
THREADS = 512


def sample(norm: str, patch_size: int = 8, **axes: int) -> Sample:
    return Sample(
        "", {"B": 1, "L": 1, "C": 60, "E": 120, "H": 8, "W": 8} | axes, {"norm": norm, "patch_size": patch_size}
    )


def is_chosen(kernels: HostKernels) -> bool:
    return any(threads == THREADS for threads, _ in kernels.launches())


def check(kernels: HostKernels, args: dict) -> None:
    exact = OP.reference(*(arg.double() if torch.is_tensor(arg) else arg for arg in args.values()))
    assert_as_good(kernels(OP, args), exact, OP.reference(*args.values()), OP.atol_of_max[args["x"].dtype], OP.name)
    assert is_chosen(kernels)


@needs_gcc
@pytest.mark.parametrize(
    ("norm", "channels", "dtype", "reverse"),
    [
        *((norm, 60, torch.float16, False) for norm in NORMS),
        ("tanh", 60, torch.float16, True),
        ("tanh", 60, torch.bfloat16, False),
        ("tanh", 64, torch.float16, True),
    ],
)
def test_stage(norm: str, channels: int, dtype: torch.dtype, reverse: bool) -> None:
    """Two patches, which a pair of warpgroups shares."""
    check(HostKernels(800, hopper=True, reverse=reverse), OP.inputs(sample(norm, C=channels, W=16), dtype=dtype))


# As many channels as there may be; blocks that take patches several times, and the last time fewer than four; odd
# numbers of channels; a second pass over the hidden channels with only the bias or one channel in it; no layers.
SIZES = [
    sample("tanh", L=4, C=63, E=127, H=16, W=24),
    sample("tanh", L=2, C=64, E=127, H=16, W=24),
    sample("layernorm", L=2, C=64, E=63, H=8, W=40),
    sample("none", L=2, C=64, E=64, H=24, W=8),
    sample("layernorm", B=3, L=2, H=16, W=48),
    sample("none", L=3, C=61, E=63, H=24, W=8),
    sample("tanh", B=2, L=2, C=1, E=1, H=8, W=40),
    sample("layernorm", L=2, C=57, E=64, H=8, W=40),
    sample("none", L=0, C=8, E=5),
]


@needs_gcc
@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "reverse"), [(torch.float16, False), (torch.float16, True), (torch.bfloat16, True)], ids=str
)
@pytest.mark.parametrize("one", SIZES, ids=lambda one: f"{one.options['norm']}-{one.axes['C']}")
def test_stage_of_any_size(one: Sample, dtype: torch.dtype, reverse: bool) -> None:
    check(HostKernels(800, hopper=True, reverse=reverse), OP.inputs(one, dtype=dtype))


@needs_gcc
@pytest.mark.parametrize(
    ("temperature", "dtype"), [(100.0, torch.float16), (-90.0, torch.float16), (100.0, torch.bfloat16)]
)
def test_large_temperatures(temperature: float, dtype: torch.dtype) -> None:
    """2 to the power of the scores would overflow, or vanish, if nothing were subtracted."""
    args = OP.inputs(sample("tanh"), dtype=dtype)
    (name,) = (name for name in OP.axes if name.endswith("temperature"))
    args[name] = torch.full_like(args[name], temperature)
    check(HostKernels(800, hopper=True), args)


@needs_gcc
def test_large_hidden_values() -> None:
    """Gates of -600 have a GELU of 0, whatever their values are."""
    args = OP.inputs(sample("tanh"), dtype=torch.float16)
    (name,) = (name for name in OP.axes if name.endswith("dw_bias"))
    args[name] = torch.cat([torch.full_like(args[name][:, :120], -600), torch.full_like(args[name][:, 120:], 300)], 1)
    check(HostKernels(800, hopper=True), args)


@needs_gcc
def test_what_it_cannot_is_left_to_the_others() -> None:
    kernels = HostKernels(800, hopper=True)
    for one in (sample("none", L=0, C=65), sample("none", L=0, E=128), sample("none", patch_size=4, C=8, E=8)):
        kernels(OP, OP.inputs(one, dtype=torch.float16))
        assert not is_chosen(kernels), one
    kernels(OP, OP.inputs(sample("none", L=0), dtype=torch.float32))
    assert not is_chosen(kernels)
    other_chip = HostKernels(800)
    other_chip(OP, OP.inputs(sample("none", L=0), dtype=torch.float16))
    assert not is_chosen(other_chip)


@needs_gcc
def test_bfloat16_has_no_other_kernels() -> None:
    """What these cannot is an error, should it be called in spite of `why_not`; no pixels are none."""
    kernels, support = HostKernels(800, hopper=True), OP.backends["cuda"].forward_in[torch.bfloat16]
    for one in (sample("none", L=0, C=65), sample("none", L=0, E=128), sample("none", patch_size=4, C=8, E=8)):
        args = OP.inputs(one, dtype=torch.bfloat16)
        with pytest.raises(
            RuntimeError, match=r"inner_patch_stage in bfloat16 has kernels for compute capability 9\.0"
        ):
            kernels(OP, args)
        assert any("takes" in reason for reason in support.why_not(args, backward=False))
    kernels(OP, OP.inputs(sample("none", L=0, B=0), dtype=torch.bfloat16))
    args = OP.inputs(sample("none", L=0, C=64, E=127), dtype=torch.bfloat16)
    kernels(OP, args)
    assert is_chosen(kernels)
    assert support.why_not(args, backward=False) == ["runs on cuda, the input is on cpu"]
    with pytest.raises(RuntimeError, match="inner_patch_stage in bfloat16"):
        HostKernels(800)(OP, args)


@needs_gcc
def test_it_can_be_turned_off() -> None:
    kernels = HostKernels(800, hopper=True)
    args = OP.inputs(sample("none", L=0), dtype=torch.float16)
    assert kernels.library.ditn_cuda_hopper_is_on(OP.name.encode())
    kernels.library.ditn_cuda_hopper_turn(OP.name.encode(), 0)
    try:
        kernels(OP, args)
        assert not is_chosen(kernels)
    finally:
        kernels.library.ditn_cuda_hopper_turn(OP.name.encode(), 1)
    kernels(OP, args)
    assert is_chosen(kernels)


@needs_gcc
def test_weights_that_stay_packed() -> None:
    """For these kernels and for those for all chips, which want them otherwise: neither takes those of the other."""
    kernels = HostKernels(800, hopper=True)
    args = OP.inputs(sample("none", C=8, E=8), dtype=torch.float16)
    kernels.library.keep_packed_weights(True)
    packings = []
    try:
        for on in (1, 0, 1, 0):
            kernels.library.ditn_cuda_hopper_turn(OP.name.encode(), on)
            result = kernels(OP, args)
            exact = OP.reference(*(arg.double() if torch.is_tensor(arg) else arg for arg in args.values()))
            assert_as_good(result, exact, OP.reference(*args.values()), OP.atol_of_max[torch.float16], OP.name)
            assert is_chosen(kernels) == on
            packings.append(len(kernels.launches()) - 1)
    finally:
        kernels.library.ditn_cuda_hopper_turn(OP.name.encode(), 1)
        kernels.library.keep_packed_weights(False)
    assert min(packings[:2]) > 0
    assert packings[2:] == [0, 0]


@needs_gcc
def test_the_backend_can_do_without(monkeypatch) -> None:
    """After a kernel of these was found wrong those for all chips are proved and serve. On trial few blocks do all."""
    kernels = HostKernels(800, hopper=True)
    monkeypatch.setattr(_hopper, "_library", lambda device: kernels.library)
    monkeypatch.setattr(_dispatch, "digest", lambda path: "0")
    backend, args, device = (
        _dispatch.Cuda(),
        OP.inputs(sample("none", L=0, W=200), dtype=torch.float16),
        torch.device("cuda"),
    )
    try:
        with _hopper.few_blocks(device):
            kernels(OP, args)
        assert kernels.blocks() == 3
        kernels(OP, args)
        assert kernels.blocks() == 5  # the multiprocessors that the shim has
        assert backend.identity(OP, device)["kernels"] == "sm_90a"
        assert not backend.fall_back(REGISTRY["tanh_affine"], device, torch.float16)
        assert not backend.fall_back(OP, device, torch.bfloat16)  # in which there is no other
        assert backend.identity(OP, device)["kernels"] == "sm_90a"
        assert backend.fall_back(OP, device, torch.float16)
        assert not backend.fall_back(OP, device, torch.float16)
        assert backend.identity(OP, device)["kernels"] == "all chips"
        kernels(OP, args)
        assert not is_chosen(kernels)
    finally:
        kernels.library.ditn_cuda_hopper_turn(OP.name.encode(), 1)


@needs_gcc
def test_the_kernel_that_is_counted_is_launched_so() -> None:
    kernels = HostKernels(800, hopper=True)
    kernels(OP, OP.inputs(sample("tanh", L=0), dtype=torch.float16))
    (named,) = (kernel for kernel in cuda_code.HOPPER_KERNELS if kernel.operator == OP.name)
    assert kernels.launches()[-1] == (32 * named.warps, named.shared)


def registers_written(name: str) -> int:
    """How many, one behind the other, by an instruction of this name, if it writes any."""
    if ".128" in name or "M88.4" in name or (name.startswith("HMMA") and ".F32" in name):
        return 4
    return 2 if ".64" in name or "WIDE" in name or name.startswith(("CS2R", "HMMA")) else 1


def written_too_early(code: str) -> list[str]:
    """The instructions that write to registers of products which have not been waited for: some releases of ptxas have
    lost sight of those (triton #11781)."""
    instructions = sass.parse(code)
    busy: set[int] = set()
    found = []
    for address in sorted(instructions):
        name, operands = instructions[address]
        registers = [int(number) for number in re.findall(r"\bR(\d+)", operands)]
        if name.startswith("HGMMA"):
            busy |= set(range(registers[0], registers[0] + int(name.split("x")[1]) // 2))  # the sums
            busy |= set(range(registers[1], registers[1] + 4)) if not re.match(r"R\d+, gdesc", operands) else set()
        elif name.startswith("WARPGROUP.DEPBAR"):
            if operands.endswith("0x0"):  # else the last ones are still computed
                busy.clear()
        elif registers and not name.startswith(("ST", "BAR", "BRA")):
            written = set(range(registers[0], registers[0] + registers_written(name)))
            found += [f"{address:x} {name} {operands}"] if busy & written else []
    return found


@pytest.mark.parametrize(
    ("instruction", "early"),
    [
        ("FADD R88, R1, R2", True),
        ("FADD R87, R1, R2", False),
        ("LDS.64 R86, [R3]", False),
        ("LDS.64 R87, [R3]", True),
        ("IMAD.WIDE R87, R1, R2, R4", True),
        ("LDS.128 R84, [R3]", False),
        ("LDS.128 R85, [R3]", True),
        ("STS [R91], R9", False),
    ],
)
def test_registers_written_too_early_are_found(instruction: str, early: bool) -> None:
    lines = ["HGMMA.64x64x16.F32 R24, R88, gdesc[UR8], RZ, !UPT", instruction, "WARPGROUP.DEPBAR.LE gsb0, 0x0"]
    code = "".join(
        f"        /*{16 * i:04x}*/                   {line} ;\n" for i, line in enumerate([*lines, lines[1]])
    )
    assert bool(written_too_early(code)) == early


# Warp-instructions per 64 pixels of four layers; the kernel for all chips has 55,304. bfloat16's sums of taps are
# floats, which start with a bias and are rounded.
BUDGETS = {torch.float16: 24_500, torch.bfloat16: 27_500}


@needs_nvcc
@pytest.mark.slow
def test_machine_code() -> None:
    """No warning of nvcc, which would tell of products that are not asynchronous; no spill."""
    path = cuda_code.cubin(capability=90, source=cuda_code.HOPPER_SOURCE)
    usage = cuda_code.resources(path)
    functions = cuda_code.functions(path)
    assert len(functions) == len(usage)
    assert [found for code in functions.values() for found in written_too_early(code)] == []
    assert sum("_hopper_stage_kernel" in name for name in usage) == 2 * len(NORMS) * len(BUDGETS)
    assert {name: stack for name, (_, stack) in usage.items() if stack} == {}


@needs_nvcc
@pytest.mark.slow
def test_machine_code_of_other_norms() -> None:
    """Nine products 64 deep; for 64 channels six of them 80, the last 16 of which bring the bias."""
    path = cuda_code.cubin(capability=90, source=cuda_code.HOPPER_SOURCE)
    functions = cuda_code.functions(path, "_hopper_stage_kernel")
    assert len(functions) == 2 * len(NORMS) * len(BUDGETS)
    for name, code in functions.items():
        assert code.count("HGMMA.64x64x16.F32") == (9 * 4 + 6 if "ELb1E" in name else 9 * 4)


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("dtype", BUDGETS, ids=str)
def test_machine_code_of_the_network(dtype: torch.dtype) -> None:
    """wgmma and the taps' mma, of which none is missing."""
    ((kernel, found),) = (
        (one, count) for one, count in cuda_code.count_hopper(dtype).items() if one.operator == OP.name
    )
    assert found.fits
    assert not found.stack
    assert found.instructions * 64 / kernel.pixels <= BUDGETS[dtype]
    products, taps = (".F32", ".F16") if dtype == torch.float16 else (".F32.BF16", ".F32.BF16")
    assert found.tensor_instructions == (f"HGMMA.64x64x16{products}", f"HMMA.16816{taps}", f"HMMA.1688{taps}")
    # Of 64 channels and 128 pairs of hidden ones, where the network has 60 and 120; taps are 3 diagonals of 24 by 8.
    assert found.macs * 64 / kernel.pixels == 4 * (12 * 64**3 + 2 * 128 * 64 * 24)


@needs_gcc
@pytest.mark.parametrize(
    ("fault", "found"),
    [
        ("words without a barrier", "a race"),
        ("wgmma without a fence", "without a fence.proxy.async"),
        ("wgmma of planes without a wait", "a sum is wrong"),
        ("copy without a barrier", "a race"),
        ("copy without a wait", "a race"),
    ],
)
def test_the_shim_finds_faults(fault: str, found: str) -> None:
    kernels = HostKernels(800)
    assert found in kernels.fault(fault)
    assert not kernels.fault(fault.split(" without ")[0])
