# SPDX-License-Identifier: Apache-2.0
"""Writes the launch configurations of the Triton kernels, `ditn_kernels/backends/triton/configs/<kernel>.json`.

    python -m benchmarks.tools.tune             on a GPU: measures
    python -m benchmarks.tools.tune --count     anywhere: compiles for every chip and counts (sass.py)
    python -m benchmarks.tools.tune --mend      the same, only for lines that spill or do not fit

Candidates are all the block sizes that a kernel's file names in CANDIDATES, with several numbers of warps and stages,
and what the tables hold already.
Measured, all candidates are compiled first, on all cores, and the fastest that gives the right result is taken, for the
dtypes and shapes of this GPU only; the other lines of a table stay. Counted, every candidate is compiled for the
network's own shapes, and the one without spills and with the fewest estimated cycles is taken; for other shapes and
chips, the first in this order that fits there. Lines that the lookup does without are left out.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Collection, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

from benchmarks.harness import cases, outputs
from benchmarks.harness import gpu_timing as gpu
from benchmarks.tools import ahead
from benchmarks.tools.tune_count import count, mend
from benchmarks.tools.tune_measure import measure
from benchmarks.tools.tuning import FOLDER, SHAPES, tasks, write
from ditn_kernels import REGISTRY, Op
from ditn_kernels.backends.triton._config import Row
from ditn_kernels.backends.triton._dispatch import interpreted


def compile_candidates(ops: Iterable[Op], shapes: str, dtypes: Collection[str], jobs: int) -> None:
    """What is about to be measured. A candidate that does not compile says so when its turn comes."""
    capability, start = gpu.capability(), time.monotonic()
    found = [task for op in ops for task, _ in tasks(op, shapes=shapes) if task.dtype in dtypes]
    recorded = (partial(task.launches, capability, config) for task in found for config in task.options())
    count, failed = ahead.compile_all(recorded, capability, jobs)
    print(f"{count} candidates compiled in {time.monotonic() - start:.0f} s, {len(failed)} do not", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", action="store_true", help="compile and count instead of measuring")
    parser.add_argument("--mend", action="store_true", help="count, and replace only what spills or does not fit")
    parser.add_argument("--ops", nargs="+", choices=REGISTRY, default=list(REGISTRY))
    parser.add_argument("--shapes", choices=SHAPES, default="all", help="which, each more than the one before")
    parser.add_argument("--dtypes", nargs="+", choices=cases.DTYPES, default=list(cases.DTYPES))
    parser.add_argument("--minutes", type=float, default=60, help="to measure for; other lines stay (%(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="how many compile at once (%(default)s)")
    parser.add_argument("--tables", type=outputs.folder, default=FOLDER, help="where to write (default: the package's)")
    args = parser.parse_args()
    if interpreted():
        raise SystemExit("TRITON_INTERPRET is set: nothing would be compiled")
    ops = [REGISTRY[name] for name in args.ops if "triton" in REGISTRY[name].backends]
    if not (args.count or args.mend):
        gpu.require_gpu()
        compile_candidates(ops, args.shapes, args.dtypes, args.jobs)
    until = time.monotonic() + 60 * args.minutes
    for op in ops:
        rows: dict[str, list[Row]] = {}
        with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
            if args.count or args.mend:
                choose = mend if args.mend else count
                found = choose(op, pool, shapes=args.shapes, dtypes=args.dtypes)
            else:
                found = measure(op, shapes=args.shapes, dtypes=args.dtypes, until=until)
            for kernel, row in found:
                rows.setdefault(kernel, []).append(row)
        for kernel, new in rows.items():
            write(kernel, new, args.tables)
    return 0


if __name__ == "__main__":
    sys.exit(main())
