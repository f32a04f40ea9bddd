# SPDX-License-Identifier: Apache-2.0
"""The stopwatch of networks, and how calls take turns.

Whole networks are timed by `seconds` alone: on a CPU each in a process of its own (`benchmarks.harness.contest`), on a
GPU in one process, since PyTorch's allocator there keeps freed memory for everybody.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch


def seconds(call: Callable[[], object]) -> float:
    """From the call to the finished result. What a GPU has been given is waited for, before and after."""
    _wait()
    start = time.perf_counter()
    call()
    _wait()
    return time.perf_counter() - start


def in_turns(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    warm_up: int = 1,
    clock: Callable[[Callable[[], object]], float] = seconds,
) -> dict[str, list[float]]:
    """Seconds of each call in each round, after `warm_up` rounds that do not count. A round makes every call once, so
    that a machine whose speed drifts drifts for all."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(warm_up + rounds):
        for name, call in calls.items():
            elapsed = clock(call)
            if number >= warm_up:
                found[name].append(elapsed)
    return found


def _wait() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
