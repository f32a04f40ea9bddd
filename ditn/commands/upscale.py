# SPDX-License-Identifier: Apache-2.0
"""`ditn upscale`: files, folders and globs in, larger images out; by this process, or by many."""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ditn.commands import film, pictures, rows, segments
from ditn.commands.jobs import STREAM, Job, Plan, plan_jobs
from ditn.commands.names import ignore_standard_output
from ditn.commands.parted import Parted
from ditn.commands.report import tell, write_report
from ditn.commands.signals import raise_if_interrupted
from ditn.imaging.files import pixel_count
from ditn.inference.options import AUTO
from ditn.inference.upscaler import Upscaler
from ditn.model.checkpoint import load
from ditn.work import here, on_ray, ranks
from ditn.work.items import Follow, Item, Result, Step, Worker
from ditn.work.ranks import Ranks


def run(args: argparse.Namespace) -> int:
    """Every image that can be is done. 0 if that was all of them, 1 if some failed; the report says which and why. An
    interrupted run reports what it has done. Under torchrun the first rank plans and reports, the others work."""
    many = _many(args)
    if isinstance(many, Ranks):
        if not many.first:
            if not args.dry_run:
                ranks.serve(many)
            return 0
        # What was there before all ranks were started anew is either someone else's or done.
        args.skip_existing |= bool(many.restarts) and not args.overwrite
        args.resume |= bool(many.restarts)
    films = film.is_meant(args)
    if films and not many:
        return film.run(args, _upscaler, _backends)
    if not films:
        film.refuse(args)
    if args.output == STREAM and not args.dry_run and sys.stdout.isatty():
        raise ValueError("standard output is a terminal, which shows no image; redirect it or name a file")
    with tempfile.TemporaryDirectory(prefix="ditn-") as scratch:
        plan = Plan(film.jobs_of(args), []) if films else plan_jobs(args, Path(scratch))
        if args.dry_run:
            for job in plan.jobs:
                if job.status != "failed":  # of which `tell` speaks
                    print(f"{job.input}" + (f" -> {job.output}" if job.status == "planned" else f": {job.reason}"))
        undertaking = _Undertaking(plan, args, films=films)
        try:
            if not args.dry_run:
                undertaking.run(many)
        finally:
            try:
                if args.json:
                    write_report(args.json, plan, model=args.model, backends=undertaking.backends)
            finally:
                tell(plan)
    return 1 if plan.count("failed") else 0


class _Undertaking:
    """The planned jobs as items of work, and what becomes of them."""

    def __init__(self, plan: Plan, args: argparse.Namespace, *, films: bool) -> None:
        self._plan, self._args, self._films = plan, args, films
        self._follow: dict[Item, Follow] = {}
        self._finished = 0.0
        self.backends: dict[str, str | None] = {}

    def run(self, many: Ranks | Cluster | None) -> None:
        """Do all of them, here or by many processes."""
        planned = [job for job in self._plan.jobs if job.status == "planned"]
        with tqdm(total=len(planned), unit="image", disable=None) as self._bar:
            if many is None:
                self._here(planned)
                return
            _check(self._args)
            told = Item("", pictures.facts, (self._args,), cost=math.inf, share=0)
            steps = [(told, self._told), *(self._step(job, sized=True) for job in planned)]
            if isinstance(many, Ranks):
                ranks.run(self._register(steps), self._done, many)
            else:
                on_ray.run(self._register(steps), self._done, many.address)

    def _here(self, planned: list[Job]) -> None:
        worker = Worker()
        self._told(Result(pictures.facts(self._args, worker)))
        pictures.upscaler_of(self._args, worker)
        sized = self._args.rows_above < self._args.max_pixels
        steps = [self._step(job, sized=sized) for job in planned]
        here.run(self._register(steps), self._done, worker, self._advance)

    def _step(self, job: Job, *, sized: bool) -> Step:
        """The first of what there is to do for a job. `sized`: its image's size matters."""
        if self._films:
            size = job.source.stat().st_size if job.source.is_file() else 0
            return Parted(segments, job, self._args, size, self._say).first()
        pixels = pixel_count(job.source, job.page) if sized else 0
        if rows.takes(job, pixels, self._args):
            return Parted(rows, job, self._args, pixels, self._say).first()
        item = Item(job.input, pictures.enlarge, (job, self._args), cost=pixels)

        def follow(result: Result) -> list[Step]:
            job.take(result)
            self._say(job)
            return []

        return item, follow

    def _told(self, result: Result) -> list[Step]:
        if result.value:
            self.backends, slow = result.value
            if slow:
                tqdm.write(f"ditn upscale: {slow}", file=sys.stderr)
        return []

    def _register(self, steps: Iterable[Step]) -> list[Item]:
        made = dict(steps)
        self._follow |= made
        return list(made)

    def _done(self, item: Item, result: Result) -> list[Item]:
        items = self._register(self._follow.pop(item)(result))
        self._finished += item.share
        self._show(item, 0)
        return items

    def _advance(self, item: Item, share: float) -> None:
        raise_if_interrupted()
        self._show(item, share if item in self._follow else 0)  # else finished

    def _show(self, item: Item, share: float) -> None:
        self._bar.set_description(Path(item.name).name, refresh=False)
        self._bar.n = round(self._finished + share * item.share, 2)
        self._bar.refresh()

    def _say(self, job: Job) -> None:
        """What is worth a line of its own; no more of it once nobody reads it."""
        lines = [f"{job.input}: {job.model}: {job.model_reason}"] if job.model_reason else []
        if job.guard:
            more = f" and {len(job.guard) - 1} more tiles" if len(job.guard) > 1 else ""
            wrong = f"the output of {job.model} had nothing to do with the image"
            lines.append(f"{job.input}: {job.guard[0]}{more}: {wrong}")
        try:
            for line in lines:
                tqdm.write(line, file=sys.stderr if self._args.output == STREAM else sys.stdout)
        except BrokenPipeError:
            ignore_standard_output()


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster; without an address the one that is there."""

    address: str | None


def _many(args: argparse.Namespace) -> Ranks | Cluster | None:
    """The processes that share the work; None for this one alone."""
    ranks = Ranks.of_torchrun()
    if args.ray is not None and ranks:
        raise ValueError("--ray and torchrun both share the work out; use one of them")
    many = Cluster(args.ray or None) if args.ray is not None else ranks
    if many and STREAM in (args.output, *args.inputs):
        raise ValueError(f"{STREAM}, standard input or output, is of one process; name files where many work")
    return many


def _upscaler(args: argparse.Namespace) -> Upscaler:
    return pictures.upscaler_of(args, Worker())


def _backends(args: argparse.Namespace) -> dict[str, str | None]:
    return pictures.facts(args, Worker())[0]


def _check(args: argparse.Namespace) -> None:
    """Raise here what would otherwise end each item for itself."""
    with pictures.backend(args):
        if args.model != AUTO:
            load(args.model, flavor=args.flavor)
