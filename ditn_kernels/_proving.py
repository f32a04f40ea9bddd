# SPDX-License-Identifier: Apache-2.0
"""Proves all kernels of a device, whatever is known of them, in separate processes: an illegal memory access ends only
the kernel's own process, and later processes find the verdict."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import torch

from ditn_kernels import _proof, _trial, _verdicts
from ditn_kernels._dispatch import reasons_unproved
from ditn_kernels._op import Op, Sample
from ditn_kernels.backends import BACKENDS
from ditn_kernels.ops import REGISTRY

_context = multiprocessing.get_context("spawn")
# Each has a CUDA context of half a gigabyte.
_MOST_PROCESSES = 8
# How a process ends by what it computes. Other signals come from outside, as when a terminal closes or memory is short.
_CRASHES = {-number for name in ("SEGV", "BUS", "ILL", "FPE", "ABRT") if (number := getattr(signal, f"SIG{name}", 0))}


@dataclass(frozen=True)
class Case:
    """A kind of call, and the backend to prove for it."""

    operator: str
    sample: Sample
    backend: str
    dtype: torch.dtype
    backward: bool
    device: str

    def call(self) -> _proof.Call:
        op = REGISTRY[self.operator]
        args = op.inputs(self.sample, dtype=self.dtype, device=self.device)
        return _proof.Call(op, self.backend, BACKENDS[self.backend], args, self.backward)


@dataclass(frozen=True)
class Proof:
    """What was found of one kind of call, that of an operator's sample. `fault` is empty for a kernel that is right.
    `is_verdict`: later processes go by it; false where the kernel could not be tried, or failed in a way that may pass.
    """

    operator: str
    direction: str
    backend: str
    dtype: str
    sample: str
    fault: str
    is_verdict: bool


def prove(device: torch.device | str, operators: Collection[str] = tuple(REGISTRY)) -> Iterator[Proof]:
    """Try every kernel that runs on the device and has to be proved, and keep the verdicts; on a CPU there are none. It
    starts processes, so a script has to call it under `if __name__ == "__main__":`. With cold caches it compiles for
    minutes.

    Raises ValueError for a DITN_PROOF that is neither "on" nor "off", NotADirectoryError for a cache folder that is a
    file, as the first call of such a kernel does.
    """
    if not _proof.is_on():
        return
    _verdicts.folder()
    groups = [list(_cases(REGISTRY[name], torch.device(device))) for name in operators]
    children = _Children()
    with ThreadPoolExecutor(min(_MOST_PROCESSES, os.cpu_count() or 1)) as pool, children:
        found = pool.map(lambda cases: list(_prove(cases, children)), filter(None, groups))
        yield from itertools.chain.from_iterable(found)


def _cases(op: Op, device: torch.device) -> Iterator[Case]:
    if device.type not in _proof.DEVICES:
        return
    samples = [sample for sample in op.samples if sample.axes["B"]]
    for sample, dtype in itertools.product(samples, op.atol_of_max):
        args = op.inputs(sample, dtype=dtype, device=device)
        for name, backward in itertools.product(op.backends, (False, True)):
            if (
                not reasons_unproved(op, name, args, backward=backward)
                and BACKENDS[name].identity(op, device) is not None
            ):
                yield Case(op.name, sample, name, dtype, backward, str(device))


class _Children:
    """The processes that prove. Leaving the context ends them, and no more are started."""

    def __init__(self) -> None:
        self._running: list[BaseProcess] = []
        self._lock = threading.Lock()
        self.ended = False

    def start(self, cases: list[Case]) -> tuple[BaseProcess, Connection] | None:
        """A process and what it sends of these cases; None if all has ended."""
        with self._lock:
            if self.ended:
                return None
            receiver, sender = _context.Pipe(duplex=False)
            process = _context.Process(target=_work, args=(cases, sender))
            process.start()
            sender.close()
            self._running.append(process)
            return process, receiver

    def __enter__(self) -> _Children:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.ended = True
            for process in self._running:
                process.terminate()


def _prove(cases: list[Case], children: _Children) -> Iterator[Proof]:
    """One process at a time: where one ended early, the next continues."""
    while cases and (started := children.start(cases)):
        process, receiver = started
        done = 0
        try:
            while done < len(cases):
                yield _found(cases[done], *receiver.recv())
                done += 1
        except EOFError:
            process.join()
        if not done and not children.ended:
            fault, crashed = f"ends its process ({_exit(process.exitcode)})", process.exitcode in _CRASHES
            if crashed:
                call = cases[0].call()
                _verdicts.write(call.facts(call.backend.identity(call.op, call.device) or {}), fault)
            yield _found(cases[0], fault, crashed)
        process.join()
        cases = cases[max(done, 1) :]


def _work(cases: list[Case], sender: Connection) -> None:
    """Send what is wrong with each, and whether that is a verdict, until the process has lost its GPU."""
    for case in cases:
        try:
            call = case.call()
            fault = _proof.prove(call, call.backend.identity(call.op, call.device) or {})
        except Exception as error:
            sender.send((f"could not be tried: {type(error).__name__}: {error}", False))
        else:
            sender.send((fault, not _trial.may_pass(fault, call.device)))
            if fault and not _trial.alive(call.device):
                return


def _found(case: Case, fault: str, is_verdict: bool) -> Proof:
    direction = "backward" if case.backward else "forward"
    dtype = str(case.dtype).removeprefix("torch.")
    return Proof(case.operator, direction, case.backend, dtype, case.sample.name, fault, is_verdict)


def _exit(code: int | None) -> str:
    return signal.strsignal(-code) or str(code) if code and code < 0 else f"exit status {code}"
