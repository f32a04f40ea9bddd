# SPDX-License-Identifier: Apache-2.0
"""Writes the launch configurations of the Triton kernels, `ditn_kernels/triton/configs/<kernel>.json`.

    python -m benchmarks.tune                 on a GPU: measures
    python -m benchmarks.tune --count         anywhere: compiles for every chip and counts (`benchmarks.sass`)

Candidates are all the block sizes that a kernel's file names in CANDIDATES, with several numbers of warps and stages,
and what the tables hold already.
Measured, the fastest that gives the right result is taken, for the dtypes and shapes of this GPU only; the other lines
of a table stay. Counted, every candidate is compiled for the network's own shapes, and the one without spills and with
the fewest estimated cycles is taken; for other shapes and chips, the first in this order that fits there. Lines that
the lookup does without are left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import triton

import ditn_kernels.triton
from benchmarks import cases, sass
from ditn_kernels import REGISTRY, Op
from ditn_kernels._op import NORMS, Sample
from ditn_kernels._triton import interpreted
from ditn_kernels.triton._config import Config, Row, nearest, table
from ditn_kernels.triton._launch import configured

FOLDER = Path(ditn_kernels.triton.__file__).parent / "configs"
WARPS = (4, 8)
STAGES = (1, 2)
CHANNELS = (16, 32, 64, 128)
# Chips whose instructions differ are ranked by themselves; for the others the order of the nearest of these holds.
RANKED = {75: 75, 80: 80, 86: 80, 89: 80, 90: 90, 100: 90, 120: 80}
# For which chips other shapes than the network's get lines; the others find them there.
SHAPES_ON = (80, 90)
# Estimates this close (natural logarithm) are equal, and more resident warps decide.
_CLOSE = 0.03


@dataclass(frozen=True)
class Task:
    """One kernel of an operator's forward or backward, for a sample and dtype."""

    op: str
    kernel: str
    backward: bool
    sample: Sample
    dtype: str

    def launches(self, capability: int, config: Config) -> list[Any]:
        """The kernel's launches; the operator's other kernels take their first candidates."""
        op = REGISTRY[self.op]
        others = {name: next(configs(blocks)) for name, blocks in cases.candidates(op).items()}
        with configured(others | {self.kernel: config}):
            launches = cases.launches(
                op, self.sample, dtype=cases.DTYPES[self.dtype], capability=capability, backward=self.backward
            )
        return [launch for launch in launches if launch.name == self.kernel]

    def shape(self) -> Mapping[str, int]:
        (blocks,) = (blocks for name, blocks in cases.candidates(REGISTRY[self.op]).items() if name == self.kernel)
        shape: Mapping[str, int] = self.launches(90, next(configs(blocks)))[0].shape
        return shape


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


def configs(blocks: Mapping[str, tuple[int, ...]]) -> Iterator[Config]:
    for sizes in itertools.product(*blocks.values()):
        for warps, stages in itertools.product(WARPS, STAGES):
            yield Config(warps, stages, blocks=dict(zip(blocks, sizes, strict=True)))


def in_table(kernel: str) -> list[Config]:
    """What the kernel's table holds already: it may have been found by hand."""
    return [replace(row.config, programs=Config.programs) for row in table(kernel)] if path(kernel).exists() else []


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
    chip = sass.CHIPS[capability]
    resident = min(one.resident_warps for one in all_counts)
    return Verdict(
        replace(config, programs=max(resident // config.num_warps, 1)),
        fits=resident > 0 and all(one.shared <= chip.shared_per_block for one in all_counts),
        stack=max(one.stack for one in all_counts),
        cycles=sass.cycles(counts, cases.DTYPES[task.dtype], cases.pixels(task.sample)),
        resident_warps=resident,
    )


def tasks(op: Op, *, own_shapes_only: bool) -> Iterator[tuple[Task, Task]]:
    """Each kernel, shape and dtype, with the task whose order of candidates holds for it; own orders first."""
    for kernel, backward in cases.kernels(op):
        dtypes = [
            name for name, dtype in cases.DTYPES.items() if not backward or dtype in op.backends["triton"].backward
        ]
        for dtype in dtypes:
            own = [Task(op.name, kernel, backward, s, dtype) for s in cases.framed_samples(op)]
            yield from ((task, task) for task in own)
            for channels in () if own_shapes_only else CHANNELS:
                for sample in cases.samples_of(op, channels):
                    if not any((t.sample.axes, t.sample.options) == (sample.axes, sample.options) for t in own):
                        like = min(own, key=lambda task: abs(patch(task.sample) - patch(sample)))
                        yield replace(like, sample=sample), like


def patch(sample: Sample) -> int:
    """A whole map stands apart from all patches."""
    size: int = sample.options.get("patch_size") or -100
    return size


def count(op: Op, pool: ProcessPoolExecutor, *, own_shapes_only: bool) -> Iterator[tuple[str, Row]]:
    """The lines of the tables of an operator's kernels, and the kernels' names."""
    orders: dict[tuple[str, str, int, int], list[Verdict]] = {}
    for task, like in tasks(op, own_shapes_only=own_shapes_only):
        own = task is like
        for ranked in sorted(set(RANKED.values())) if own else ():
            options = list(configs(cases.candidates(op)[task.kernel]))
            if ranked < 80:  # which copies nothing ahead of its use
                options = [option for option in options if option.num_stages == STAGES[0]]
            options += [option for option in in_table(task.kernel) if option not in options]
            found = pool.map(judge, *zip(*((task, ranked, option) for option in options), strict=True))
            order = sorted(filter(None, found), key=lambda verdict: verdict.key)
            orders[task.kernel, task.dtype, patch(task.sample), ranked] = order
        chips = [chip for chip in RANKED if own or chip in SHAPES_ON]
        order_of = [orders[task.kernel, task.dtype, patch(like.sample), RANKED[chip]] for chip in chips]
        for chip, chosen in zip(chips, pool.map(first_clean, [task] * len(chips), chips, order_of), strict=True):
            note = "" if chosen.clean else f", SPILLS {chosen.stack} bytes" if chosen.fits else ", DOES NOT FIT"
            print(
                f"{task.kernel} {task.dtype} {dict(task.shape())} sm_{chip}: {short(chosen.config)}, "
                f"{chosen.cycles:.0f} cycles, {chosen.resident_warps} warps{note}",
                flush=True,
            )
            yield task.kernel, Row(chip, task.dtype, task.shape(), chosen.config, "counted")


def first_clean(task: Task, capability: int, order: Iterable[Verdict]) -> Verdict:
    """The first of the candidates that neither spills nor is too large here, or the one that comes nearest to it."""
    found = []
    for verdict in order:
        again = judge(task, capability, verdict.config, every_norm=True)
        if again is not None:
            found.append(again)
            if again.clean:
                return again
    return min(found, key=lambda verdict: verdict.key)


def short(config: Config) -> str:
    blocks = ", ".join(f"{name} {size}" for name, size in config.blocks.items())
    return f"{blocks or 'no blocks'}, {config.num_warps} warps, {config.num_stages} stages"


def without_redundant(rows: list[Row]) -> list[Row]:
    """As few of the lines as give every one of them its configuration."""
    kept = list(rows)
    for row in sorted(rows, key=lambda row: (-row.capability, row.dtype, -sum(row.shape.values()))):
        fewer = [other for other in kept if other is not row]
        alike = [other for other in rows if other.dtype == row.dtype]
        if fewer and all(
            nearest(fewer, capability=one.capability, dtype=one.dtype, shape=one.shape).config == one.config
            for one in alike
        ):
            kept = fewer
    return kept


def path(kernel: str) -> Path:
    return FOLDER / f"{kernel}.json"


def write(kernel: str, rows: list[Row]) -> None:
    rows = sorted(rows, key=lambda row: (row.dtype, *row.shape.values(), row.capability))
    lines = ",\n".join("  " + json.dumps(dataclasses.asdict(row)) for row in without_redundant(rows))
    path(kernel).write_text(f'{{"rows": [\n{lines}\n]}}\n', encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", action="store_true", help="compile and count instead of measuring")
    parser.add_argument("--ops", nargs="+", choices=REGISTRY, default=list(REGISTRY))
    parser.add_argument("--own-shapes", action="store_true", help="only the shapes of the network")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="how many compile at once")
    args = parser.parse_args()
    if interpreted():
        raise SystemExit("TRITON_INTERPRET is set: nothing would be compiled")
    for op in (REGISTRY[name] for name in args.ops if "triton" in REGISTRY[name].backends):
        rows: dict[str, list[Row]] = {}
        with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
            for kernel, row in count(op, pool, own_shapes_only=args.own_shapes):
                rows.setdefault(kernel, []).append(row)
        for kernel, found in rows.items():
            write(kernel, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
