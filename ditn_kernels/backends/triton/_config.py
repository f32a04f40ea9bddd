# SPDX-License-Identifier: Apache-2.0
"""Launch configurations: a pure function over the tables in `configs/`, which `benchmarks/tools/tune.py` writes."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent / "configs"


@dataclass(frozen=True)
class Config:
    """How to launch one kernel. `programs` is the number per multiprocessor of a persistent kernel, whose programs
    take several tiles each; `blocks` are the block sizes, compile-time arguments of the kernel."""

    num_warps: int
    num_stages: int = 2
    programs: int = 2
    blocks: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A line of a table: the chip and the shape it was chosen for, the configuration, and how it was chosen: "counted"
    off the machine code, "measured on <GPU>", "by hand", or "carried over" from the line that had been the nearest."""

    capability: int
    dtype: str
    shape: Mapping[str, int]
    config: Config
    source: str = "by hand"


@functools.cache
def table(kernel: str) -> tuple[Row, ...]:
    """The table of one kernel. Raises FileNotFoundError if it has none."""
    content = json.loads((_FOLDER / f"{kernel}.json").read_text(encoding="utf-8"))
    return tuple(Row(**row | {"config": Config(**row["config"])}) for row in content["rows"])


def lookup(kernel: str, *, capability: int, dtype: str, shape: Mapping[str, int]) -> Config:
    """The configuration of the nearest line of the kernel's table."""
    return _looked_up(kernel, capability, dtype, tuple(shape.items()))


@functools.cache
def _looked_up(kernel: str, capability: int, dtype: str, shape: tuple[tuple[str, int], ...]) -> Config:
    return nearest(table(kernel), capability=capability, dtype=dtype, shape=dict(shape)).config


def nearest(rows: Iterable[Row], *, capability: int, dtype: str, shape: Mapping[str, int]) -> Row:
    """The nearest line: first by shape, which decides what blocks are possible at all, then by dtype, then by chip. A
    line for a shape that is smaller in any axis is further away than all others, since what fits the registers there
    may not fit here. Of the chips the newest that is not newer than this one is nearest."""

    def distance(row: Row) -> tuple[Any, ...]:
        larger = sum(shape[axis] > size for axis, size in row.shape.items())
        apart = sum(abs(shape[axis] - size) for axis, size in row.shape.items())
        return (
            larger,
            apart,
            row.dtype != dtype,
            row.capability > capability,
            abs(row.capability - capability),
        )

    return min(rows, key=distance)
