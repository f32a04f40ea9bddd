# SPDX-License-Identifier: Apache-2.0
"""Items in this process, one after the other in the order in which they come."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from functools import partial

from ditn.work.items import Attempt, Done, Item, Worker, perform


def run(items: Iterable[Item], done: Done, worker: Worker, progress: Callable[[Item, float], None]) -> None:
    """Do the items; those that become possible by one come next. `progress` is told the item and its share that is
    done. An interruption is raised here, and so is BrokenPipeError."""
    waiting = deque(items)
    while waiting:
        item = waiting.popleft()
        worker.progress = partial(progress, item)
        worker.progress(0.0)
        waiting.extendleft(reversed(list(done(item, perform(Attempt(item), worker)))))
