# SPDX-License-Identifier: Apache-2.0
"""What a GPU measured of single kernels, beside the counts of the very code that ran there.

The counts are kept because the code changes: the estimate (`estimate.py`) is fitted to these, and held against them by
`test_estimate.py`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.harness.outputs import PROJECT
from benchmarks.tools.estimate import CHIPS, Count

PATH = PROJECT / "benchmarks" / "results" / "nvidia-h200" / "kernels.json"
CAPABILITY = 90


@dataclass(frozen=True)
class Measurement:
    """One kernel, or several that were only timed together, on a map of so many pixels in float16."""

    backend: str
    operator: str
    options: Mapping[str, Any]
    pixels: int
    microseconds: float
    gigahertz: float
    counts: tuple[Count, ...]

    @property
    def cycles(self) -> float:
        """Of a multiprocessor, per 64 pixels."""
        return self.microseconds * self.gigahertz * 1e3 * CHIPS[CAPABILITY].processors * 64 / self.pixels


@functools.cache
def measurements() -> tuple[Measurement, ...]:
    content = json.loads(PATH.read_text(encoding="utf-8"))
    return tuple(
        Measurement(
            row["backend"],
            row["operator"],
            row["options"],
            content["pixels"],
            row["us"],
            content["gigahertz"],
            tuple(Count(**one | {"tensor_instructions": tuple(one["tensor_instructions"])}) for one in row["counts"]),
        )
        for row in content["rows"]
    )


def cycles_of(backend: str, operator: str, options: Mapping[str, Any], kernel: str = "") -> float | None:
    """What was measured of a kernel, or of all of an operator's; None if nothing was, or not of it alone."""
    found = [one for one in measurements() if (one.backend, one.operator, one.options) == (backend, operator, options)]
    if kernel:
        found = [one for one in found if [count.kernel for count in one.counts] == [kernel]]
    return sum(one.cycles for one in found) if found else None
