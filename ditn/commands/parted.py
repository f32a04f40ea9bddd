# SPDX-License-Identifier: Apache-2.0
"""A job that is done in parts, as items of work: a plan, the parts that are missing, the whole."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Protocol

from ditn.commands.jobs import Job
from ditn.work.items import Item, Result, Step, Worker


class Kind(Protocol):
    """What is done, as functions of a module: any process may do each step."""

    def plan(self, job: Job, args: argparse.Namespace, worker: Worker) -> tuple[Job, list[int], int]:
        """The job as far as it is known then, the numbers of the parts that are missing, and how many there are."""

    def part(self, job: Job, args: argparse.Namespace, number: int, worker: Worker) -> None:
        """Make one part, or find it made."""

    def whole(self, job: Job, args: argparse.Namespace, worker: Worker) -> Job:
        """Make the output of the parts; the job as it is to be reported."""


class Parted:
    """A job's items. `cost` is that of all of it; `ended` is called once it is known what became of it."""

    def __init__(
        self, kind: Kind, job: Job, args: argparse.Namespace, cost: float, ended: Callable[[Job], None]
    ) -> None:
        self._kind, self._job, self._args, self._cost, self._tell = kind, job, args, cost, ended
        self._begun, self._left, self._share = time.perf_counter(), 0, 1.0

    def first(self) -> Step:
        """What there is to do before anything else can be."""
        return Item(self._job.input, self._kind.plan, (self._job, self._args), cost=self._cost, share=0), self._planned

    def _planned(self, result: Result) -> list[Step]:
        if result.failure:
            return self._ended(result)
        job, missing, count = result.value
        self._job.take(Result(job))
        self._left, self._share = len(missing), 1 / (len(missing) + 1)
        return [self._part(number, count) for number in missing] or [self._whole()]

    def _part(self, number: int, count: int) -> Step:
        name, cost = f"{self._job.input}, part {number + 1} of {count}", self._cost / count
        item = Item(name, self._kind.part, (self._job, self._args, number), cost=cost, share=self._share)
        return item, self._part_done

    def _part_done(self, result: Result) -> list[Step]:
        self._left -= 1
        if result.failure:
            self._job.fail(f"{result.failure} (the parts that are done stay for the next run)")
        if self._left:
            return []
        return self._ended(Result(self._job)) if self._job.status == "failed" else [self._whole()]

    def _whole(self) -> Step:
        item = Item(self._job.input, self._kind.whole, (self._job, self._args), cost=self._cost, share=self._share)
        return item, self._ended

    def _ended(self, result: Result) -> list[Step]:
        self._job.take(result)
        self._job.seconds = round(time.perf_counter() - self._begun, 3)
        self._tell(self._job)
        return []
