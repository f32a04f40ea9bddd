# SPDX-License-Identifier: Apache-2.0
"""What `ditn export` gains: its files against the plain graph, on ONNX Runtime, OpenVINO and AOTInductor.

    python -m benchmarks.deploy --sizes 160x90 320x180 640x360 --json FILE

Needs `pip install .[bench]`. The plain graph is the published formula exported at one size, as exports of DITN were so
far; "one size" is the exported graph made at one size. Every provider is a process of its own, whose result is first
checked against the published formula in float64; then they take turns (`harness/contest.py`). Printed and written for
each size: medians, quartiles, the ratio to the plain graph in the same runtime, the peak memory of the first call
beyond what the process held before. Runs of other sizes and threads that the file has already are kept, so that a long
comparison can be made in parts.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from benchmarks.harness import outputs
from benchmarks.harness.contest import contest, keep_runs
from benchmarks.harness.networks import MODELS
from benchmarks.harness.outputs import PROJECT
from benchmarks.harness.processes import Job
from benchmarks.harness.providers import DEPLOYMENT
from ditn_kernels import native_libraries


def measure(arguments: argparse.Namespace, size: str, threads: int) -> list[dict[str, Any]]:
    """A row for each provider."""
    names = [name for name in DEPLOYMENT if not arguments.only or name in arguments.only]
    jobs = [Job(arguments.model, name, arguments.upscale, (size,), threads) for name in names]
    return [found.row() for found in contest([(job, PROJECT) for job in jobs], rounds=arguments.rounds)]


def gain(row: dict[str, Any], rows: list[dict[str, Any]]) -> float | None:
    """How many times as fast as the plain graph in the same runtime and run; None if that is not there."""
    plain = f"{row['contestant'].split(',')[0]}, published"
    return next((other["median_s"] / row["median_s"] for other in rows if other["contestant"] == plain), None)


def show(run: dict[str, Any]) -> None:
    print(f"{run['size']}, {run['threads']} threads")
    for row in run["rows"]:
        low, high = row["quartiles_s"]
        ratio = gain(row, run["rows"])
        against = "" if ratio is None else f"{ratio:6.2f} x"
        print(
            f"  {row['contestant']:34} {row['median_s']:8.3f} s ({low:.3f}..{high:.3f}) {against:>9}"
            f"  {row['extra_bytes'] / 2**20:7.0f} MiB",
            flush=True,
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="ditn-real")
    parser.add_argument("--upscale", type=int, default=4)
    parser.add_argument("--sizes", nargs="+", default=["320x180"], metavar="WIDTHxHEIGHT")
    parser.add_argument("--threads", nargs="+", type=int, default=[2])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", nargs="+", metavar="PROVIDER", help=f"of {', '.join(DEPLOYMENT)}; default all")
    parser.add_argument("--json", type=outputs.file, help="where the runs go, beside those that the file has already")
    arguments = parser.parse_args()
    native_libraries()
    runs = []
    for size in arguments.sizes:
        for threads in arguments.threads:
            rows = measure(arguments, size, threads)
            runs.append({"task": "deployment", "size": size, "threads": threads, "rows": rows})
            show(runs[-1])
    if arguments.json:
        keep_runs(arguments.json, runs, model=arguments.model, upscale=arguments.upscale)
    return 0


if __name__ == "__main__":
    sys.exit(main())
