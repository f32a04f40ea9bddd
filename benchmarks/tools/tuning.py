# SPDX-License-Identifier: Apache-2.0
"""What is tuned: each kernel in each shape, its candidates, and the table that the choice goes into."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import ditn_kernels.backends.triton
from benchmarks.harness import cases
from benchmarks.tools import estimate
from ditn_kernels import REGISTRY, Op
from ditn_kernels._op import Sample
from ditn_kernels.backends.triton._config import Config, Row, nearest, table
from ditn_kernels.backends.triton._launch import Launch, configured

FOLDER = Path(ditn_kernels.backends.triton.__file__).parent / "configs"
WARPS = (4, 8)
STAGES = (1, 2)
# What Triton compiles for.
CHIPS = tuple(chip for chip in estimate.CHIPS if chip >= 75)
CHANNELS = (16, 32, 64, 128)
# The network's own, besides these the operators' samples', besides these CHANNELS in every patch size.
SHAPES = ("network", "samples", "all")


@dataclass(frozen=True)
class Task:
    """One kernel of an operator's forward or backward, for a sample and dtype."""

    op: str
    kernel: str
    backward: bool
    sample: Sample
    dtype: str

    def launches(self, capability: int, config: Config) -> list[Launch]:
        """The kernel's launches; the operator's other kernels take their first candidates."""
        op = REGISTRY[self.op]
        others = {name: next(configs(blocks)) for name, blocks in self.candidates.items()}
        with configured(others | {self.kernel: config}):
            launches = cases.launches(
                op, self.sample, dtype=cases.DTYPES[self.dtype], capability=capability, backward=self.backward
            )
        return [launch for launch in launches if launch.name == self.kernel]

    @property
    def candidates(self) -> Mapping[str, Mapping[str, tuple[int, ...]]]:
        return cases.candidates(REGISTRY[self.op], backward=self.backward)

    def options(self) -> list[Config]:
        """All candidates, and what the table holds already: it may have been found by hand."""
        found = list(configs(self.candidates[self.kernel]))
        known = table(self.kernel) if path(self.kernel).exists() else ()
        return found + [row.config for row in known if row.config not in found]

    @property
    def shape(self) -> Mapping[str, int]:
        """What the kernel's configuration is looked up for."""
        shape: Mapping[str, int] = self.launches(90, next(configs(self.candidates[self.kernel])))[0].shape
        return shape

    @property
    def alike(self) -> list[Task]:
        """This task and the operator's other samples of the same shape, with every norm: one configuration for all."""
        samples = [self.sample, *cases.framed_samples(REGISTRY[self.op], "all")]
        found = [replace(self, sample=sample) for sample in samples]
        found = [task for task in found if task.is_supported and task.shape == self.shape]
        return [replace(task, sample=other) for task in found for other in cases.with_every_norm(task.sample)]

    @property
    def is_supported(self) -> bool:
        op = REGISTRY[self.op]
        args = cases.inputs(op, self.sample, dtype=cases.DTYPES[self.dtype], device="meta")
        return not op.backends["triton"].why_not(args, backward=self.backward)


def configs(blocks: Mapping[str, tuple[int, ...]]) -> Iterator[Config]:
    for sizes in itertools.product(*blocks.values()):
        for warps, stages in itertools.product(WARPS, STAGES):
            yield Config(warps, stages, blocks=dict(zip(blocks, sizes, strict=True)))


def tasks(op: Op, *, shapes: str) -> Iterator[tuple[Task, Task]]:
    """Each kernel, shape and dtype, with the task whose order of candidates holds for it, which comes first. bfloat16
    takes float16's order, and any shape that of the network's nearest."""
    support = op.backends["triton"]
    samples = cases.framed_samples(op)
    others = [] if shapes == "network" else cases.framed_samples(op, "all")
    if shapes == "all":
        others += [sample for channels in CHANNELS for sample in cases.samples_of(op, channels)]
    seen: set[str] = set()
    for backward, dtypes in ((False, support.dtypes), (True, support.backward)):
        # A backward that recomputes may launch kernels of the forward, too.
        kernels = [name for name in cases.candidates(op, backward=backward) if name not in seen] if dtypes else []
        seen.update(kernels)
        named = [name for name, dtype in cases.DTYPES.items() if dtype in dtypes]
        for kernel, dtype in itertools.product(kernels, named):
            ranked = "float16" if dtype == "bfloat16" and "float16" in named else dtype
            likes = [Task(op.name, kernel, backward, sample, ranked) for sample in samples]
            known = []
            for task in (replace(likes[0], dtype=dtype, sample=sample) for sample in (*samples, *others)):
                if task.is_supported and task.shape not in known:
                    known.append(task.shape)
                    yield task, min(likes, key=lambda like: abs(patch(like.sample) - patch(task.sample)))


def patch(sample: Sample) -> int:
    """A whole map stands apart from all patches."""
    size: int = sample.options.get("patch_size") or -100
    return size


def short(config: Config) -> str:
    blocks = ", ".join(f"{name} {size}" for name, size in config.blocks.items())
    return f"{blocks or 'no blocks'}, {config.num_warps} warps, {config.num_stages} stages"


def without_redundant(rows: list[Row], chips: Collection[int]) -> list[Row]:
    """Few of the lines, with which every chip finds for every dtype and their shapes what it finds with all: all
    lines of a shape are left out together where that can be, then single ones."""
    shapes = [dict(pairs) for pairs in dict.fromkeys(tuple(row.shape.items()) for row in rows)]
    queries = list(itertools.product(chips, cases.DTYPES, shapes))

    def found(table: list[Row]) -> list[Config]:
        return [nearest(table, capability=chip, dtype=dtype, shape=shape).config for chip, dtype, shape in queries]

    wanted, kept = found(rows), list(rows)
    largest = sorted(rows, key=lambda row: (-sum(row.shape.values()), -row.capability))
    groups = [[other for other in rows if (other.dtype, other.shape) == (row.dtype, row.shape)] for row in largest]
    for group in (*groups, *([row] for row in largest)):
        fewer = [row for row in kept if row not in group]
        if fewer and found(fewer) == wanted:
            kept = fewer
    return kept


def path(kernel: str) -> Path:
    return FOLDER / f"{kernel}.json"


def write(kernel: str, rows: list[Row], folder: Path = FOLDER) -> None:
    """Put the lines into the kernel's table, or into a copy of it in another folder."""
    known = table(kernel) if path(kernel).exists() else ()
    kept = without_redundant(merged(known, rows), CHIPS)
    lines = ",\n".join("  " + json.dumps(dataclasses.asdict(row)) for row in kept)
    (folder / path(kernel).name).write_text(f'{{"rows": [\n{lines}\n]}}\n', encoding="utf-8")
    table.cache_clear()


def merged(known: Collection[Row], new: Collection[Row]) -> list[Row]:
    """The known lines and the new ones, which take the place of those for the same chip, dtype and shape; but what was
    measured is not replaced by what was counted. Since a shape's own lines are nearer than all others, a shape that was
    not known gets lines for all chips and dtypes, with what they have found so far."""
    lines = {_key(row): row for row in known}
    for row in new if known else ():
        if all(row.shape != other.shape for other in known):
            for chip, dtype in itertools.product(CHIPS, cases.DTYPES):
                found = nearest(known, capability=chip, dtype=dtype, shape=row.shape)
                found = replace(found, capability=chip, dtype=dtype, shape=row.shape, source="carried over")
                lines.setdefault(_key(found), found)
    for row in new:
        there = lines.get(_key(row))
        if there is None or not there.source.startswith("measured") or row.source.startswith("measured"):
            lines[_key(row)] = row
    return sorted(lines.values(), key=lambda row: (row.dtype, *row.shape.values(), row.capability))


def _key(row: Row) -> tuple[int, str, str]:
    return row.capability, row.dtype, repr(sorted(row.shape.items()))
