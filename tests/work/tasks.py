# SPDX-License-Identifier: Apache-2.0
"""Functions of items, in a module that costs the processes that do them nothing to import."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from ditn.work.items import Worker


def write(folder: str, name: str, worker: Worker) -> int:
    """An item's function: leaves a trace of each time that it is called."""
    with (Path(folder) / name).open("a") as file:
        file.write(f"{os.getpid()}\n")
    return len(name)


def fail(reason: str, worker: Worker) -> None:
    raise KeyError(reason)


def kill(folder: str, times: int, worker: Worker) -> int:
    """Kills its process the first so many times."""
    if worker.attempt <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return write(folder, "killed", worker)


def sleep(folder: str, seconds: float, worker: Worker) -> int:
    time.sleep(seconds)
    return write(folder, "slept", worker)
