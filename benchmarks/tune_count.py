# SPDX-License-Identifier: Apache-2.0
"""Chooses configurations by what the compiled code takes (`benchmarks.sass`), for chips that are not here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import triton

from benchmarks import cases, sass
from benchmarks.tuning import Task, patch, short, tasks
from ditn_kernels import Op
from ditn_kernels._op import NORMS
from ditn_kernels.triton._config import Config, Row

# Chips whose instructions differ are ranked by themselves; for the others the order of the nearest of these holds.
RANKED = {75: 80, 80: 80, 86: 80, 89: 80, 90: 90, 100: 90, 120: 80}
# For which chips other shapes than the network's get lines; the others find them there.
SHAPES_ON = (80, 90)
_TRIES = 8
# Estimates this close (natural logarithm) are equal, and more resident warps decide.
_CLOSE = 0.03


@dataclass(frozen=True)
class Verdict:
    """What a candidate came to: the launch that takes most registers and shared memory, and the sum of the cycles."""

    config: Config
    fits: bool
    stack: int
    cycles: float
    resident_warps: int

    @property
    def key(self) -> tuple[Any, ...]:
        return not self.fits, self.stack, round(math.log(self.cycles) / _CLOSE), -self.resident_warps

    @property
    def clean(self) -> bool:
        return self.fits and not self.stack


def judge(task: Task, capability: int, config: Config, *, every_norm: bool = False) -> Verdict | None:
    """None if the kernel cannot be compiled like this. With every norm, what it takes is the most that one takes."""
    norms = NORMS if every_norm and "norm" in task.sample.options else ()
    others = [replace(task, sample=replace(task.sample, options={**task.sample.options, "norm": n})) for n in norms]
    try:
        counts = [sass.count(launch, capability) for launch in task.launches(capability, config)]
        all_counts = [
            sass.count(launch, capability) for one in (task, *others) for launch in one.launches(capability, config)
        ]
    except (triton.CompilationError, triton.runtime.errors.PTXASError, RuntimeError):  # RuntimeError: a pass failed
        return None
    resident = min(one.resident_warps for one in all_counts)
    return Verdict(
        replace(config, programs=max(resident // config.num_warps, 1)),
        fits=all(one.fits for one in all_counts),
        stack=max(one.stack for one in all_counts),
        cycles=sass.cycles(counts, cases.DTYPES[task.dtype], cases.pixels(task.sample)),
        resident_warps=resident,
    )


def count(op: Op, pool: ProcessPoolExecutor, *, own_shapes_only: bool) -> Iterator[tuple[str, Row]]:
    """The lines of the tables of an operator's kernels, and the kernels' names."""
    orders: dict[tuple[str, str, int, int], list[Verdict]] = {}
    for task, like in tasks(op, own_shapes_only=own_shapes_only):
        own = task is like
        for ranked in sorted(set(RANKED.values())) if own else ():
            options = task.options()
            found = pool.map(judge, *zip(*((task, ranked, option) for option in options), strict=True))
            order = sorted(filter(None, found), key=lambda verdict: verdict.key)
            orders[task.kernel, task.dtype, patch(task.sample), ranked] = order
        chips = [chip for chip in RANKED if own or chip in SHAPES_ON]
        order_of = [orders[task.kernel, task.dtype, patch(like.sample), RANKED[chip]] for chip in chips]
        for chip, chosen in zip(chips, pool.map(first_clean, [task] * len(chips), chips, order_of), strict=True):
            note = "" if chosen.clean else f", SPILLS {chosen.stack} bytes" if chosen.fits else ", DOES NOT FIT"
            print(
                f"{task.kernel} {task.dtype} {dict(task.shape)} sm_{chip}: {short(chosen.config)}, "
                f"{chosen.cycles:.0f} cycles, {chosen.resident_warps} warps{note}",
                flush=True,
            )
            yield task.kernel, Row(chip, task.dtype, task.shape, chosen.config, "counted")


def first_clean(task: Task, capability: int, order: Iterable[Verdict]) -> Verdict:
    """The first of the candidates that neither spills nor is too large here, or the one that comes nearest to it among
    the first few."""
    found: list[Verdict] = []
    for verdict in order:
        if len(found) == _TRIES:
            break
        again = judge(task, capability, verdict.config, every_norm=True)
        if again is not None:
            found.append(again)
            if again.clean:
                return again
    return min(found, key=lambda verdict: verdict.key)
