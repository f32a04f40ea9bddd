# SPDX-License-Identifier: Apache-2.0
"""Computing on one thread, for what is small."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, Thread

import torch

_ONE_AT_A_TIME = Lock()


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, PyTorch computes on one thread. Many small convolutions in float64 wait for each other's threads longer
    than they compute, most of all on a busy machine. The caller's number of threads is restored, and other threads'
    stays."""
    with _ONE_AT_A_TIME:
        threads = torch.get_num_threads()
        if threads > 1:
            _set_here(1, elsewhere=threads)
    try:
        yield
    finally:
        if threads > 1:
            torch.set_num_threads(threads)


def _set_here(number: int, elsewhere: int) -> None:
    """PyTorch keeps a number for each thread, and gives to one that is new to it what was set last, by whichever."""
    torch.set_num_threads(number)
    last = Thread(target=torch.set_num_threads, args=[elsewhere])
    last.start()
    last.join()
