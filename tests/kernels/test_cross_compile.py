# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels, compiled for chips that are not here, with the configurations that ship: none may spill, or ask
for more shared memory than there is. In a process of its own, since this one interprets them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from functools import cache

import pytest
import torch
from conftest import PROJECT

from benchmarks.harness import cases
from benchmarks.oracle.tolerance import assert_as_good
from ditn_kernels import REGISTRY, Op
from ditn_kernels._dispatch import reasons_against
from ditn_kernels._op import Sample
from ditn_kernels.backends.triton import _launch
from ditn_kernels.backends.triton._config import Config, Row, nearest
from ditn_kernels.backends.triton._launch import padded

OPERATORS = [op.name for op in REGISTRY.values() if "triton" in op.backends]
# What the estimate, which is fitted to an H200, comes to there per 64 pixels, rounded up: whoever makes a kernel slower
# sees it. Together they are a frame of 960x540 in 4.4 ms, of 4.5 that are aimed at.
BUDGETS = {
    "image_head": 2200,
    "inner_patch_attention": 3600,
    "gated_ffn": 9300,
    "dilated_gate": 8700,
    "image_tail": 9500,
}
# (Chips, dtypes, samples). `make test` compiles the network's layers for an H100, CI in addition those that differ most
# from them in code, every operator's samples, and the network's layers with every norm, each of which is other code;
# `make test-all` the same for the other chips and dtypes.
QUICK = [("90", "float16", "network")]
NETWORK = [
    ("75", "float16", "network"),
    ("80", "float16 float32", "network"),
    ("90", "bfloat16", "network"),
]
SLOW = [
    ("90", "float16", "all"),
    ("100", "float16 float32", "network"),
    ("90", "float16", "norms"),
]
EXHAUSTIVE = [
    ("80", "float16", "all"),
    ("80", "float16", "norms"),
    ("80 90", "bfloat16 float32", "all"),
    ("86 89 100 120", "float16 bfloat16 float32", "all"),
    ("86 89 100 120", "float16", "norms"),
    ("80 86 89 90 100 120", "bfloat16 float32", "norms"),
]


@cache
def compiled(chips: str, dtypes: str, samples: str) -> list[dict]:
    """What `python -m benchmarks.tools.resources` finds. It keeps counts until a kernel or a configuration changes."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    options = ["--capabilities", *chips.split(), "--dtypes", *dtypes.split(), "--samples", samples]
    command = [sys.executable, "-m", "benchmarks.tools.resources", "--quiet", *options, "--json", "/dev/stdout"]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=PROJECT, env=environment)
    found: list[dict] = json.loads(result.stdout)["results"]
    return found


# What is asked of the network's layers beyond `check`.
of_the_network = pytest.mark.parametrize(
    "builds", [pytest.param(QUICK, id="quick"), pytest.param(NETWORK, id="network", marks=pytest.mark.slow)]
)


def results_of(operator: str, builds: list[tuple[str, str, str]]) -> list[dict]:
    return [result for build in builds for result in compiled(*build) if result["operator"] == operator]


def check(results: list[dict]) -> None:
    assert results
    for result in results:
        for launch in result["launches"]:
            what = f"{launch['kernel']} {result['sample']} {result['dtype']} sm_{result['capability']}: {launch}"
            if result["capability"] < 80:
                continue  # Triton has no tensor-core instructions for it; that it compiles is all that is asked
            assert not launch["stack"], what
            assert launch["fits"], what
            if launch["has_dot"] and result["dtype"] != "float32":
                assert launch["tensor_instructions"], what


@of_the_network
@pytest.mark.parametrize("operator", OPERATORS)
def test_shipped_configurations(operator: str, builds: list) -> None:
    found = results_of(operator, builds)
    check(found)
    assert all(result["cycles"] is not None for result in found), "the loops are not those that the launch names"


@pytest.mark.slow
@pytest.mark.parametrize("build", SLOW, ids=" ".join)
@pytest.mark.parametrize("operator", OPERATORS)
def test_shipped_configurations_in_other_shapes(operator: str, build: tuple[str, str, str]) -> None:
    results = compiled(*build)
    assert build[-1] != "all" or {"128 channels", "patch 16", "odd channels"} <= {one["sample"] for one in results}
    check([result for result in results if result["operator"] == operator])


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("build", EXHAUSTIVE, ids=" ".join)
@pytest.mark.parametrize("operator", OPERATORS)
def test_shipped_configurations_everywhere(operator: str, build: tuple[str, str, str]) -> None:
    """On sm_100 that there is a count also says that the products find room in tensor memory."""
    check([result for result in compiled(*build) if result["operator"] == operator])


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="here the GPU's own configurations run")
@pytest.mark.parametrize("small", [True, pytest.param(False, marks=pytest.mark.exhaustive)], ids=["small", "whole"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("operator", OPERATORS)
def test_other_chips_configurations_compute_the_operator(
    operator: str, dtype: torch.dtype, small: bool, monkeypatch
) -> None:
    """Interpreted; test_interpreted.py has sm_90's. No configuration depends on the map's size."""
    op = REGISTRY[operator]
    compared = 0
    for sample in (sample for sample in op.samples if sample.axes["B"]):
        if small:  # two patches, or a few pixels
            side = sample.options.get("patch_size", 0)
            sample = cases.enlarged(sample, side or 3, 2 * side or 7)
        args = op.inputs(sample, dtype=dtype)
        if reasons_against(op, "triton", args):
            continue
        exact = op.reference(*(arg.double() if isinstance(arg, torch.Tensor) else arg for arg in args.values()))
        plain = op.reference(*args.values())
        known = [blocks(op, sample, dtype, 90)]
        for chip in (75, 80, 86, 100, 120):
            if blocks(op, sample, dtype, chip) not in known:
                known.append(blocks(op, sample, dtype, chip))
                monkeypatch.setattr(_launch, "_capability", lambda device, chip=chip: chip)
                result = op(*args.values(), backend="triton")
                assert_as_good(result, exact, plain, op.atol_of_max[dtype], f"{operator} {sample.name} as on sm_{chip}")
                compared += 1
    if not compared:
        pytest.skip("no other configurations than sm_90's")


def blocks(op: Op, sample: Sample, dtype: torch.dtype, chip: int) -> list[Mapping[str, int]]:
    launches = cases.launches(op, sample, dtype=dtype, capability=chip)
    return [launch.config.blocks for launch in launches]


@pytest.mark.parametrize(("operator", "budget"), BUDGETS.items())
def test_estimated_cycles_on_an_h200(operator: str, budget: int) -> None:
    wanted = {"image_tail": {"upscale": 4}}.get(operator)
    found = [result for result in results_of(operator, QUICK) if not result["backward"]]
    found = [result for result in found if wanted in (None, result["options"])]
    assert found
    for result in found:
        assert result["cycles"] <= budget, result


@of_the_network
@pytest.mark.parametrize("operator", OPERATORS)
def test_no_work_is_lost_by_the_count(operator: str, builds: list) -> None:
    """The products of matrices, by hand, are between 3 C^2 and all of the operator's work; tiles are larger than that
    by what pads channels, and by borders that neighbours share, which are a factor of 3 at most."""
    op = REGISTRY[operator]
    for result in results_of(operator, builds):
        launches = [launch for launch in result["launches"] if launch["has_dot"]]
        if result["backward"] or not launches or result["capability"] < 80:
            continue
        if result["dtype"] == "float32":
            continue  # several products for one
        (sample,) = (sample for sample in op.samples if sample.name == result["sample"])
        work = op.macs({**sample.axes, "B": 1, "H": 8, "W": 8})
        counted = sum(launch["macs"] for launch in launches)
        inputs = sample.axes.get("N", sample.axes["C"])
        assert 0.75 * work <= counted <= 3 * work * padded(inputs) / inputs, (result, work)


def test_the_nearest_line_of_a_table() -> None:
    def row(capability: int, dtype: str, patch_size: int, warps: int) -> Row:
        return Row(capability, dtype, {"channels": 64, "patch_size": patch_size}, Config(warps))

    rows = [row(80, "float16", 8, 1), row(90, "float16", 8, 2), row(80, "float16", 16, 3), row(80, "float32", 8, 4)]

    def warps(capability: int, dtype: str, channels: int, patch_size: int) -> int:
        shape = {"channels": channels, "patch_size": patch_size}
        return nearest(rows, capability=capability, dtype=dtype, shape=shape).config.num_warps

    assert warps(80, "float16", 64, 8) == 1
    assert warps(89, "float16", 64, 8) == 1  # not of the newer chip
    assert warps(120, "float16", 64, 8) == 2
    assert warps(75, "float16", 64, 8) == 1  # older than all lines: the oldest
    assert warps(90, "float16", 64, 16) == 3  # the shape before the chip
    assert warps(90, "float16", 16, 12) == 3  # a line that is larger rather than a nearer one that is smaller
    assert warps(90, "float32", 64, 16) == 3  # and before the dtype
    assert warps(90, "float32", 64, 8) == 4  # the dtype before the chip
