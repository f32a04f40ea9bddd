# SPDX-License-Identifier: Apache-2.0
"""The C++ kernels against whatever else runs a DITN on a CPU.

    python -m benchmarks.cpu --model ditn-real --sizes 320x180 128x128 --threads 2 --training --json FILE

Needs `pip install .[bench]`. Every provider is a process of its own, whose result is first checked against the
published formula in float64; then they take turns (`harness/contest.py`). All but those "as installed" keep the memory
that they freed. Beside them, in the same rounds, a loop of register-only multiply-adds measures the machine's float32
peak, which is the best of its rounds. Printed and written: medians, quartiles, every round, ratios, the peak memory of
a call beyond what the process held before it, the fused network's share of the peak.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch

import ditn
from benchmarks.harness import outputs
from benchmarks.harness.contest import contest, keep_runs
from benchmarks.harness.cpu_timing import fma_peak
from benchmarks.harness.networks import MODELS
from benchmarks.harness.outputs import PROJECT
from benchmarks.harness.processes import Job
from benchmarks.harness.providers import INFERENCE, TRAINING, title
from ditn_kernels import REGISTRY
from ditn_kernels.backends.native import _libraries


def measure(
    arguments: argparse.Namespace, size: str, threads: int, *, training: bool
) -> tuple[list[dict[str, Any]], list[float]]:
    """A row for each provider, and the peak in FLOP/s in each round."""
    table = TRAINING if training else INFERENCE["cpu"]
    names = [name for name in table if not arguments.only or name in arguments.only]
    jobs = [Job(arguments.model, name, arguments.upscale, (size,), threads, training=training) for name in names]
    peaks: list[float] = []
    torch.set_num_threads(threads)
    found = contest(
        [(job, PROJECT) for job in jobs], rounds=arguments.rounds, each_round=lambda: peaks.append(fma_peak())
    )
    return [entrant.row() for entrant in found], peaks


def flops(model: ditn.DITN, size: str) -> int:
    """The folded network's, two per multiply-add, on the padded image."""
    c = model.config
    width, height = (-(-int(length) // c.grid) * c.grid for length in size.split("x"))
    axes = {"B": 1, "H": height, "W": width, "N": c.in_channels, "C": c.dim, "E": c.hidden}
    axes["D"] = c.out_channels * c.upscale**2
    itls, sals = axes | {"L": c.itls}, axes | {"L": c.sals}
    body = c.ufones * (REGISTRY["inner_patch_stage"].macs(itls) + REGISTRY["spatial_stage"].macs(sals))
    return 2 * (REGISTRY["image_head"].macs(axes) + body + REGISTRY["image_tail"].macs(axes))


def show(run: dict[str, Any]) -> None:
    print(f"{run['task']} {run['size']}, {run['threads']} threads, float32 peak {run['peak_flops'] / 1e9:.0f} GFLOP/s")
    base = run["rows"][0]["median_s"]
    for row in run["rows"]:
        low, high = row["quartiles_s"]
        line = f"  {title(row['contestant']):44} {row['median_s']:8.3f} s ({low:.3f}..{high:.3f})"
        line += f" {base / row['median_s']:6.2f} x"
        share = f"  {row['share_of_peak']:.0%} of peak" if "share_of_peak" in row else ""
        print(f"{line}  {row['extra_bytes'] / 2**20:7.0f} MiB{share}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="ditn-real")
    parser.add_argument("--upscale", type=int, default=4)
    parser.add_argument("--sizes", nargs="*", default=["320x180"], metavar="WIDTHxHEIGHT")
    parser.add_argument("--threads", nargs="+", type=int, default=[2])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", nargs="+", metavar="PROVIDER", help=f"of {', '.join(INFERENCE['cpu'])}; default all")
    parser.add_argument("--training", action="store_true", help="and a training step on a batch of 8 of 48x48")
    parser.add_argument("--json", type=outputs.file, help="where the runs go, beside those that the file has already")
    arguments = parser.parse_args()
    if reason := _libraries.why_missing():
        raise SystemExit(f"nothing to measure: the compiled library {reason}")
    runs = []
    jobs = [(size, threads, False) for size in arguments.sizes for threads in arguments.threads]
    jobs += [("48x48", threads, True) for threads in arguments.threads if arguments.training]
    model = MODELS[arguments.model](arguments.upscale)
    for size, threads, training in jobs:
        rows, peaks = measure(arguments, size, threads, training=training)
        peak = max(peaks)  # what disturbs can only lower it
        for row in rows:
            if row["contestant"] == "fused float32" and not training:
                row["share_of_peak"] = flops(model, size) / row["median_s"] / peak
        runs.append({"task": "training" if training else "inference", "size": size, "threads": threads})
        runs[-1] |= {"peak_flops": peak, "rows": rows}
        show(runs[-1])
    if arguments.json:
        keep_runs(arguments.json, runs, model=arguments.model, upscale=arguments.upscale)
    return 0


if __name__ == "__main__":
    sys.exit(main())
