# SPDX-License-Identifier: Apache-2.0
"""What a call of a network costs on the host, beside its kernels. Any machine can say it.

    python -m benchmarks.host [--model ditn-real] [--upscale 4] [--rounds 50]

For Triton and CUDA C++ the launches are left out, so that what remains is what the host does for them: the number of
Python functions that are called, and the time. On the CPU small images are run by the package, by its kernels one after
the other and nothing else, and by plain PyTorch, in turns.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import ditn
from benchmarks.harness.networks import MODELS
from ditn_kernels import Op, use_backend
from ditn_kernels._dispatch import DECOMPOSED
from ditn_kernels.backends import BACKENDS

SIZE = (184, 320)
SMALL = (8, 32, 64)


def calls(function: Callable[[], object]) -> int:
    """How many Python functions it calls, directly and indirectly."""
    number = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal number
        number += event == "call"

    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(None)
    return number


@contextlib.contextmanager
def without_launches(backend: str) -> Iterator[None]:
    """Inside, a model whose tensors are on the CPU runs by a backend for GPUs, whose kernels are not launched."""
    if backend == "triton":
        with mock.patch.dict(os.environ, TRITON_INTERPRET="1"), use_backend(backend):
            from ditn_kernels.backends.triton import _plan

            with mock.patch.object(_plan, "start", return_value=_launch_nothing):
                yield
        return

    def chosen(op: Op, args: Mapping[str, Any]) -> str:
        return backend if backend in op.backends else DECOMPOSED

    def prepared(op: Op, arguments: Sequence[Any]) -> Callable[..., Tensor]:
        results: list[Tensor] = []

        def run(*maps: Tensor) -> Tensor:
            if not results:
                named = op.named([*maps, *arguments])
                shape = op.output_shape(op.check(named), named)
                results.append(torch.empty(shape, dtype=maps[0].dtype, memory_format=torch.channels_last))
            return results[0]

        return run

    with (
        mock.patch("ditn_kernels._prepared.select", chosen),
        mock.patch.object(BACKENDS[backend], "prepared", prepared),
    ):
        yield


def _launch_nothing(*args: object) -> None:
    """In place of a kernel."""


def of_a_gpu(model: ditn.DITN, backend: str, rounds: int) -> Mapping[str, float]:
    """Python calls and median milliseconds of a call whose launches are left out."""
    image = torch.rand(1, 3, *SIZE).to(model.sft.weight).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode(), without_launches(backend):
        model(image)
        number = calls(lambda: model(image))
        return {"calls": number, "ms": 1e3 * statistics.median(_times([lambda: model(image)], rounds)[0])}


def kernels_of(model: ditn.DITN, image: Tensor) -> list[Callable[[], Tensor]]:
    """The launches of a call on the CPU, with what each is given, and nothing around them."""
    found: list[Callable[[], Tensor]] = []
    one = BACKENDS["cpp"]
    prepared = one.prepared

    def recorded(op: Op, arguments: Sequence[Any]) -> Callable[..., Tensor]:
        kernel = prepared(op, arguments)

        def run(*maps: Tensor) -> Tensor:
            found.append(lambda: kernel(*maps))
            return kernel(*maps)

        return run

    with mock.patch.object(one, "prepared", recorded):
        model.refold()
        model(image)
        found.clear()
        model(image)
    model.refold()
    return found


def on_the_cpu(model: ditn.DITN, plain: ditn.DITN, side: int, rounds: int) -> Mapping[str, float]:
    """Median milliseconds of the fused network, of its kernels alone and of plain PyTorch."""
    image = torch.rand(1, 3, side, side)
    with torch.inference_mode():
        kernels = kernels_of(model, image)
        providers = {
            "fused": lambda: model(image),
            "kernels": lambda: [run() for run in kernels],
            "plain": lambda: plain(image),
        }
        times = _times(list(providers.values()), rounds)
    return {name: 1e3 * statistics.median(found) for name, found in zip(providers, times, strict=True)}


def _times(functions: list[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Seconds of each in each round; they take turns."""
    for function in functions:
        function(), function()
    found: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds):
        for function, times in zip(functions, found, strict=True):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="ditn-real")
    parser.add_argument("--upscale", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=50)
    arguments = parser.parse_args()
    make = MODELS[arguments.model]
    model, half, plain = (make(arguments.upscale).eval().requires_grad_(False) for _ in range(3))
    half.half()
    for part in (plain, *plain.UFONE):
        part.fused = False
    for backend in ("triton", "cuda"):
        found = of_a_gpu(half, backend, arguments.rounds)
        print(f"{backend:7} {found['calls']:5.0f} Python calls, {found['ms']:6.3f} ms on the host, launches left out")
    for side in SMALL:
        times = on_the_cpu(model, plain, side, arguments.rounds)
        extra, ratio = times["fused"] - times["kernels"], times["fused"] / times["plain"]
        text = f"{times['fused']:7.2f} ms, {extra:5.2f} ms more than its kernels, {ratio:.2f} of plain PyTorch's"
        print(f"cpu     {side}x{side}: {text}")


if __name__ == "__main__":
    main()
