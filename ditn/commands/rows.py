# SPDX-License-Identifier: Apache-2.0
"""An image too large for memory, by rows of tiles: each row reads its part of the input and writes its part of a tiled
BigTIFF; when all are there they are joined. Each step is a function of its inputs alone, whichever process does it.

Beside the output lies a folder `OUTPUT.parts` meanwhile, in which rows stay that are done: whoever runs the same again
does the others. What it was begun with stands in its `plan.json`; with anything else it is refused.
"""

from __future__ import annotations

import argparse
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict

import numpy as np
import torch

from ditn.commands import pictures, row_plan
from ditn.commands.jobs import Job
from ditn.commands.parted import Planned
from ditn.commands.row_plan import Folder, RowPlan
from ditn.imaging import containers
from ditn.imaging.arrays import ImageError, Pixels
from ditn.imaging.atomic import atomic_write
from ditn.imaging.files import open_page
from ditn.imaging.tiled_tiff import PartWriter, TiledTiff, join, told
from ditn.inference.alpha import with_alpha
from ditn.inference.guard import Finding
from ditn.inference.plan import TilePlan
from ditn.inference.tiles import Region
from ditn.work.items import Worker


def takes(job: Job, pixels: int, args: argparse.Namespace) -> bool:
    """Whether a job's image is done this way."""
    return pixels > args.rows_above and job.target.suffix.lower() in (".tif", ".tiff")


def plan(job: Job, args: argparse.Namespace, worker: Worker) -> Planned[RowPlan]:
    """Lay out the rows of an image, or find them laid out. Raises ImageError for an image that cannot be done so."""
    folder = Folder.of(job)
    if args.scale and args.scale != (scale := pictures.upscaler_of(args, worker).scale):
        raise ImageError(f"is done by rows, which are not resampled: --scale is {args.scale:g}, the model's {scale}")
    found = row_plan.read(folder.plan) if folder.plan.exists() else None
    if found and (changed := found.differences(row_plan.depends_on(job, args, worker))):
        if not args.overwrite:
            raise ImageError(
                f"{folder.path} holds rows of a run with another {' and '.join(changed)}; remove it or use --overwrite"
            )
        found = None
    if not found:
        shutil.rmtree(folder.path, ignore_errors=True)  # what is there without a plan is of no known run
        folder.path.mkdir(parents=True)
        try:
            found = row_plan.lay_out(job, args, worker)
        except BaseException:
            shutil.rmtree(folder.path)
            raise
        found.write(folder.plan)
    job.model, job.model_reason, job.notes = found.model, found.model_reason, found.notes
    job.input_size, job.output_size = (found.size[1], found.size[0]), (found.form.width, found.form.height)
    job.tiles, job.predicted_peak_bytes = len(found.regions), found.predicted_peak
    count = len(found.rows)
    return Planned(job, found, [number for number in range(count) if not folder.row(number).exists()], count)


def part(job: Job, args: argparse.Namespace, planned: RowPlan, number: int, worker: Worker) -> None:
    """Enlarge one row of tiles into a part of the output."""
    path = Folder.of(job).row(number)
    if path.exists():  # by a process that died before it could say so
        return
    form, regions = planned.form, planned.rows[number]
    image = row_plan.image_of(job, args)
    upscaler, _ = pictures.upscaler_of(args, worker).suited(image)
    findings: list[Finding] = []
    with (
        pictures.backend(args),
        atomic_write(path) as temporary,
        temporary.open("wb") as file,
        ThreadPoolExecutor(torch.get_num_threads()) as pool,
    ):
        writer = PartWriter(file)
        compressed: list[tuple[int, int, Future[bytes]]] = []
        for done, region in enumerate(regions, start=1):
            samples = np.empty(_enlarged(region, form, upscaler.scale, image.shape[2]), image.dtype)
            top, left = region.top * upscaler.scale, region.left * upscaler.scale

            def place(y: int, x: int, part: Pixels) -> None:
                samples[y - top : y - top + part.shape[0], x - left : x - left + part.shape[1]] = part  # noqa: B023

            alone = TilePlan(*planned.size, (region,), planned.predicted_peak)
            findings += upscaler.stream(image, place, plan=alone)
            if planned.alpha is not None:
                samples = with_alpha(samples, image.dtype.type(planned.alpha))
            # One tile is compressed while the network is at the next.
            _write(compressed, writer)
            compressed = [
                (y, x, pool.submit(form.compressed, samples[y - top :, x - left :][: form.side, : form.side]))
                for y in range(top, top + samples.shape[0], form.side)
                for x in range(left, left + samples.shape[1], form.side)
            ]
            worker.progress(done / len(regions))
        _write(compressed, writer)
        writer.close(guard=[asdict(one) for one in findings])


def whole(job: Job, args: argparse.Namespace, planned: RowPlan, worker: Worker) -> Job:
    """Join the rows into the output, and give it what the input tells beside its pixels."""
    folder, form = Folder.of(job), planned.form
    done_before = not folder.plan.exists() or (job.target.exists() and not args.overwrite)
    if worker.attempt > 1 and done_before:
        job.notes = [*job.notes, pictures.WRITTEN_BEFORE]
    else:
        rows = [folder.row(number) for number in range(len(planned.rows))]
        job.guard = [Finding(**one) for row in rows for one in told(row)["guard"]]
        _, described = open_page(job.source, page=job.page, max_pixels=args.max_pixels)
        before, after = (planned.size[1], planned.size[0]), (form.width, form.height)
        metadata = described.enlarged(before, after, gray=form.bands <= 2, suffix=job.target.suffix.lower())
        pictures.check_still_free(job, args, {})
        with atomic_write(job.target) as temporary:
            join(rows, form, temporary)
            lost = containers.write(temporary, metadata, after)
        pictures.send(job)
        job.notes = [*job.notes, *(f"not in the tif: {name}" for name in lost)]
    folder.plan.unlink(missing_ok=True)  # first: without it nobody takes what is left for rows of an unfinished run
    shutil.rmtree(folder.path, ignore_errors=True)
    job.status = "done"
    return job


def _enlarged(region: Region, form: TiledTiff, scale: int, bands: int) -> tuple[int, int, int]:
    """The shape of a region's enlargement, which ends where the image does."""
    bottom, right = (region.top + region.height) * scale, (region.left + region.width) * scale
    return min(bottom, form.height) - region.top * scale, min(right, form.width) - region.left * scale, bands


def _write(compressed: list[tuple[int, int, Future[bytes]]], writer: PartWriter) -> None:
    for y, x, data in compressed:
        writer.add(y, x, data.result())
