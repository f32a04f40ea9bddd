# SPDX-License-Identifier: Apache-2.0
"""Timing on a GPU, and what a result has to say about where it was measured."""

from __future__ import annotations

import functools
import os
import platform
import re
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import triton

from benchmarks.harness.outputs import PROJECT, RESULTS
from benchmarks.harness.timing import in_turns
from ditn_kernels.backends.triton import _assembler

# Larger than any second-level cache, and long enough to write that the host is ahead when the clock starts.
_FLUSHED_BYTES = 512 << 20
_ROUNDS_OF_WARM_UP = 3


def require_gpu() -> torch.device:
    if not torch.cuda.is_available():
        raise SystemExit("needs a CUDA GPU, and PyTorch finds none")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda")


def capability() -> int:
    """Of the first GPU: 90 for sm_90."""
    major, minor = torch.cuda.get_device_capability(0)
    return 10 * major + minor


def cuda_program(name: str) -> str | None:
    """The path of a program of CUDA's toolkit."""
    places = (os.environ.get("CUDA_HOME"), "/usr/local/cuda", "/opt/cuda")
    binaries = [os.environ.get("PATH", "")] + [str(Path(place) / "bin") for place in places if place]
    return shutil.which(name, path=os.pathsep.join(binaries))


def machine() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"),
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "assembler": str(_assembler.choose(capability())),
        "python": platform.python_version(),
        "commit": _output("git", "rev-parse", "--short=12", "HEAD"),
        "date": time.strftime("%Y-%m-%d"),
    }


def results_folder() -> Path:
    """`benchmarks/results/<gpu>/`, made if it is missing."""
    name = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(0).lower()).strip("-")
    folder = RESULTS / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def cold_milliseconds(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Time on the GPU of each call in each round, in turns. What the call reads is not in the second-level cache,
    since half a gigabyte is written before it; and its launches are queued by then, so the host's time is not in it."""
    buffer = torch.empty(_FLUSHED_BYTES, dtype=torch.int8, device="cuda")
    events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in calls}
    for number in range(_ROUNDS_OF_WARM_UP + rounds):
        for name, call in calls.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            buffer.zero_()
            start.record()
            call()
            end.record()
            if number >= _ROUNDS_OF_WARM_UP:
                events[name].append((start, end))
    torch.cuda.synchronize()
    return {name: [start.elapsed_time(end) for start, end in pairs] for name, pairs in events.items()}


def latencies(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds from the call to the finished result, the host's time included, in turns."""
    times = in_turns(calls, rounds, warm_up=_ROUNDS_OF_WARM_UP)
    return {name: [1e3 * one for one in some] for name, some in times.items()}


def host_milliseconds(call: Callable[[], Any], rounds: int) -> float:
    """Median time until the call has queued its work and returns."""
    times = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    torch.cuda.synchronize()
    return statistics.median(times)


def peak_bytes(call: Callable[[], Any]) -> int:
    """The most that the call has allocated at once, besides what was there before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return int(torch.cuda.max_memory_allocated() - before)


def summary(values: Iterable[float]) -> dict[str, Any]:
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median_ms": middle, "quartiles_ms": [low, high]}


@functools.cache
def copy_bytes_per_second() -> float:
    """Bytes read and written by a copy of 1 GiB."""
    source = torch.empty(1 << 30, dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    times = cold_milliseconds({"copy": lambda: target.copy_(source)}, 20)["copy"]
    return 2 * source.numel() / (statistics.median(times) * 1e-3)


@functools.cache
def matmul_macs_per_second(dtype: torch.dtype) -> float:
    """Multiply-adds of a square product of 8192, by PyTorch's library."""
    side = 8192
    a, b = (torch.randn(side, side, device="cuda", dtype=dtype) for _ in range(2))
    times = cold_milliseconds({"matmul": lambda: a @ b}, 10)["matmul"]
    return side**3 / (statistics.median(times) * 1e-3)


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, cwd=PROJECT).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
