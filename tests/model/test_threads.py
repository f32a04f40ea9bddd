# SPDX-License-Identifier: Apache-2.0
"""The number of threads, which PyTorch keeps for each thread, and for those to come."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Event, Thread

import pytest
import torch

from ditn.model.threads import one_thread


@pytest.fixture(autouse=True)
def _three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def of_a_new_thread() -> int:
    seen: list[int] = []
    thread = Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return seen[0]


def test_it_is_one_inside_and_nowhere_else() -> None:
    with one_thread():
        assert (torch.get_num_threads(), of_a_new_thread()) == (1, 3)
        with one_thread():
            assert (torch.get_num_threads(), of_a_new_thread()) == (1, 3)
        assert (torch.get_num_threads(), of_a_new_thread()) == (1, 3)
    assert (torch.get_num_threads(), of_a_new_thread()) == (3, 3)


def test_two_at_once_leave_every_thread_its_number() -> None:
    first_is_in, second_is_in, first_is_out = Event(), Event(), Event()
    seen = []

    def first() -> None:
        with one_thread():
            first_is_in.set()
            assert second_is_in.wait(60)
        seen.append(torch.get_num_threads())
        first_is_out.set()

    def second() -> None:
        assert first_is_in.wait(60)
        with one_thread():
            second_is_in.set()
            assert first_is_out.wait(60)
            seen.append(torch.get_num_threads())
        seen.append(torch.get_num_threads())

    threads = [Thread(target=first), Thread(target=second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [3, 1, 3]
    assert (torch.get_num_threads(), of_a_new_thread()) == (3, 3)
