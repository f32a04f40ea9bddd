# SPDX-License-Identifier: Apache-2.0
"""Work items, and the queue of those that wait. Each is a function of its inputs alone, so that any process can do it,
and another one again if that process dies."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

# How often an item is tried whose process dies. One try more than one: a process may die by chance, but what takes the
# memory of each that does it should not take that of all.
TRIES = 2

Progress = Callable[[float], None]


def _silent(share: float) -> None:
    pass


@dataclass
class Worker:
    """What an item's function is told of the process that does it.

    kept      what stays from item to item, such as a loaded model
    progress  to be called with the share of the item that is done, 0..1
    number, peers   which of how many workers of this machine it is; they share its cores, its memory and its GPUs
    attempt   1, or more if processes died that had begun the item
    """

    kept: dict[Any, Any] = field(default_factory=dict)
    progress: Progress = _silent
    number: int = 0
    peers: int = 1
    attempt: int = 1


@dataclass(frozen=True, eq=False)
class Item:
    """A piece of work: `function(*arguments, worker)`, a function of a module, arguments and result all picklable.

    Its effects have to be such that doing it again does no harm: files are written under a temporary name and renamed.

    name      what people are told
    cost      in a unit that all items of a run share; the largest are begun first
    share     how much of one unit of the run's progress it is
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    cost: float = 0.0
    share: float = 1.0


@dataclass(frozen=True)
class Result:
    """What became of an item: the function's value, or why there is none. `died`: its process did."""

    value: Any = None
    failure: str = ""
    died: bool = False


# Told of an item's result; gives the items that can be done now that could not before.
Done = Callable[[Item, Result], Iterable[Item]]
# An item, and what follows from its result: more of them.
Follow = Callable[[Result], "Iterable[Step]"]
Step = tuple[Item, Follow]


@dataclass(frozen=True)
class Attempt:
    """An item that is to be done for the first or a later time."""

    item: Item
    number: int = 1


def perform(attempt: Attempt, worker: Worker) -> Result:
    """Do an item here. Whatever its function raises ends the item alone; but not KeyboardInterrupt, nor
    BrokenPipeError, after which nobody wants what is written."""
    worker.attempt = attempt.number
    try:
        return Result(attempt.item.function(*attempt.item.arguments, worker))
    except BrokenPipeError:
        raise
    except Exception as error:
        return Result(failure=reason(error))


def reason(error: object) -> str:
    """An exception in words: its own where they are meant to be read, else its type's name with them."""
    text = str(error) or type(error).__name__
    meant = not isinstance(error, Exception) or isinstance(error, OSError | ValueError | RuntimeError | MemoryError)
    return text if meant else f"{type(error).__name__}: {error}"


class Queue:
    """The items that wait, the largest first; `done` is told of each one's end, once."""

    def __init__(self, items: Iterable[Item], done: Done) -> None:
        self._done, self._order = done, itertools.count()
        self._waiting: list[tuple[float, int, Attempt]] = []
        for item in items:
            self.push(Attempt(item))

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self) -> Attempt:
        """The next one. Raises IndexError if none waits."""
        return heapq.heappop(self._waiting)[2]

    def settle(self, attempt: Attempt, result: Result) -> None:
        """An item that was taken has ended. If its process died, it waits again, until all its tries are used up."""
        if result.died and attempt.number < TRIES:
            self.push(Attempt(attempt.item, attempt.number + 1))
        else:
            for item in self._done(attempt.item, result):
                self.push(Attempt(item))

    def push(self, attempt: Attempt) -> None:
        """Have an attempt wait."""
        heapq.heappush(self._waiting, (-attempt.item.cost, next(self._order), attempt))
