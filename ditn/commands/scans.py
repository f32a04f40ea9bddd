# SPDX-License-Identifier: Apache-2.0
"""Images too large for memory as items of work: what comes first, what follows from what (see `ditn.commands.rows`)."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from ditn.commands import rows
from ditn.commands.jobs import Job
from ditn.work.items import Item, Result, Step


def takes(job: Job, pixels: int, args: argparse.Namespace) -> bool:
    """Whether a job's image is done this way."""
    return pixels > args.rows_above and job.target.suffix.lower() in (".tif", ".tiff")


class Scan:
    """A job's items: a plan, the rows that are missing, the whole. `told` is called once it is known what became of
    it."""

    def __init__(self, job: Job, pixels: int, args: argparse.Namespace, told: Callable[[Job], None]) -> None:
        self._job, self._pixels, self._args, self._told = job, pixels, args, told
        self._begun, self._left, self._share = time.perf_counter(), 0, 1.0

    def first(self) -> Step:
        """What there is to do before anything else can be."""
        return Item(self._job.input, rows.plan, (self._job, self._args), cost=self._pixels, share=0), self._planned

    def _planned(self, result: Result) -> list[Step]:
        if result.failure:
            return self._ended(result)
        job, missing, count = result.value
        self._job.take(Result(job))
        self._left, self._share = len(missing), 1 / (len(missing) + 1)
        return [self._row(number, count) for number in missing] or [self._whole()]

    def _row(self, number: int, count: int) -> Step:
        name, cost = f"{self._job.input}, row {number + 1} of {count}", self._pixels / count
        return Item(name, rows.row, (self._job, self._args, number), cost=cost, share=self._share), self._row_done

    def _row_done(self, result: Result) -> list[Step]:
        self._left -= 1
        if result.failure:
            self._job.fail(f"{result.failure} (the rows that are done stay for the next run)")
        if self._left:
            return []
        if self._job.status == "failed":
            return self._ended(Result(self._job))
        return [self._whole()]

    def _whole(self) -> Step:
        item = Item(self._job.input, rows.whole, (self._job, self._args), cost=self._pixels, share=self._share)
        return item, self._ended

    def _ended(self, result: Result) -> list[Step]:
        self._job.take(result)
        self._job.seconds = round(time.perf_counter() - self._begun, 3)
        self._told(self._job)
        return []
