# SPDX-License-Identifier: Apache-2.0
"""A job that is done in parts, as items of work: a plan, the parts that are missing, the whole."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from ditn.commands.jobs import Job
from ditn.work.items import Item, Result, Step, Worker

P = TypeVar("P")


@dataclass(frozen=True)
class Planned(Generic[P]):
    """The job as far as it is known then, a plan that each part is given, the numbers of the parts that are missing,
    and how many there are in all."""

    job: Job
    plan: P
    missing: list[int]
    count: int


class Kind(Protocol[P]):
    """What is done, as functions of a module: any process may do each step. Their arguments can be pickled."""

    def plan(self, job: Job, args: argparse.Namespace, worker: Worker) -> Planned[P]:
        """Plan the parts, or find them planned by a run that was not finished."""

    def part(self, job: Job, args: argparse.Namespace, planned: P, number: int, worker: Worker) -> None:
        """Make one part, or find it made."""

    def whole(self, job: Job, args: argparse.Namespace, planned: P, worker: Worker) -> Job:
        """Make the output of the parts; the job as it is to be reported."""


class Parted(Generic[P]):
    """A job's items. `cost` is that of all of it; `ended` is called once it is known what became of it."""

    def __init__(
        self, kind: Kind[P], job: Job, args: argparse.Namespace, cost: float, ended: Callable[[Job], None]
    ) -> None:
        self._kind, self._job, self._cost, self._tell = kind, job, cost, ended
        self._arguments = job, args  # of each of `kind`'s functions, the first two
        self._begun = time.perf_counter()
        # Known once it is planned: the parts that are not done yet, and an item's share of the run's progress.
        self._left, self._share = 0, 1.0

    def first(self) -> Step:
        """What there is to do before anything else can be."""
        return Item(self._job.input, self._kind.plan, self._arguments, cost=self._cost, share=0), self._planned

    def _planned(self, result: Result) -> list[Step]:
        if result.failure:
            return self._ended(result)
        planned: Planned[P] = result.value
        self._job.take(Result(planned.job))
        self._left, self._share = len(planned.missing), 1 / (len(planned.missing) + 1)
        self._plan = planned.plan
        return [self._part(number, planned.count) for number in planned.missing] or [self._whole()]

    def _part(self, number: int, count: int) -> Step:
        name, arguments = f"{self._job.input}, part {number + 1} of {count}", (*self._arguments, self._plan, number)
        return Item(name, self._kind.part, arguments, cost=self._cost / count, share=self._share), self._part_done

    def _part_done(self, result: Result) -> list[Step]:
        self._left -= 1
        if result.failure:
            self._job.fail(f"{result.failure} (the parts that are done stay for the next run)")
        if self._left:
            return []
        return self._ended(Result(self._job)) if self._job.status == "failed" else [self._whole()]

    def _whole(self) -> Step:
        arguments = (*self._arguments, self._plan)
        return Item(self._job.input, self._kind.whole, arguments, cost=self._cost, share=self._share), self._ended

    def _ended(self, result: Result) -> list[Step]:
        self._job.take(result)
        self._job.seconds = round(time.perf_counter() - self._begun, 3)
        self._tell(self._job)
        return []
