# SPDX-License-Identifier: Apache-2.0
"""Computing on one thread, for what is small."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, PyTorch computes on one thread. Many small convolutions in float64 wait for each other's threads longer
    than they compute, most of all on a busy machine. The caller's number of threads is restored."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
