# SPDX-License-Identifier: Apache-2.0
"""Timing operators on a CPU, and its roofs, under the names that `benchmarks.harness.gpu_timing` has for a GPU."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from benchmarks.harness.machine import machine as machine
from benchmarks.harness.timing import in_turns, seconds

# Larger than any last-level cache.
_FLUSHED_BYTES = 512 << 20
_ROUNDS_OF_COPY, _ROUNDS_OF_FMA = 10, 100


def cold_milliseconds(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Time of each call in each round, in turns. What it reads is in no cache: half a gigabyte is written before."""
    buffer = torch.empty(_FLUSHED_BYTES, dtype=torch.int8)

    def cold(call: Callable[[], object]) -> float:
        buffer.fill_(1)
        return 1e3 * seconds(call)

    return in_turns(calls, rounds, clock=cold)


@functools.cache
def copy_bytes_per_second() -> float:
    """Bytes read and written by a large copy, in the best round: what disturbs can only lower it."""
    source = torch.ones(_FLUSHED_BYTES, dtype=torch.int8)
    target = torch.empty_like(source)
    times = cold_milliseconds({"copy": lambda: target.copy_(source)}, _ROUNDS_OF_COPY)["copy"]
    return 2 * source.numel() / (min(times) * 1e-3)


@functools.cache
def matmul_macs_per_second(dtype: torch.dtype) -> float:
    """Of multiply-adds in registers, in the best round; of float32, since that is what the kernels compute in."""
    return max(fma_peak() for _ in range(_ROUNDS_OF_FMA)) / 2


def fma_peak() -> float:
    """FLOP/s of this process' threads in a loop of multiply-adds that touches nothing but registers."""
    start = time.perf_counter()
    flops = torch.ops.ditn_native.fma_loop(500 * torch.get_num_threads())
    return float(flops / (time.perf_counter() - start))
