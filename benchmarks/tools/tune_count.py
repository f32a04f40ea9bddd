# SPDX-License-Identifier: Apache-2.0
"""Chooses configurations by what the compiled code takes (`benchmarks.tools.sass`), for chips that are not here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import triton

from benchmarks.harness import cases
from benchmarks.tools import estimate, sass
from benchmarks.tools.estimate import Count, LoopsError
from benchmarks.tools.tuning import Task, patch, short, tasks
from ditn_kernels import Op
from ditn_kernels.backends.triton._config import Config, Row, lookup

# Chips whose instructions differ are ranked by themselves; for the others the order of the nearest of these holds.
RANKED = {75: 80, 80: 80, 86: 80, 89: 80, 90: 90, 100: 90, 120: 80}
# For which chips other shapes than the network's are counted. Where a shape is new, the others keep what they have
# found so far, and `mend` looks at them.
SHAPES_ON = (80, 90)
# More stages are tried for as many of the best with one stage.
_BEST = 2
_TRIES = 24
# Where tensor cores are out of Triton's reach, no candidate is good, and all take long to compile: only the one that
# takes least shared memory, of which this chip has little, is compiled.
OLDEST = 75
# Estimates this close (natural logarithm) are equal, and more resident warps decide.
_CLOSE = 0.03


@dataclass(frozen=True)
class Verdict:
    """What a candidate came to: the launch that takes most registers and shared memory, and the sum of the cycles."""

    config: Config
    fits: bool
    stack: int
    shared: int
    cycles: float
    resident_warps: int

    @property
    def key(self) -> tuple[Any, ...]:
        return not self.fits, self.stack, round(math.log(self.cycles) / _CLOSE), -self.resident_warps

    @property
    def clean(self) -> bool:
        return self.fits and not self.stack


def judge(task: Task, capability: int, config: Config, *, for_all_alike: bool = False) -> Verdict | None:
    """None if the kernel cannot be compiled like this, or not counted. For all tasks alike, what it takes is the most
    that one takes, up to the first that spills or does not fit."""
    try:
        own = counts(task, capability, config)
        # As many programs as there is room for.
        room = min(one.resident_warps for one in own) // config.num_warps
        own = counts(task, capability, replace(config, programs=max(room, 1)))
        cycles = estimate.cycles(own, cases.DTYPES[task.dtype], cases.pixels(task.sample))
        every = list(own)
        for other in task.alike if for_all_alike else ():
            if any(one.stack or not one.fits for one in every):
                break
            every += counts(other, capability, config)
    except LoopsError as error:
        print(f"not judged on sm_{capability}, {short(config)}: {error}", flush=True)
        return None
    except (triton.CompilationError, triton.runtime.errors.PTXASError, RuntimeError):  # RuntimeError: a pass failed
        return None
    resident = min(one.resident_warps for one in every)
    return Verdict(
        replace(config, programs=max(resident // config.num_warps, 1)),
        fits=all(one.fits for one in every),
        stack=max(one.stack for one in every),
        shared=max(one.shared for one in every),
        cycles=cycles,
        resident_warps=resident,
    )


def counts(task: Task, capability: int, config: Config) -> list[Count]:
    return [sass.count(launch, capability) for launch in task.launches(capability, config)]


def count(op: Op, pool: ProcessPoolExecutor, *, shapes: str, dtypes: Iterable[str]) -> Iterator[tuple[str, Row]]:
    """The lines of the tables of an operator's kernels, and the kernels' names."""
    orders: dict[tuple[str, str, int, int], list[Verdict]] = {}
    for task, like in tasks(op, shapes=shapes):
        if task.dtype not in dtypes:
            continue
        chips = [chip for chip in RANKED if task.sample is like.sample or chip in SHAPES_ON]
        keys = [(like.kernel, like.dtype, patch(like.sample), RANKED[chip]) for chip in chips]
        for key in keys:
            if key not in orders:
                orders[key] = order(like, key[-1], pool)
        order_of = [
            [verdict.config for verdict in by_shared(orders[key], chip)] for key, chip in zip(keys, chips, strict=True)
        ]
        for chip, chosen in zip(chips, pool.map(first_clean, [task] * len(chips), chips, order_of), strict=True):
            say(task, chip, chosen)
            yield task.kernel, Row(chip, task.dtype, task.shape, chosen.config, "counted")


def mend(op: Op, pool: ProcessPoolExecutor, *, shapes: str, dtypes: Iterable[str]) -> Iterator[tuple[str, Row]]:
    """The lines whose configuration spills or does not fit, with the nearest that does neither."""
    support = op.backends["triton"]
    wanted = [
        (task, chip)
        for task, like in tasks(op, shapes=shapes)
        for chip in RANKED
        if task.dtype in dtypes and chip != OLDEST and not support.why_not_on(divmod(chip, 10), backward=task.backward)
    ]
    orders = [nearest_first(task, chip) for task, chip in wanted]
    chosen = list(pool.map(first_clean, *zip(*wanted, strict=True), orders))
    lines = list(zip(wanted, orders, chosen, strict=True))
    mended = [
        (task, chip, verdict)
        for (task, chip), configs, verdict in lines
        if verdict.config != replace(configs[0], programs=verdict.config.programs)
    ]
    for (task, chip), _, verdict in lines:
        if not verdict.clean or any(other is task and own == chip for other, own, _ in mended):
            say(task, chip, verdict)
    # Newer chips find a chip's new line, too: all of the task's chips get theirs.
    for (task, chip), _, verdict in lines:
        if any(other is task for other, _, _ in mended):
            yield task.kernel, Row(chip, task.dtype, task.shape, verdict.config, "counted")


def nearest_first(task: Task, capability: int) -> list[Config]:
    """All candidates, beginning with the table's."""
    known = lookup(task.kernel, capability=capability, dtype=task.dtype, shape=task.shape)

    def distance(config: Config) -> float:
        apart = sum(
            abs(math.log2(max(size, 0.5) / max(known.blocks.get(name, size), 0.5)))
            for name, size in config.blocks.items()
        )
        return apart + abs(math.log2(config.num_warps / known.num_warps)) + (config.num_stages != known.num_stages) / 2

    return sorted(task.options(), key=distance)


def say(task: Task, capability: int, chosen: Verdict) -> None:
    note = "" if chosen.clean else f", SPILLS {chosen.stack} bytes" if chosen.fits else ", DOES NOT FIT"
    print(
        f"{task.kernel} {task.dtype} {dict(task.shape)} sm_{capability}: {short(chosen.config)}, "
        f"{chosen.cycles:.0f} cycles, {chosen.resident_warps} warps{note}",
        flush=True,
    )


def order(task: Task, capability: int, pool: ProcessPoolExecutor) -> list[Verdict]:
    """The candidates, best first."""
    options = task.options()

    def judged(chosen: list[Config]) -> list[Verdict]:
        found = pool.map(judge, [task] * len(chosen), [capability] * len(chosen), chosen)
        return sorted(filter(None, found), key=lambda verdict: verdict.key)

    single = judged([option for option in options if option.num_stages == 1])
    best = [(one.config.num_warps, one.config.blocks) for one in single[:_BEST]]
    more = judged([o for o in options if o.num_stages > 1 and (not best or (o.num_warps, o.blocks) in best)])
    return sorted(single + more, key=lambda verdict: verdict.key)


def by_shared(order: list[Verdict], capability: int) -> list[Verdict]:
    """The order for a chip: its own or that of the nearest; for the oldest, what takes least shared memory."""
    return sorted(order, key=lambda verdict: verdict.shared)[:1] if capability == OLDEST else order


def first_clean(task: Task, capability: int, order: Iterable[Config]) -> Verdict:
    """The first of the candidates that neither spills nor is too large here, or the one that comes nearest to it among
    the first few."""
    found: list[Verdict] = []
    for config in order:
        verdict = judge(task, capability, config, for_all_alike=capability != OLDEST)
        if verdict is not None:
            found.append(verdict)
        if found and (found[-1].clean or len(found) == _TRIES):
            break
    if not found:
        raise ValueError(f"{task.kernel} {task.dtype} {dict(task.shape)}: no candidate compiles for sm_{capability}")
    return found[-1] if found[-1].clean else min(found, key=lambda verdict: verdict.key)
