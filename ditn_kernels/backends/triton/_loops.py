# SPDX-License-Identifier: Apache-2.0
"""How often a kernel's loops go round: for counting machine code (`benchmarks.tools.sass`), not for launching it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ditn_kernels.backends.triton._launch import Launch


@dataclass(frozen=True)
class Loops:
    """The loops of one launch.

    `tiles` is the number of tiles that the programs of a persistent kernel share; None where each program has one tile.
    `trip_counts` are those of all other loops, per tile, in the order in which they stand in the code. What a program
    does once, before its first tile, is not among them.
    """

    tiles: int | None = None
    trip_counts: tuple[float, ...] = ()


# By a kernel's name, from its arguments by name. Kernels without a loop are left out.
Table = dict[str, Callable[[Mapping[str, Any]], Loops]]


def loops(launch: Launch) -> Loops:
    """The loops of a recorded launch, by the table LOOPS in the file of its kernel."""
    table: Table = getattr(sys.modules[launch.kernel.fn.__module__], "LOOPS", {})
    if launch.name not in table:
        return Loops()
    return table[launch.name](dict(zip(launch.kernel.arg_names, launch.args, strict=False)) | dict(launch.constants))


def slices(side: int, size: int) -> int:
    """The trip count of a product by slices of `size` of `side` channels; 1 if there is no such loop (size 0)."""
    return max(side // (size or side), 1)
