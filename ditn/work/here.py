# SPDX-License-Identifier: Apache-2.0
"""Items in this process, one after the other in the order in which they come."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from functools import partial

from ditn.work.items import Attempt, Done, Item, Result, Worker, perform


def run(items: Iterable[Item], done: Done, worker: Worker, progress: Callable[[Item, float], None]) -> None:
    """Do the items; those that become possible by one come next. `progress` is told the item and its share that is
    done. An interruption is raised here, after `done` was told of it, and so is BrokenPipeError."""
    waiting = deque(items)
    while waiting:
        item = waiting.popleft()
        worker.progress = partial(progress, item)
        worker.progress(0.0)
        try:
            result = perform(Attempt(item), worker)
        except KeyboardInterrupt:
            done(item, Result(failure="interrupted"))
            raise
        waiting.extendleft(reversed(list(done(item, result))))
