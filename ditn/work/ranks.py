# SPDX-License-Identifier: Apache-2.0
"""Items shared out among the processes that torchrun started, on one machine or several.

Every rank has a child that does the work (`ditn.work.child`), and by itself only talks to the others, through
torchrun's key-value store. So a rank lives on when its work is killed, and torchrun, which would end all ranks with it,
sees nothing. The first rank publishes the items, the largest first, a few ahead; whoever is free draws the next number
of a counter and does the item of that number. A rank that is not heard from, with its machine or its network, gives its
item to the others.

Keys of the store: `item/N`, the Nth attempt; `drawn`, the counter; `holder/N`, the rank that drew N; `begun/N`, once it
has begun; `result/N`; `beat/R`, which grows while rank R lives; `over`, there once all is done; `left/R`, once rank R
has stopped.
"""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from ditn.work.child import Child
from ditn.work.items import Attempt, Done, Item, Queue, Result

# Seconds: between signs of life; without one, until a rank counts as lost; between looks at the store.
BEAT, PATIENCE, _LOOK = 2.0, 60.0, 0.05
# Seconds in which ranks that are interrupted together say what they had finished. torchrun kills them after 30.
_LAST_WORDS = 5.0
# Items that are published for each rank, so that none waits for the first one's attention.
_AHEAD = 2


@dataclass(frozen=True)
class Ranks:
    """This process's place among those that torchrun started: `rank` of `size`, and `number` of the `peers` here."""

    rank: int
    size: int
    number: int
    peers: int

    @classmethod
    def of_torchrun(cls) -> Ranks | None:
        """As torchrun's variables have it; None for a process that is alone."""
        size = int(os.environ.get("WORLD_SIZE", 1))
        if size == 1 or "RANK" not in os.environ:
            return None
        return cls(
            int(os.environ["RANK"]),
            size,
            int(os.environ.get("LOCAL_RANK", 0)),
            int(os.environ.get("LOCAL_WORLD_SIZE", size)),
        )

    @property
    def first(self) -> bool:
        """Whether this one plans, publishes and reports."""
        return self.rank == 0

    @property
    def restarts(self) -> int:
        """How often torchrun has started all of them anew (`--max-restarts`)."""
        return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))

    def store(self) -> Any:
        """torchrun's store, which outlives all ranks; of a scheduler without torchrun, the first rank's own."""
        store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=PATIENCE)))
        # It may still hold what ranks said to each other before they were all started anew.
        return PrefixStore(f"ditn/{self.restarts}", store)


def run(items: Iterable[Item], done: Done, ranks: Ranks) -> None:
    """In the first rank: have the items done by all of them, this one too. On KeyboardInterrupt `done` is told of each
    item that was begun: of its result or, without one, as interrupted."""
    store = ranks.store()
    publisher, hand = _Publisher(store, Queue(items, done), ranks.size), _Hand(store, ranks)
    try:
        while publisher.step():
            hand.step()
            time.sleep(_LOOK)
    except KeyboardInterrupt:
        try:
            hand.stop()
            _wait_for_the_others(store, ranks, _LAST_WORDS)
        finally:  # of another signal, too: a terminal's Ctrl-C arrives twice, once by torchrun
            publisher.interrupt()
        raise
    except BaseException:
        hand.stop()
        raise
    hand.stop()
    # torchrun ends the others if this one fails before they have left; and the store may be this process's own.
    _wait_for_the_others(store, ranks, PATIENCE)


def _wait_for_the_others(store: Any, ranks: Ranks, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not all(store.check([f"left/{rank}"]) for rank in range(1, ranks.size)):
        time.sleep(_LOOK)


def serve(ranks: Ranks) -> None:
    """In every other rank: do items until all are done. Raises RuntimeError if the first rank is lost: then the item in
    hand is finished, and nobody is told of it."""
    try:
        store = ranks.store()
        first = _Watch(store, [0])
        hand = _Hand(store, ranks)
    except dist.DistError as error:
        raise RuntimeError(f"the first machine cannot be reached: {error}") from error
    try:
        while hand.step():
            if first.lost(0):
                raise dist.DistError(f"not heard from for {PATIENCE:g} s")
            time.sleep(_LOOK)
    except dist.DistError as error:
        hand.finish()
        raise RuntimeError(
            f"the first rank has gone ({str(error).splitlines()[0]}). What was done stays; run it again with "
            "--skip-existing for the rest"
        ) from error
    finally:
        hand.stop()


class _Watch:
    """Which ranks are not heard from any more, by this process's own clock."""

    def __init__(self, store: Any, ranks: Iterable[int]) -> None:
        self._store = store
        self._last = dict.fromkeys(ranks, (b"", time.monotonic()))

    def lost(self, rank: int) -> bool:
        """Whether its sign of life has not changed for PATIENCE seconds. One that has not begun is waited for."""
        sign, since = self._last[rank]
        if time.monotonic() - since < BEAT:
            return False
        beat = self._store.get(f"beat/{rank}") if self._store.check([f"beat/{rank}"]) else b""
        if beat != sign or not beat:
            self._last[rank] = beat, time.monotonic()
            return False
        return time.monotonic() - since > PATIENCE


class _Hand:
    """One rank's part in the work: draws, gives what it drew to its child, puts the result into the store."""

    def __init__(self, store: Any, ranks: Ranks) -> None:
        self._store, self._rank = store, ranks.rank
        self._child = Child(ranks.number, ranks.peers)
        self._drawn: int | None = None
        self._busy, self._beaten, self._beats = False, -BEAT, 0

    def step(self) -> bool:
        """Do what can be done without waiting. False once there is nothing left to do."""
        self._beat()
        if self._busy:
            result = self._child.poll()
            if result is not None:
                self._store.set(f"result/{self._drawn}", pickle.dumps(result))
                self._drawn, self._busy = None, False
            return True
        if self._drawn is None:
            self._drawn = self._store.add("drawn", 1) - 1
            self._store.set(f"holder/{self._drawn}", str(self._rank))
        if self._store.check([f"item/{self._drawn}"]):
            self._store.set(f"begun/{self._drawn}", b"")
            self._child.give(pickle.loads(self._store.get(f"item/{self._drawn}")))
            self._busy = True
            return True
        return not self._store.check(["over"])

    def finish(self) -> None:
        """Wait until the child has done its item."""
        while self._busy and self._child.poll(1.0) is None:
            pass

    def stop(self) -> None:
        """End the child, and say what it had finished."""
        result = self._child.stop()
        with suppress(dist.DistError):  # then nobody is there to be told
            if self._busy and result:
                self._store.set(f"result/{self._drawn}", pickle.dumps(result))
            self._store.set(f"left/{self._rank}", b"")

    def _beat(self) -> None:
        if time.monotonic() - self._beaten >= BEAT:
            self._beats += 1
            self._beaten = time.monotonic()
            self._store.set(f"beat/{self._rank}", str(self._beats))


class _Publisher:
    """The first rank's part in the sharing: publishes items and collects results."""

    def __init__(self, store: Any, queue: Queue, size: int) -> None:
        self._store, self._queue, self._size = store, queue, size
        self._given: dict[int, Attempt] = {}
        self._next = 0
        self._watch = _Watch(store, range(size))

    def step(self) -> bool:
        """Do what can be done without waiting. False once every item has ended."""
        for number in list(self._given):
            if result := self._result(number):
                self._settle(number, result)
            elif (rank := self._holder(number)) is not None and self._watch.lost(rank):
                lost = f"rank {rank}, which worked on it, has not been heard from for {PATIENCE:g} s"
                self._settle(number, Result(failure=lost, died=True) if self._begun(number) else None)
        while self._queue and len(self._given) < _AHEAD * self._size:
            attempt = self._queue.take()
            self._given[self._next] = attempt
            self._store.set(f"item/{self._next}", pickle.dumps(attempt))
            self._next += 1
        if not self._given:
            self._store.set("over", b"")
        return bool(self._given)

    def interrupt(self) -> None:
        """Every item that somebody has begun is told of: of its result or, without one, as interrupted."""
        for number, attempt in self._given.items():
            if result := self._result(number):
                self._queue.settle(attempt, result)
            elif self._begun(number):
                self._queue.settle(attempt, Result(failure="interrupted"))

    def _settle(self, number: int, result: Result | None) -> None:
        """An attempt has ended with this result; without one, it was not begun and is to be drawn by another rank."""
        attempt = self._given.pop(number)
        for key in ("item", "holder", "begun", "result"):
            self._store.delete_key(f"{key}/{number}")
        if result:
            self._queue.settle(attempt, result)
        else:
            self._queue.push(attempt)

    def _result(self, number: int) -> Result | None:
        key = f"result/{number}"
        result: Result | None = pickle.loads(self._store.get(key)) if self._store.check([key]) else None
        return result

    def _begun(self, number: int) -> bool:
        return bool(self._store.check([f"begun/{number}"]))

    def _holder(self, number: int) -> int | None:
        key = f"holder/{number}"
        return int(self._store.get(key)) if self._store.check([key]) else None
