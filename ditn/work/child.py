# SPDX-License-Identifier: Apache-2.0
"""A process that does items for this one, so that what ends it (a kill for memory, a crash in a driver) ends no more
than its item."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
from multiprocessing.connection import Connection
from types import FrameType

from ditn.work.items import Attempt, Result, Worker, perform

# Seconds in which an interrupted child removes its unfinished files.
_GRACE = 20.0


class Child:
    """One process that does one item at a time; when it dies, another one takes its place.

    number, peers   which of how many workers of this machine it is
    """

    def __init__(self, number: int = 0, peers: int = 1) -> None:
        self._place = number, peers
        self._start()

    @property
    def pid(self) -> int:
        return self._process.pid or 0

    def give(self, attempt: Attempt) -> None:
        """Have it begin an item. It must have none."""
        if not self._process.is_alive():  # it died idle, which costs nothing
            self._start()
        self._pipe.send(attempt)

    def poll(self, seconds: float = 0.0) -> Result | None:
        """The result of its item, if there is one within so many seconds."""
        try:
            if not self._pipe.poll(seconds):
                return None
            result: Result = self._pipe.recv()
            return result
        except (EOFError, OSError, pickle.UnpicklingError):  # the last of one that died while it wrote
            self._process.join(_GRACE)
            reason = _ended(self._process.exitcode)
            self._start()
            return Result(failure=f"the process that worked on it {reason}", died=True)

    def stop(self) -> Result | None:
        """End it; what it has not finished is removed. The result of its item, if that had ended and was not taken."""
        self._process.terminate()
        self._process.join(_GRACE)
        self._process.kill()
        self._process.join()
        try:
            result: Result | None = self._pipe.recv() if self._pipe.poll() else None
        except (EOFError, OSError, pickle.UnpicklingError):
            result = None
        self._pipe.close()
        return result

    def _start(self) -> None:
        # A fork would inherit threads' locks and a GPU's state, neither of which works there.
        context = multiprocessing.get_context("spawn")
        self._pipe, end = context.Pipe()
        self._process = context.Process(target=_serve, args=(end, *self._place), daemon=True)
        self._process.start()
        end.close()  # so that the pipe ends when the process does


def _ended(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"was ended by {name}" + (", as happens where memory runs out" if name == "SIGKILL" else "")
    return f"ended with code {code}"


def _serve(pipe: Connection, number: int, peers: int) -> None:
    """The child's life. It ends when the pipe does, at the latest behind the item that it is doing."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal, which sends it to all; `stop` then ends this one
    signal.signal(signal.SIGTERM, _interrupt)
    share_cores(peers)
    worker = Worker(number=number, peers=peers)
    try:
        while True:
            pipe.send(perform(pipe.recv(), worker))
    except (EOFError, BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        return


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def share_cores(peers: int) -> None:
    """From now on use this worker's share of the machine's cores. torchrun gives every process one thread instead."""
    if peers > 1:
        threads = max(1, len(os.sched_getaffinity(0)) // peers) if hasattr(os, "sched_getaffinity") else 1
        os.environ["VIPS_CONCURRENCY"] = str(threads)
        import torch

        torch.set_num_threads(threads)
