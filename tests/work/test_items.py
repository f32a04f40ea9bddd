# SPDX-License-Identifier: Apache-2.0
"""Items of work: every one is done once, whatever becomes of the processes that do them."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist
from tasks import fail, kill, sleep, write

from ditn.work import here, ranks
from ditn.work.child import Child
from ditn.work.items import TRIES, Attempt, Item, Queue, Result, Worker
from ditn.work.ranks import Ranks


def traces(folder: Path) -> dict[str, int]:
    return {path.name: len(path.read_text().splitlines()) for path in folder.iterdir()}


class Told:
    """What an engine says of its items."""

    def __init__(self, follow: Callable[[Item, Result], list[Item]] = lambda item, result: []) -> None:
        self.results: list[tuple[str, Result]] = []
        self._follow = follow

    def __call__(self, item: Item, result: Result) -> list[Item]:
        self.results.append((item.name, result))
        return self._follow(item, result)

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.results]


def test_the_queue_gives_the_largest_first_and_tries_again_what_died() -> None:
    told = Told(lambda item, result: [Item("join", write, (), cost=9)] if item.name == "b" else [])
    queue = Queue([Item(name, write, (), cost=cost) for name, cost in (("a", 1), ("b", 3), ("c", 2))], told)
    first = queue.take()
    assert first.item.name == "b"
    queue.settle(first, Result(died=True, failure="gone"))
    again = queue.take()
    assert (again.item.name, again.number) == ("b", 2)
    assert told.names == []
    queue.settle(again, Result(1))
    assert [queue.take().item.name for _ in range(3)] == ["join", "c", "a"]
    assert len(queue) == 0
    last = Attempt(Item("d", write, ()), number=TRIES)
    queue.settle(last, Result(died=True, failure="gone again"))
    assert told.results[-1] == ("d", Result(died=True, failure="gone again"))
    assert len(queue) == 0


def test_here_they_keep_their_order_and_what_follows_comes_next(tmp_path) -> None:
    follow = [Item("c", write, (str(tmp_path), "c")), Item("d", fail, ("none",))]
    told = Told(lambda item, result: follow if item.name == "a" else [])
    seen: list[tuple[str, float]] = []
    items = [Item(name, write, (str(tmp_path), name)) for name in "ab"]
    here.run(items, told, Worker(), lambda item, share: seen.append((item.name, share)))
    assert told.names == ["a", "c", "d", "b"]
    assert dict(told.results)["d"].failure == "KeyError: 'none'"
    assert traces(tmp_path) == {"a": 1, "b": 1, "c": 1}
    assert seen == [(name, 0.0) for name in "acdb"]


@pytest.fixture
def child() -> Iterator[Child]:
    made = Child()
    yield made
    made.stop()


def result_of(child: Child, item: Item, number: int = 1) -> Result:
    child.give(Attempt(item, number))
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if (result := child.poll(0.1)) is not None:
            return result
    raise AssertionError("no result")


def test_a_child_that_is_killed_is_replaced(child, tmp_path) -> None:
    result = result_of(child, Item("a", kill, (str(tmp_path), 1)))
    assert result.died
    assert "ended by SIGKILL" in result.failure
    assert result_of(child, Item("a", kill, (str(tmp_path), 1)), number=2) == Result(len("killed"))
    assert result_of(child, Item("b", fail, ("b",))) == Result(failure="KeyError: 'b'")
    os.kill(child.pid, signal.SIGKILL)  # while it is idle
    child._process.join()
    assert result_of(child, Item("c", write, (str(tmp_path), "c"))) == Result(1)
    assert traces(tmp_path) == {"killed": 1, "c": 1}


@pytest.fixture
def store(monkeypatch) -> dist.TCPStore:
    """A store that ranks in threads of this process meet in."""
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=20))
    monkeypatch.setattr(Ranks, "store", lambda self: dist.TCPStore("127.0.0.1", server.port, is_master=False))
    return server


@pytest.fixture
def impatient(monkeypatch) -> None:
    """Ranks that take one another for lost after half a second."""
    monkeypatch.setattr(ranks, "BEAT", 0.1)
    monkeypatch.setattr(ranks, "PATIENCE", 0.5)


def test_two_ranks_do_every_item_once(store, tmp_path) -> None:
    folder = str(tmp_path)
    items = [Item(f"{number}", write, (folder, f"{number}"), cost=number) for number in range(20)]
    items += [Item("killed", kill, (folder, 1)), Item("poison", kill, (folder, 9)), Item("wrong", fail, ("x",))]
    told = Told(lambda item, result: [Item("last", write, (folder, "last"))] if item.name == "0" else [])
    other = threading.Thread(target=ranks.serve, args=(Ranks(1, 2, 0, 1),))
    other.start()
    ranks.run(items, told, Ranks(0, 2, 0, 1))
    other.join(10)
    assert not other.is_alive()
    assert Counter(told.names) == Counter([item.name for item in items] + ["last"])
    assert {name for name, result in told.results if result.failure} == {"poison", "wrong"}
    assert traces(tmp_path) == dict.fromkeys([*(f"{number}" for number in range(20)), "killed", "last"], 1)
    pids = {path.read_text().strip() for path in tmp_path.iterdir()}
    assert len(pids) >= 2


def test_the_item_of_a_rank_that_is_not_heard_from_goes_to_another(store, impatient, tmp_path) -> None:
    gone = Ranks(1, 2, 0, 1)
    hand = ranks._Hand(gone.store(), gone)
    told = Told()
    items = [Item("slept", sleep, (str(tmp_path), 0.5)), Item("other", write, (str(tmp_path), "other"))]
    publisher = ranks._Publisher(gone.store(), Queue(items, told), 2)
    publisher.step()
    while not hand._busy:
        hand.step()
    hand.stop()  # with its machine: it says nothing any more
    first = Ranks(0, 2, 0, 1)
    left = ranks._Hand(first.store(), first)
    deadline = time.monotonic() + 30
    while publisher.step():
        left.step()
        assert time.monotonic() < deadline
    left.stop()
    assert sorted(told.names) == ["other", "slept"]
    assert traces(tmp_path) == {"slept": 1, "other": 1}


def test_an_interrupted_rank_tells_what_it_had_finished(store, tmp_path) -> None:
    """Nobody has looked yet when all are interrupted: neither the ranks at their children nor the first one at them."""
    both = [Ranks(0, 2, 0, 1), Ranks(1, 2, 0, 1)]
    items = [Item("a", write, (str(tmp_path), "a")), Item("slept", sleep, (str(tmp_path), 60.0)), Item("b", write, ())]
    told = Told()
    publisher = ranks._Publisher(both[0].store(), Queue(items, told), 2)
    publisher.step()
    hands = [ranks._Hand(one.store(), one) for one in both]
    for hand in hands:
        while not hand._busy:
            hand.step()
    assert hands[0]._child._pipe.poll(60)
    for hand in hands:
        hand.stop()
    publisher.interrupt()
    assert told.results == [("a", Result(1)), ("slept", Result(failure="interrupted"))]
    assert store.check(["left/0", "left/1"])


def test_a_rank_whose_first_one_is_gone_says_so(store, impatient) -> None:
    first = Ranks(0, 2, 0, 1).store()
    first.set("beat/0", b"1")
    with pytest.raises(RuntimeError, match=r"the first rank has gone \(not heard from for 0.5 s\).*--skip-existing"):
        ranks.serve(Ranks(1, 2, 0, 1))
