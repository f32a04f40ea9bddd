# SPDX-License-Identifier: Apache-2.0
"""Every kernel of this package under Nsight Compute: what of the GPU it keeps busy, one line each.

    python -m benchmarks.tools.counters [--ops gated_ffn] [--dtype float16]

DITN-Real x4's layers on a map of 960 x 544, by Triton and by CUDA C++, forward and backward. The clocks are left alone
(`--clock-control none`), so that times are those that a user sees. Exit code 0, as is said, if `ncu` is not installed.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.harness import cases
from benchmarks.harness import gpu_timing as gpu
from benchmarks.harness.outputs import PROJECT
from ditn_kernels import REGISTRY, Op
from ditn_kernels._dispatch import reasons_against

# Heading, and the metric's name in Nsight Compute's pages of details.
COLUMNS = {
    "us": "Duration",
    "SM %": "Compute (SM) Throughput",
    "L1 %": "L1/TEX Cache Throughput",
    "L2 %": "L2 Cache Throughput",
    "DRAM %": "DRAM Throughput",
    "IPC": "Executed Ipc Active",
    "registers": "Registers Per Thread",
    "warps": "Achieved Active Warps Per SM",
}
SECTIONS = ("SpeedOfLight", "ComputeWorkloadAnalysis", "LaunchStats", "Occupancy")
MICROSECONDS = {"ns": 1e-3, "us": 1.0, "ms": 1e3, "s": 1e6}
# Of our kernels, in Triton and in CUDA C++; nobody else's begin with an underscore.
OURS = "regex:^_.*_kernel$"


def calls(op: Op, dtype: torch.dtype) -> Iterator[Callable[[], Any]]:
    """The operator on the network's layers, by every backend with kernels for GPUs."""
    for sample, backend in itertools.product(cases.framed_samples(op), ("triton", "cuda")):
        args = cases.inputs(op, sample, dtype=dtype, device="cuda")
        if not reasons_against(op, backend, args):
            yield lambda args=args, backend=backend: op(*args.values(), backend=backend)  # type: ignore[misc]
        if not reasons_against(op, backend, args, backward=True):
            grad = torch.randn(op.output_shape(op.check(args), args), dtype=dtype, device="cuda")
            overload = getattr(torch.ops.ditn, f"{op.name}_backward").default
            yield lambda args=args, backend=backend, grad=grad, overload=overload: overload(  # type: ignore[misc]
                grad.contiguous(memory_format=torch.channels_last), *args.values(), backend=backend
            )


def run_each(ops: list[str], dtype: torch.dtype) -> None:
    """Each call twice, the second time for the profiler: by then everything is compiled."""
    for call in (call for name in ops for call in calls(REGISTRY[name], dtype)):
        call()
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        call()
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()


def table(text: str) -> list[str]:
    """One line for each launch in what `ncu --csv --page details` prints. Raises ValueError if there is no table."""
    lines = text.splitlines()
    start = next((number for number, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        raise ValueError(f"ncu printed no table: {' '.join(lines[-3:]) or 'nothing'}")
    found: dict[str, dict[str, str]] = {}
    names = {metric: heading for heading, metric in COLUMNS.items()}
    for row in csv.DictReader(lines[start:]):
        values = found.setdefault(row["ID"], {"kernel": kernel(row["Kernel Name"])})
        if heading := names.get(row["Metric Name"]):
            value = float(row["Metric Value"].replace(",", ""))
            value *= MICROSECONDS[row["Metric Unit"]] if heading == "us" else 1
            values[heading] = f"{value:.2f}" if heading == "IPC" else f"{value:.0f}"
    form = "{:40}" + "{:>10}" * len(COLUMNS)
    return [form.format("kernel", *COLUMNS)] + [
        form.format(values["kernel"], *(values.get(heading, "?") for heading in COLUMNS)) for values in found.values()
    ]


def kernel(name: str) -> str:
    """Without name space, types of arguments, and what all kernels' names have."""
    found = re.search(r"(?:^|::| )_(\w+?)_kernel\b", name)
    return f"{found[1]}{' (CUDA C++)' if '::' in name or '(' in name else ''}" if found else name


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ops", nargs="+", choices=REGISTRY, default=list(REGISTRY))
    parser.add_argument("--dtype", choices=cases.DTYPES, default="float16")
    parser.add_argument("--inside", action="store_true", help="only run the kernels, as the profiler's program")
    args = parser.parse_args()
    gpu.require_gpu()
    if args.inside:
        run_each(args.ops, cases.DTYPES[args.dtype])
        return 0
    program = gpu.cuda_program("ncu")
    if program is None:
        print("skipped: ncu is not installed (CUDA's toolkit brings it; looked in PATH and CUDA_HOME)")
        return 0
    command = [program, "--clock-control", "none", "--csv", "--page", "details", "--profile-from-start", "off"]
    command += [option for section in SECTIONS for option in ("--section", section)] + ["--kernel-name", OURS]
    command += [
        sys.executable,
        "-m",
        "benchmarks.tools.counters",
        "--inside",
        "--ops",
        *args.ops,
        "--dtype",
        args.dtype,
    ]
    result = subprocess.run(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    if result.returncode:
        print(result.stdout)
        raise SystemExit(f"ncu failed with exit code {result.returncode}")
    print(*table(result.stdout), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
