# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels without a GPU: their logic, run on the host, and their machine code, compiled and looked at.

test_ops.py runs them where there is a GPU and the library was built for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from conftest import PROJECT
from cuda_host import HostKernels

from benchmarks.harness import cases
from benchmarks.oracle.tolerance import assert_as_good
from benchmarks.tools import cuda_code, sass
from benchmarks.tools.estimate import CHIPS, Count
from ditn_kernels import REGISTRY, Op
from ditn_kernels._axes import is_map
from ditn_kernels._op import Sample

needs_gcc = pytest.mark.skipif(not shutil.which("g++"), reason="needs g++, which is not installed")
needs_nvcc = pytest.mark.skipif(cuda_code.NVCC is None, reason="needs nvcc, which is not installed")
DTYPES = (torch.float16, torch.float32)
# Those that run the kernels of others are in test_spatial_stage.py.
OPERATORS = [op for op in REGISTRY.values() if "cuda" in op.backends and not op.backends["cuda"].as_layers]
# Kernels of one call, where it takes more than one; a stage in float32 takes two for each layer.
LAUNCHES = {"dilated_gate": 2, "image_tail": 2}
CASES = [pytest.param(op, sample, id=f"{op.name}-{sample.name}") for op in OPERATORS for sample in op.samples]


def check(kernels: HostKernels, op: Op, sample: Sample, dtype: torch.dtype) -> None:
    args = op.inputs(sample, dtype=dtype)
    exact = op.reference(*(arg.double() if torch.is_tensor(arg) else arg for arg in args.values()))
    plain = op.reference(*args.values())
    assert_as_good(kernels(op, args), exact, plain, op.atol_of_max[dtype], f"{op.name} {sample.name}")


@needs_gcc
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("op", "sample"), CASES)
def test_kernels_on_the_host(op: Op, sample: Sample, dtype: torch.dtype) -> None:
    """As sm_80 runs them: m16n8k16."""
    check(HostKernels(800), op, sample, dtype)


# Maps of one pixel, and some that no tile divides; as many channels and outputs as there may be; no layers.
SIZES = [
    ("inner_patch_attention", {"B": 1, "C": 66, "H": 4, "W": 8}, {"norm": "layernorm", "patch_size": 4}),
    ("inner_patch_attention", {"B": 1, "C": 128, "H": 16, "W": 16}, {"norm": "none", "patch_size": 16}),
    ("inner_patch_stage", {"B": 1, "L": 2, "C": 128, "E": 33, "H": 4, "W": 8}, {"norm": "tanh", "patch_size": 4}),
    ("inner_patch_stage", {"B": 1, "L": 1, "C": 66, "E": 9, "H": 8, "W": 8}, {"norm": "layernorm", "patch_size": 8}),
    ("inner_patch_stage", {"B": 1, "L": 2, "C": 7, "E": 5, "H": 16, "W": 32}, {"norm": "none", "patch_size": 16}),
    ("inner_patch_stage", {"B": 1, "L": 0, "C": 7, "E": 5, "H": 8, "W": 8}, {"norm": "none", "patch_size": 8}),
    ("inner_patch_stage", {"B": 1, "L": 2, "C": 61, "E": 33, "H": 8, "W": 24}, {"norm": "layernorm", "patch_size": 8}),
    ("gated_ffn", {"B": 1, "C": 64, "E": 65, "H": 8, "W": 24}, {"norm": "none", "patch_size": 8}),
    ("gated_ffn", {"B": 1, "C": 1, "E": 1, "H": 1, "W": 1}, {"norm": "tanh", "patch_size": 0}),
    ("gated_ffn", {"B": 2, "C": 61, "E": 33, "H": 9, "W": 17}, {"norm": "layernorm", "patch_size": 0}),
    ("gated_ffn", {"B": 1, "C": 128, "E": 7, "H": 4, "W": 12}, {"norm": "none", "patch_size": 4}),
    ("gated_ffn", {"B": 1, "C": 66, "E": 120, "H": 32, "W": 16}, {"norm": "tanh", "patch_size": 16}),
    ("dilated_gate", {"B": 1, "C": 1, "H": 1, "W": 1}, {"norm": "none"}),
    ("dilated_gate", {"B": 2, "C": 64, "H": 25, "W": 25}, {"norm": "tanh"}),
    ("image_head", {"B": 1, "N": 128, "C": 128, "H": 3, "W": 17}, {}),
    ("image_head", {"B": 2, "N": 3, "C": 64, "H": 10, "W": 70}, {}),
    ("image_head", {"B": 1, "N": 2, "C": 63, "H": 1, "W": 1}, {}),
    ("image_tail", {"B": 1, "C": 61, "D": 128, "H": 9, "W": 1}, {"upscale": 4}),
    ("image_tail", {"B": 2, "C": 128, "D": 27, "H": 1, "W": 18}, {"upscale": 3}),
]


@needs_gcc
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "axes", "options"), SIZES, ids=lambda value: "")
def test_any_size_on_the_host(name: str, axes: dict[str, int], options: dict, dtype: torch.dtype) -> None:
    check(HostKernels(800), REGISTRY[name], Sample("", axes, options), dtype)


@needs_gcc
def test_pixels_that_are_not_finite_are_seen_by_their_neighbours_alone() -> None:
    """Zeros in a weight that only fill it up are not multiplied with what the convolution does not see."""
    op = REGISTRY["image_head"]
    args = op.inputs(Sample("", {"B": 1, "N": 3, "C": 16, "H": 7, "W": 40}), dtype=torch.float16)
    args["image"][0, 1, 3, 20] = torch.inf
    found = HostKernels(800)(op, args).isfinite()
    assert torch.equal(found, op.reference(*args.values()).isfinite())
    assert not found.all()


@needs_gcc
def test_too_many_outputs() -> None:
    """An error that names the operator, should it be called in spite of `why_not`."""
    op = REGISTRY["image_head"]
    args = op.inputs(Sample("", {"B": 1, "N": 3, "C": 129, "H": 1, "W": 1}))
    assert "makes at most 128 outputs per pixel, asked for 129" in op.backends["cuda"].why_not(args, backward=False)
    with pytest.raises(RuntimeError, match="image_head has room for 128 outputs, not 129"):
        HostKernels(800)(op, args)


@needs_gcc
@pytest.mark.slow  # compiles all kernels twice
@pytest.mark.parametrize("arch", [700, 750])
@pytest.mark.parametrize("op", OPERATORS, ids=lambda op: op.name)
def test_kernels_of_older_chips_on_the_host(op: Op, arch: int) -> None:
    check(HostKernels(arch), op, op.samples[0], torch.float16)


@needs_gcc
@pytest.mark.parametrize("op", OPERATORS, ids=lambda op: op.name)
def test_no_barrier_is_missing(op: Op) -> None:
    """Warps and lanes from the last to the first: who reads before it was written finds NaN."""
    check(HostKernels(800, reverse=True), op, op.samples[0], torch.float16)


@needs_gcc
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPERATORS, ids=lambda op: op.name)
def test_weights_that_stay_packed(op: Op, dtype: torch.dtype) -> None:
    """A network's weights are packed at its first call. Later ones, of maps of other sizes, launch nothing for that and
    give what they would have given."""
    one = replace(op.samples[0], axes={**op.samples[0].axes, "B": 1, "H": 8, "W": 8})
    args = op.inputs(one, dtype=dtype)
    taller = op.inputs(replace(one, axes={**one.axes, "H": 16}), dtype=dtype, seed=1)
    taller |= {name: args[name] for name, axes in op.axes.items() if not is_map(axes)}
    kernels = HostKernels(800)
    expected = kernels(op, taller)
    packing = len(kernels.launches())
    kernels.library.keep_packed_weights(True)
    try:
        kernels(op, args)
        assert len(kernels.launches()) == packing
        assert torch.equal(kernels(op, taller), expected)
        needed = (
            2 * one.axes["L"] if op.name == "inner_patch_stage" and dtype == torch.float32 else LAUNCHES.get(op.name, 1)
        )
        assert len(kernels.launches()) == needed <= packing
    finally:
        kernels.library.keep_packed_weights(False)


@needs_gcc
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
    # And once more those that have kernels for sm_90a, by these.
    hopper = {kernel.operator for kernel in cuda_code.HOPPER_KERNELS} | {"image_head"}  # of maps, which no network has
    everywhere = [op.backends["cuda"] for op in REGISTRY.values() if "cuda" in op.backends]
    expected = sum(len(cuda.dtypes) + 2 * cuda.as_layers for cuda in everywhere) + 2 * len(hopper)
    assert len(result.stdout.splitlines()) == expected


# DESIGN's figures for sm_80: warp-instructions per 64 pixels of an ITL and of a SAL.
BUDGETS = {"ITL": 20_000, "SAL": 22_000}


def per_64_pixels(found: dict[cuda_code.Kernel, Count], operator: str, patch_size: int | None = None) -> float:
    kernels = [one for one in found if one.operator == operator and one.options.get("patch_size") == patch_size]
    assert kernels
    return sum(found[one].instructions * 64 / one.pixels for one in kernels)


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("capability", [70, 75, 80, 90])
def test_machine_code_of_the_network(capability: int) -> None:
    """What DITN-Real's layers run: no warning of nvcc, no spill, tensor cores wherever matrices are multiplied."""
    for kernel, found in cuda_code.count(capability).items():
        assert not found.stack, (kernel, found)
        assert found.fits, (kernel, found)
        assert found.tensor_instructions, (kernel, found)
        if kernel.operator == "inner_patch_stage":
            continue
        # No product is lost by the count: the operator's work, with channels padded to 64, an image's to 16, or three
        # pixels of a line together, outputs to 64, and what a tile's border repeats, a factor of 2.2 at most.
        op = REGISTRY[kernel.operator]
        alike = (kernel.operator, kernel.options)
        parts = [one for one in cuda_code.kernels(capability) if (one.operator, one.options) == alike]
        counted = sum(cuda_code.count(capability)[one].macs * 64 / one.pixels for one in parts)
        sample = next(one for one in op.samples if dict(one.options) == dict(kernel.options))
        image = 16 if capability == cuda_code.VOLTA else 16 / 3
        axes = {axis: image if axis == "N" else size for axis, size in sample.axes.items()}
        assert 0.75 <= counted / op.macs({**axes, "B": 1, "H": 8, "W": 8}) <= 2.2, (kernel, counted)


@needs_nvcc
def test_warp_instructions_on_sm_80() -> None:
    found = cuda_code.count(80)
    assert "LDGSTS" in sass.cuobjdump("-sass", cuda_code.cubin(cuda_code.NETWORK, capability=80))  # cp.async
    in_patches = per_64_pixels(found, "gated_ffn", 8)
    assert per_64_pixels(found, "inner_patch_attention", 8) + in_patches <= BUDGETS["ITL"]
    assert per_64_pixels(found, "inner_patch_stage", 8) <= 4 * BUDGETS["ITL"]
    assert per_64_pixels(found, "dilated_gate") + per_64_pixels(found, "gated_ffn", 0) <= BUDGETS["SAL"]


@needs_gcc
@pytest.mark.parametrize("capability", [pytest.param(75, marks=pytest.mark.slow), 80])
def test_kernels_that_are_counted_are_launched_so(capability: int) -> None:
    """The threads and shared memory that cuda_code.KERNELS names are those of the operators' launches; the ones before,
    which it does not name, pack weights and take no shared memory."""
    kernels, chip = HostKernels(10 * capability), cuda_code.kernels(capability)
    for operator, options in {(one.operator, tuple(one.options.items())): one for one in chip}:
        op = REGISTRY[operator]
        sample = next(one for one in op.samples if tuple(one.options.items()) == options and one.axes["C"] in (3, 60))
        kernels(op, op.inputs(cases.enlarged(sample, 16, 16), dtype=torch.float16))
        named = [one for one in chip if (one.operator, tuple(one.options.items())) == (operator, options)]
        launches = [launch for launch in kernels.launches() if launch[1]]
        assert launches == [(32 * one.warps, one.shared) for one in named], operator


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize(
    "capability",
    # The others compile what 8.0 and 12.0 do.
    [pytest.param(chip, marks=pytest.mark.exhaustive if chip in (86, 89, 100) else ()) for chip in CHIPS],
)
def test_all_machine_code(capability: int) -> None:
    """Every configuration on every chip: no warning, no spill, tensor cores where halves are multiplied."""
    path = cuda_code.cubin(capability=capability)
    assert {name: stack for name, (_, stack) in cuda_code.resources(path).items() if stack} == {}
    assert "HMMA" in sass.cuobjdump("-sass", path)
