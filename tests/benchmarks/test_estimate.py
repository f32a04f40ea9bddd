# SPDX-License-Identifier: Apache-2.0
"""The estimate of a launch's cycles: against what an H200 measured, and by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks.tools import estimate, measured
from benchmarks.tools.estimate import Count, LoopsError
from benchmarks.tools.measured import Measurement

# Zeros around two maps, in 3 us: how a launch starts and ends is not counted, and is no small part of so few.
NOT_ESTIMATED = {"dilated_gate_frame_fwd"}


def title(one: Measurement) -> str:
    return f"{one.backend}-{one.counts[0].kernel}-{'-'.join(map(str, one.options.values()))}"


@pytest.mark.parametrize("one", measured.measurements(), ids=title)
def test_estimate_of_what_was_measured(one: Measurement) -> None:
    if one.counts[0].kernel in NOT_ESTIMATED:
        pytest.skip("a launch of 3 us is mostly what is not counted")
    assert estimate.cycles(list(one.counts), torch.float16, one.pixels) == pytest.approx(one.cycles, rel=0.15)


def test_all_of_the_network_was_measured() -> None:
    """Both backends, every operator of DITN-Real's that has kernels of its own."""
    found = {(one.backend, one.operator) for one in measured.measurements()}
    operators = {"image_head", "inner_patch_attention", "gated_ffn", "dilated_gate", "inner_patch_stage", "image_tail"}
    assert found >= {(backend, operator) for backend in ("triton", "cuda") for operator in operators}


def counted(capability: int = 90, *, warps: int = 4, registers: int = 32, shared: int = 0, **work: Any) -> Count:
    facts = {"instructions": 1.0, "macs": 0.0} | work
    return Count("kernel", capability, warps, registers, 0, shared, has_dot=False, tensor_instructions=(), **facts)


def test_resident_warps() -> None:
    """By hand from the limits in NVIDIA's programming guide."""
    assert counted(90).resident_warps == 64
    assert counted(90, registers=255).resident_warps == 8  # 65,536 / (256 x 32)
    assert counted(90, registers=168).resident_warps == 12
    assert counted(80, shared=80 << 10).resident_warps == 8  # two of 81 KiB in 164
    assert counted(86, shared=99 << 10).fits
    assert not counted(86, shared=100 << 10).fits
    assert counted(75, warps=16, registers=64).resident_warps == 32
    assert not counted(80, warps=16, registers=255).fits  # 131,072 registers
    assert replace(counted(100), tensor_memory=256).resident_warps == 8  # two of 256 columns in 512


def test_estimate_by_hand() -> None:
    def per_64(count: Count, dtype: torch.dtype = torch.float16) -> float:
        return estimate.cycles([count], dtype, 64)

    assert per_64(counted(registers=255, instructions=1000.0)) == pytest.approx(1000 / 8**0.5)
    assert per_64(counted(registers=64, instructions=1000.0)) == pytest.approx(1000 / 4)  # 32 warps
    # Two programs of four warps, where there were room for more.
    assert per_64(counted(instructions=1000.0, programs=2)) == pytest.approx(1000 / 8**0.5)
    assert per_64(counted(instructions=0.0, loads=74.0, wavefronts=74.0)) == pytest.approx(100)
    assert per_64(counted(instructions=0.0, special=37.0)) == pytest.approx(100)
    assert per_64(counted(instructions=0.0, macs=2048 * 74.0)) == pytest.approx(100)
    assert per_64(counted(instructions=0.0, macs=2048 * 74.0), torch.float32) == pytest.approx(200)
    assert per_64(counted(80, instructions=0.0, macs=1024 * 74.0)) == pytest.approx(100)
    # What the caches and the memory have to move is hidden by other work, and not shorter than it.
    assert per_64(counted(instructions=400.0, wavefronts=740.0)) == pytest.approx(1000)
    assert per_64(counted(instructions=400.0, bytes=20.2 * 57)) == pytest.approx(100)
    assert per_64(counted(instructions=400.0, bytes=20.2 * 570)) == pytest.approx(1000)
    # 16 blocks at once on each of 132 multiprocessors: one block more needs a second round.
    assert per_64(counted(instructions=400.0, blocks=2112)) == pytest.approx(100)
    assert per_64(counted(instructions=400.0, blocks=2113)) == pytest.approx(100 * 2 * 2112 / 2113)


def test_launches_are_added_up_over_the_pixels() -> None:
    one, other = counted(instructions=400.0), counted(instructions=800.0)
    assert estimate.cycles([one, other], torch.float16, 128) == pytest.approx((100 + 200) / 2)


def test_what_was_not_counted_is_not_estimated() -> None:
    with pytest.raises(LoopsError, match="no loop over the tiles"):
        estimate.cycles([counted(instructions=None, uncounted="no loop over the tiles")], torch.float16, 64)
