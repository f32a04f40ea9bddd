# SPDX-License-Identifier: Apache-2.0
"""Items as tasks of a Ray cluster (2.x), a GPU each where there are any, else a core. Ray is the extra `ray`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from ditn.work.child import share_cores
from ditn.work.items import Attempt, Done, Item, Queue, Result, Worker, perform

# Tasks that are in flight for each one that can run: all others wait here, not in Ray's memory.
_AHEAD = 2
# Seconds between looks at the cluster's size, which may change while it runs.
_LOOK = 5.0
_HOW = "pip install 'ditn-kernels[ray]'"

# What this process keeps from task to task, where it is one of Ray's workers.
_worker: Worker | None = None


def run(items: Iterable[Item], done: Done, address: str | None) -> None:
    """Have the items done by the cluster at an address (None: the one of this machine or of RAY_ADDRESS, or else a new
    one for this run). A task whose process or machine is lost is given out again. On KeyboardInterrupt the tasks are
    cancelled and `done` is told of each: of its result, if it has one, or as interrupted.

    Raises ValueError without Ray, ConnectionError without that cluster.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ValueError(f"--ray needs Ray: {_HOW}") from error
    queue = Queue(items, done)
    ray.init(address, log_to_driver=False, include_dashboard=False if address is None else None)
    try:
        _give_out(ray, queue)
    finally:
        ray.shutdown()


def _give_out(ray: Any, queue: Queue) -> None:
    running: dict[Any, Attempt] = {}
    # Tries are counted here and not by Ray, so that an item's end is reported once, whatever it was.
    task = ray.remote(max_retries=0)(_perform)
    try:
        while queue or running:
            total = ray.cluster_resources()
            gpus, cores = int(total.get("GPU", 0)), int(total.get("CPU", 1))
            while queue and len(running) < _AHEAD * max(gpus or cores, 1):
                attempt = queue.take()
                running[task.options(num_gpus=min(gpus, 1), num_cpus=1).remote(attempt)] = attempt
            ready, _ = ray.wait(list(running), timeout=_LOOK)
            for one in ready:
                queue.settle(running.pop(one), _result(ray, one))
    except KeyboardInterrupt:
        for one in list(running):
            if ray.wait([one], timeout=0)[0]:
                queue.settle(running.pop(one), _result(ray, one))
        for one, attempt in running.items():
            ray.cancel(one)
            queue.settle(attempt, Result(failure="interrupted"))
        if running:
            ray.wait(list(running), num_returns=len(running), timeout=_LOOK)
        raise


def _result(ray: Any, one: Any) -> Result:
    try:
        result: Result = ray.get(one)
    except ray.exceptions.RayTaskError as error:  # before the item began: the worker has another ditn, or none
        return Result(failure=f"cannot be done by Ray's worker: {error.cause!r}")
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[0]
        return Result(failure=f"{type(error).__name__} of Ray's: {reason}", died=True)
    return result


def _perform(attempt: Attempt) -> Result:
    """In a worker of Ray's."""
    global _worker
    if _worker is None:
        import ray

        on_gpu = bool(ray.get_gpu_ids())
        # Of a GPU's task the GPU is its own; tasks of one core each fill the machine.
        _worker = Worker(peers=1 if on_gpu else os.cpu_count() or 1)
        share_cores(_worker.peers)
    return perform(attempt, _worker)
