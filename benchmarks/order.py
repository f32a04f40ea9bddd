# SPDX-License-Identifier: Apache-2.0
"""From the times of operators on a GPU to the order of their backends, `ditn_kernels/backend_order.json`.

    python -m benchmarks.order    anywhere: from the results in benchmarks/results, as they came from other machines

`benchmarks.ops` does the same for the GPU that it has measured. A backend's time is the geometric mean over everything
that an operator was measured with (options and sizes), small maps as much as large ones.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from benchmarks.harness.outputs import RESULTS
from ditn_kernels import REGISTRY, _order
from ditn_kernels._order import Line, table

GPU_BACKENDS = ("triton", "cuda", "torch")
# Operators whose kernels were replaced, and when: what was timed before says nothing about them.
REPLACED = {"image_head": "2026-11-29", "image_tail": "2026-11-29"}


def lines(machine: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> list[Line]:
    """A line for each operator, direction and dtype that more than one of its backends was timed with, by kernels that
    are still there. Raises ValueError if the backends of a line were not timed with the same things."""
    times: dict[tuple[str, str, str], dict[str, dict[str, float]]] = {}
    for row in rows:
        if row["backend"] in GPU_BACKENDS and machine["date"] >= REPLACED.get(row["operator"], ""):
            found = times.setdefault((row["operator"], row["direction"], row["dtype"]), {})
            found.setdefault(row["backend"], {})[f"{row['options']} {row['size']}"] = row["median_ms"]
    source = f"measured on {machine['gpu']}, {machine['date']}"
    capability = int(machine["capability"].replace(".", ""))
    made = []
    for (operator, direction, dtype), by_backend in times.items():
        if len({frozenset(cases) for cases in by_backend.values()}) != 1:
            raise ValueError(f"{operator} {direction} {dtype}: backends were timed with different things: {by_backend}")
        ranked = sorted(by_backend, key=lambda name: statistics.geometric_mean(by_backend[name].values()))
        if len(ranked) > 1:
            made.append(Line(operator, direction, capability, dtype, ranked, source))
    return made


def untimed(line: Line) -> list[str]:
    """Backends that have a kernel for this on the chip and are not in the line: not built here, or not proved."""
    dtype, chip, backward = getattr(torch, line.dtype), divmod(line.capability, 10), line.direction == "backward"
    return [
        name
        for name, support in REGISTRY[line.operator].backends.items()
        if support.has_kernel(dtype, chip, backward=backward) and name not in line.backends
    ]


def merged(known: Iterable[Line], new: Iterable[Line]) -> list[Line]:
    """The known lines, where there are no new ones for the same operator, direction, chip and dtype, and these."""
    found = {_key(line): line for line in (*known, *new)}
    return sorted(found.values(), key=lambda line: (line.capability, line.dtype, line.direction, line.operator))


def write(new: Iterable[Line]) -> None:
    text = ",\n".join("  " + json.dumps(dataclasses.asdict(line)) for line in merged(table(), new))
    partial = _order.FILE.with_suffix(".partial")
    partial.write_text(f'{{"lines": [\n{text}\n]}}\n', encoding="utf-8")
    partial.replace(_order.FILE)
    table.cache_clear()


def _key(line: Line) -> tuple[str, str, int, str]:
    return line.operator, line.direction, line.capability, line.dtype


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args(arguments)
    for path in sorted(RESULTS.glob("*/ops.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        write(line for line in lines(content["machine"], content["rows"]) if not untimed(line))
    return 0


if __name__ == "__main__":
    sys.exit(main())
