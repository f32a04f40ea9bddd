# SPDX-License-Identifier: Apache-2.0
"""Compiles the Triton kernels ahead, on all cores at once, so that no test and no timing waits for a compiler.

    python -m benchmarks.tools.ahead [--dtypes float16] [--ops gated_ffn]

Every launch of every operator with Triton kernels, forward and backward, for this GPU: the operators' samples, the
layers of DITN-Real x4 on pictures of 960 x 540 and 320 x 180, and on a batch of training crops. Triton keeps on disk
what it has compiled, and finds it when the same launch is really made. Nothing runs on the GPU.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from benchmarks.harness import cases
from benchmarks.harness import gpu_timing as gpu
from benchmarks.tools.resources import Case
from ditn_kernels import REGISTRY, Op
from ditn_kernels._op import Sample
from ditn_kernels.backends.triton import _compile, _ptxas
from ditn_kernels.backends.triton._dispatch import interpreted
from ditn_kernels.backends.triton._launch import Launch

# Batch, height and width, besides those of `cases.FRAME`.
_MAPS = ((1, 192, 320), (1, 184, 320), (1, 544, 960), (16, 64, 64))
# A function without arguments that records launches; it is sent to other processes.
Recorded = Callable[[], list[Launch]]


@dataclass(frozen=True)
class _Chip:
    """As much of Triton's driver as compiling asks for, without a context on the GPU."""

    capability: int

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def every_case(capability: int, dtypes: Collection[torch.dtype], ops: Collection[str]) -> Iterator[Case]:
    """What the tests and benchmarks launch on this chip; what takes longest to compile first."""
    order = sorted(dtypes, key=lambda dtype: dtype != torch.float32)
    for backward, dtype, op in itertools.product((True, False), order, (REGISTRY[name] for name in ops)):
        if (support := op.backends.get("triton")) is None or support.why_not_on(
            divmod(capability, 10), backward=backward
        ):
            continue
        for sample in samples(op):
            args = cases.inputs(op, sample, dtype=dtype, device="meta")
            if not support.why_not(args, backward=backward):
                yield Case(op.name, backward, sample, dtype, capability)


def samples(op: Op) -> Iterator[Sample]:
    yield from (sample for sample in op.samples if sample.axes["B"])
    for sample, (batch, height, width) in itertools.product(cases.default_samples(op), _MAPS):
        yield replace(sample, axes={**sample.axes, "B": batch, "H": height, "W": width})


def launches(case: Case) -> list[Launch]:
    op = REGISTRY[case.op]
    return cases.launches(op, case.sample, dtype=case.dtype, capability=case.capability, backward=case.backward)


def compile_all(recorded: Iterable[Recorded], capability: int, jobs: int) -> tuple[int, list[str]]:
    """How many different launches were compiled, or found compiled, and what was said of each that could not be."""
    seen: set[tuple[str, int, int]] = set()
    futures: dict[Future[None], str] = {}
    failed = []
    with ProcessPoolExecutor(jobs, get_context("spawn"), initializer=_without_gpu, initargs=(capability,)) as pool:
        for record in recorded:
            for index, launch in enumerate(record()):
                config = launch.config
                key = (_compile.source(launch).hash(), config.num_warps, config.num_stages)
                if key not in seen:
                    seen.add(key)
                    futures[pool.submit(_compile_one, record, index)] = launch.name
        for future, kernel in futures.items():
            if error := future.exception():
                failed.append(f"{kernel}: {type(error).__name__}: {str(error).strip().splitlines()[:1]}")
    return len(seen) - len(failed), failed


def _without_gpu(capability: int) -> None:
    driver.set_active(_Chip(capability))


def _compile_one(record: Recorded, index: int) -> None:
    """As a launch does, of tensors that are aligned as allocated memory is."""
    launch = record()[index]
    _ptxas.own(launch.kernel)
    args: list[Any] = [torch.empty(64, dtype=a.dtype) if torch.is_tensor(a) else a for a in launch.args]
    warps, stages = launch.config.num_warps, launch.config.num_stages
    launch.kernel.warmup(*args, grid=(1,), **launch.constants, num_warps=warps, num_stages=stages)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtypes", nargs="+", choices=cases.DTYPES, default=list(cases.DTYPES))
    parser.add_argument("--ops", nargs="+", choices=REGISTRY, default=list(REGISTRY))
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="how many compile at once (%(default)s)")
    args = parser.parse_args()
    if interpreted():
        raise SystemExit("TRITON_INTERPRET is set: nothing would be compiled")
    gpu.require_gpu()
    capability = gpu.capability()
    start = time.monotonic()
    chosen = every_case(capability, [cases.DTYPES[name] for name in args.dtypes], args.ops)
    count, failed = compile_all((partial(launches, case) for case in chosen), capability, args.jobs)
    print(*failed, sep="\n")
    seconds = time.monotonic() - start
    print(f"compiled {count} kernels for sm_{capability} in {seconds:.0f} s, {args.jobs} at once, {len(failed)} failed")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
