# SPDX-License-Identifier: Apache-2.0
"""A film by segments, where many processes work: each step is a function of its inputs alone (`ditn.video.work`)."""

from __future__ import annotations

import argparse

from ditn.commands import film, pictures
from ditn.commands.jobs import Job
from ditn.commands.parted import Planned
from ditn.video.work import Work, begin, enlarge_segment, is_done, segments
from ditn.work.items import Worker


def plan(job: Job, args: argparse.Namespace, worker: Worker) -> Planned[Work]:
    """Plan a film's segments, or take up what an earlier run has left (`--resume`). Raises FilmError for a film that
    cannot be done."""
    with pictures.backend(args):
        work, _, options = film.prepared(job, pictures.upscaler_of(args, worker), args)
    work = begin(work, options, resume=args.resume or worker.attempt > 1, overwrite=args.overwrite)
    every = segments(work.source)
    return Planned(job, work, [one.number for one in every if not is_done(work, one)], len(every))


def part(job: Job, args: argparse.Namespace, planned: Work, number: int, worker: Worker) -> None:
    """Decode, enlarge and encode one segment."""
    segment = segments(planned.source)[number]
    if is_done(planned, segment):  # by a process that died before it could say so
        return
    chosen = argparse.Namespace(**{**vars(args), "model": job.model})
    frames = segment.stop - segment.start
    with pictures.backend(args):
        upscaler = pictures.upscaler_of(chosen, worker)
        enlarge_segment(planned, segment, upscaler, lambda done: worker.progress(done / frames))


def whole(job: Job, args: argparse.Namespace, planned: Work, worker: Worker) -> Job:
    """Join the segments."""
    if worker.attempt > 1 and not planned.folder.exists() and job.target.exists():
        job.notes = [*job.notes, pictures.WRITTEN_BEFORE]
    else:
        film.whole(planned, job, args)
    job.status = "done"
    return job
