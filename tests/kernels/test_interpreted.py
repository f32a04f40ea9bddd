# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels on a machine without a GPU: what test_ops.py asks of every backend, by Triton's interpreter."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from test_ops import DTYPES, check_backward, check_forward

from ditn_kernels import REGISTRY, Op
from ditn_kernels._dispatch import reasons_against
from ditn_kernels._op import Sample
from ditn_kernels.backends.triton._dispatch import interpreted

pytestmark = [
    pytest.mark.usefixtures("device", "poisoned"),
    pytest.mark.skipif(not interpreted(), reason="Triton's kernels are compiled here: test_ops.py has them"),
]
WITH_KERNELS = [op for op in REGISTRY.values() if "triton" in op.backends]
# The interpreter is slow: `make test` takes these samples on maps of this height and width, the smallest on which every
# loop of the kernels goes round more than once. The one over tiles, which three programs share, does from four tiles
# on: four patches, four rows of an image, thirteen of the gate's, 385 pixels of tanh_affine, 193 of layer_norm2d or of
# the gate's gradient. Those inside a tile do with more channels, or in patches of 16 x 16, of which one suffices.
# `make test-slow` takes the registry's samples as they are; their gradients, which are the longest, in float16.
FORWARD = {
    "tanh_affine": {"odd": (13, 31)},
    "layer_norm2d": {"odd": (7, 31)},
    "image_head": {"odd": (4, 3)},
    "inner_patch_attention": {"patch 4": (8, 8), "patch 16": (16, 16), "128 channels": (8, 8)},
    "gated_ffn": {"patch 4": (8, 8), "none": (2, 3), "128 channels": (1, 2)},
    "dilated_gate": {"odd channels": (13, 5), "128 channels": (1, 1)},
    "inner_patch_stage": {"patch 4": (8, 8), "layernorm": (8, 8)},
    "image_tail": {"x1 gray": (4, 1)},
}
BACKWARD = {
    "tanh_affine": {"odd": (13, 31)},
    "image_head": {"odd": (4, 3)},
    "inner_patch_attention": {"patch 4": (8, 8), "patch 16": (16, 16)},
    "gated_ffn": {"patch 4": (8, 8), "odd channels": (1, 5)},
    "dilated_gate": {"odd channels": (8, 25)},
    "image_tail": {"x2": (4, 1)},
}


def samples(op: Op, dtype: torch.dtype, *, backward: bool) -> list[Sample]:
    """All that the kernels take."""
    return [
        sample
        for sample in op.samples
        if (sample.axes["B"] or not backward)
        and not reasons_against(op, "triton", op.inputs(sample, dtype=dtype, device="cpu"), backward=backward)
    ]


def quick_samples(op: Op, dtype: torch.dtype, *, backward: bool) -> list[Sample]:
    sizes = (BACKWARD if backward else FORWARD).get(op.name, {})
    taken = [sample for sample in samples(op, dtype, backward=backward) if sample.name in sizes]
    sides = [dict(zip("BHW", (1, *sizes[sample.name]), strict=True)) for sample in taken]
    return [replace(sample, axes={**sample.axes, **axes}) for sample, axes in zip(taken, sides, strict=True)]


def cases(*, backward: bool) -> list:
    """The small maps and the whole ones, in every dtype. Of bfloat16, whose loops are float16's, the small ones are
    slow; its whole ones, and float32's, which test_float32.py has, are left to `make test-all`."""
    slow = [pytest.mark.slow]
    found = []
    for op, dtype in itertools.product((op for op in WITH_KERNELS if op.backward or not backward), DTYPES):
        is_quick = dtype == torch.float16 or (dtype == torch.float32 and not backward)
        longest = [] if dtype == torch.float16 else [pytest.mark.exhaustive]
        kinds = {
            "small": (quick_samples(op, dtype, backward=backward), [] if is_quick else slow),
            "whole": (samples(op, dtype, backward=backward), [*slow, *longest]),
        }
        for kind, (chosen, marks) in kinds.items():
            for sample in chosen:
                found.append(pytest.param(op, sample, dtype, id=f"{op.name}-{sample.name}-{kind}-{dtype}", marks=marks))
    return found


@pytest.mark.parametrize(("op", "sample", "dtype"), cases(backward=False))
def test_forward(op: Op, sample: Sample, dtype: torch.dtype) -> None:
    check_forward(op, sample, dtype, ["triton"])


@pytest.mark.parametrize(("op", "sample", "dtype"), cases(backward=True))
def test_backward(op: Op, sample: Sample, dtype: torch.dtype) -> None:
    check_backward(op, sample, dtype, ["triton"])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", WITH_KERNELS, ids=lambda op: op.name)
def test_every_loop_goes_round_in_a_quick_sample(op: Op, dtype: torch.dtype) -> None:
    """If it does in any sample: the loops inside a kernel, and the one over a program's tiles."""
    for backward in (False, True) if op.backward else (False,):
        whole, quick = (
            set().union(*(loops(op, sample, dtype, backward=backward) for sample in of(op, dtype, backward=backward)))
            for of in (samples, quick_samples)
        )
        assert whole <= quick, f"{backward=}"


def loops(op: Op, sample: Sample, dtype: torch.dtype, *, backward: bool) -> set[tuple[str, int, int]]:
    """Which of a sample's loops go round more than once: the kernel, how many loops it has, and which it is; -1 is the
    loop over tiles, which the interpreter's few programs share, whatever the others."""
    from benchmarks.harness.cases import launches
    from ditn_kernels.backends.triton._launch import _FEW_PROGRAMS
    from ditn_kernels.backends.triton._loops import loops as loops_of

    found = set()
    for launch in launches(op, sample, dtype=dtype, capability=90, backward=backward):
        named = loops_of(launch)
        counts = named.trip_counts
        found |= {(launch.name, len(counts), place) for place, rounds in enumerate(counts) if rounds > 1}
        if (launch.programs if named.tiles is None else named.tiles) > _FEW_PROGRAMS:
            found.add((launch.name, 0, -1))
    return found
