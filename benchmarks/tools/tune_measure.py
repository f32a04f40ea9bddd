# SPDX-License-Identifier: Apache-2.0
"""Chooses configurations by their time on this GPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import triton

from benchmarks.harness import cases
from benchmarks.harness import gpu_timing as gpu
from benchmarks.oracle.tolerance import assert_as_good
from benchmarks.tools.tuning import Task, short, tasks
from ditn_kernels import REGISTRY, Op
from ditn_kernels.backends.triton._config import Config, Row
from ditn_kernels.backends.triton._launch import configured

# What Triton raises for a candidate that cannot be compiled, or launched for want of registers or shared memory.
REFUSED = (triton.CompilationError, triton.runtime.errors.PTXASError, triton.OutOfResources, RuntimeError)
_ROUNDS = 15


def measure(op: Op, *, shapes: str, dtypes: Iterable[str], until: float) -> Iterator[tuple[str, Row]]:
    """The lines of the tables of an operator's kernels, and the kernels' names, for this GPU, until time.monotonic()
    has got that far."""
    name = torch.cuda.get_device_name(0)
    for task, _ in tasks(op, shapes=shapes):
        if task.dtype not in dtypes:
            continue
        if time.monotonic() > until:
            print(f"no time left for {task.kernel} {task.dtype} {dict(task.shape)}: its line stays", flush=True)
            continue
        times = milliseconds(task)
        if not times:
            raise SystemExit(f"{task.kernel} {task.dtype} {dict(task.shape)}: no candidate runs")
        ms, config = min(times, key=lambda pair: pair[0])
        print(f"{task.kernel} {task.dtype} {dict(task.shape)}: {short(config)}, {ms:.3f} ms", flush=True)
        yield task.kernel, Row(gpu.capability(), task.dtype, task.shape, config, f"measured on {name}")


def milliseconds(task: Task) -> list[tuple[float, Config]]:
    """The operator's median time with every candidate of the task's kernel that can run and is right."""
    op, dtype = REGISTRY[task.op], cases.DTYPES[task.dtype]
    args = cases.inputs(op, task.sample, dtype=dtype, device="cuda")
    grad = torch.randn(op.output_shape(op.check(args), args), dtype=dtype, device="cuda")
    grad = grad.contiguous(memory_format=torch.channels_last)
    overload = getattr(torch.ops.ditn, f"{op.name}_backward" if task.backward else op.name).default

    def call() -> Any:
        return overload(*([grad] if task.backward else []), *args.values(), backend="triton")

    found = []
    for config in task.options():
        with configured({task.kernel: config}):
            try:
                check(task)
                found.append((statistics.median(gpu.cold_milliseconds({"": call}, _ROUNDS)[""]), config))
            except REFUSED as error:
                print(f"  {short(config)} cannot run: {str(error).splitlines()[0]}", flush=True)
    return found


def check(task: Task) -> None:
    """The result on a small map, by the rule of the tests. Raises AssertionError: a wrong kernel is not tuned."""
    op, dtype = REGISTRY[task.op], cases.DTYPES[task.dtype]
    args = op.inputs(cases.enlarged(task.sample, 32, 48), dtype=dtype, device="cuda")
    grad = torch.randn(op.output_shape(op.check(args), args), dtype=dtype, device="cuda")
    wide = {name: value.double() if torch.is_tensor(value) else value for name, value in args.items()}
    if task.backward and op.backward is not None:
        overload = getattr(torch.ops.ditn, f"{op.name}_backward").default
        results = overload(grad, *args.values(), backend="triton")
        exact, plain = op.backward(grad.double(), *wide.values()), op.backward(grad, *args.values())
    else:
        results = (op(*args.values(), backend="triton"),)
        exact, plain = (op.reference(*wide.values()),), (op.reference(*args.values()),)
    for index, (got, want, base) in enumerate(zip(results, exact, plain, strict=True)):
        assert_as_good(got, want, base, op.atol_of_max[dtype], f"{task.kernel}, result {index}")
