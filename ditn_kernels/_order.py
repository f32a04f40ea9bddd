# SPDX-License-Identifier: Apache-2.0
"""Which backend comes first on a GPU: a pure function over `backend_order.json`, which `benchmarks/ops.py` writes."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).parent / "backend_order.json"
MEASURED = "measured on "


@dataclass(frozen=True)
class Line:
    """One line of the table: an operator's backends on one chip (90 is sm_90), fastest first. `source` is "measured on
    <GPU>, <date>", or else the reason for the order."""

    operator: str
    direction: str
    capability: int
    dtype: str
    backends: Sequence[str]
    source: str

    @property
    def measured(self) -> bool:
        return self.source.startswith(MEASURED)


@dataclass(frozen=True)
class Order:
    """An operator's backends in the order in which they are tried on a chip; `source` says whether that is measured."""

    backends: tuple[str, ...]
    source: str

    @property
    def measured(self) -> bool:
        return self.source.startswith(MEASURED)


@functools.cache
def table() -> tuple[Line, ...]:
    return tuple(Line(**line) for line in json.loads(FILE.read_text(encoding="utf-8"))["lines"])


@functools.cache
def order(operator: str, backends: tuple[str, ...], *, capability: int, dtype: str, backward: bool) -> Order:
    """The operator's `backends` in the order of the chip's line for this dtype and direction. A chip without a line
    takes that of the newest measured chip that is not newer, else that of the oldest measured one. Backends that the
    line does not name come last; without any line the order stays as it is."""
    here = f"unmeasured on sm_{capability} in {dtype}{' backward' if backward else ''}"
    wanted = operator, "backward" if backward else "forward", dtype
    lines = [line for line in table() if (line.operator, line.direction, line.dtype) == wanted]
    own = [line for line in lines if line.capability == capability]
    lent = [line for line in lines if line.measured]
    if not (own or lent):
        return Order(backends, here)
    line = own[0] if own else min(lent, key=lambda one: _distance(one.capability, capability))
    source = line.source if own and line.measured else f"{here}: {'' if own else 'as '}{line.source}"
    first = [name for name in line.backends if name in backends]
    return Order((*first, *(name for name in backends if name not in first)), source)


def _distance(measured: int, capability: int) -> tuple[bool, int]:
    return measured > capability, abs(measured - capability)
