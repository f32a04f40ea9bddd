# SPDX-License-Identifier: Apache-2.0
"""Signals that end a command end it as Ctrl-C does: temporary files go, and a report says what was done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Those that would end the process at once and leave its files: from a terminal, a user, a scheduler, a limit of time.
_ENDING = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGXCPU", "SIGUSR1", "SIGUSR2")

_received: list[int] = []


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Within the block each of these signals raises KeyboardInterrupt. One that is ignored, as SIGHUP is under nohup,
    stays so. Nothing outside the main thread, where Python takes no signals."""
    previous = {}

    def interrupt(number: int, frame: FrameType | None) -> None:
        _received.append(number)
        raise KeyboardInterrupt

    _received.clear()
    if threading.current_thread() is threading.main_thread():
        for number in (getattr(signal, name) for name in _ENDING if hasattr(signal, name)):
            if signal.getsignal(number) != signal.SIG_IGN:
                previous[number] = signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def raise_if_interrupted() -> None:
    """To be called now and then by what takes long: an exception that is raised while an object is being deleted, or
    in a library's callback, is lost."""
    if _received:
        raise KeyboardInterrupt
