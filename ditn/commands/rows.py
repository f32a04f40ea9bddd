# SPDX-License-Identifier: Apache-2.0
"""An image too large for memory, by rows of tiles: each row reads its part of the input and writes its part of a tiled
BigTIFF; when all are there they are joined. Each step is a function of its inputs alone, whichever process does it.

Beside the output lies a folder `OUTPUT.parts` meanwhile, in which rows stay that are done: whoever runs the same again
does the others. What it was begun with stands in its `plan.json`; with anything else it is refused.
"""

from __future__ import annotations

import argparse
import json
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ditn.commands import pictures
from ditn.commands.jobs import Job
from ditn.imaging import containers
from ditn.imaging.arrays import ImageError, Pixels
from ditn.imaging.atomic import atomic_write
from ditn.imaging.files import open_page, target_notes
from ditn.imaging.regions import Regions, is_tiled, write_tiled
from ditn.imaging.tiled_tiff import PartWriter, TiledTiff, join, told
from ditn.inference.alpha import with_alpha
from ditn.inference.guard import Finding
from ditn.inference.plan import TilePlan
from ditn.inference.tiles import Region
from ditn.work.items import Worker

# Input pixels of an output tile's side, which is so many times the scale: a multiple of 16, as TIFF demands.
_ALIGN = 64
# The longest side of the network's tiles: they overlap by little then, and a row is soon done.
_LONGEST = 1024


def takes(job: Job, pixels: int, args: argparse.Namespace) -> bool:
    """Whether a job's image is done this way."""
    return pixels > args.rows_above and job.target.suffix.lower() in (".tif", ".tiff")


def plan(job: Job, args: argparse.Namespace, worker: Worker) -> tuple[Job, list[int], int]:
    """Lay out the rows of an image, or find them laid out. Returns what is known of the job then, the numbers of the
    rows that are missing, and how many there are. Raises ImageError for an image that cannot be done this way."""
    parts = _Parts(job)
    if args.scale and args.scale != (scale := pictures.upscaler_of(args, worker).scale):
        raise ImageError(f"is done by rows, which are not resampled: --scale is {args.scale:g}, the model's {scale}")
    if parts.folder.exists() and (changed := parts.differences(args, worker)):
        if not args.overwrite:
            raise ImageError(
                f"{parts.folder} holds rows of a run with another {' and '.join(changed)}; remove it or use --overwrite"
            )
        shutil.rmtree(parts.folder)
        parts = _Parts(job)
    if not parts.manifest.exists():
        _lay_out(parts, args, worker)
    planned = parts.planned
    form, (height, width) = parts.form, planned["size"]
    job.model, job.model_reason, job.notes = planned["model"], planned["model_reason"], planned["notes"]
    job.input_size, job.output_size = (width, height), (form.width, form.height)
    job.tiles, job.predicted_peak_bytes = len(planned["regions"]), planned["predicted_peak"]
    count = len(parts.rows)
    return job, [number for number in range(count) if not parts.row(number).exists()], count


def part(job: Job, args: argparse.Namespace, number: int, worker: Worker) -> None:
    """Enlarge one row of tiles into a part of the output."""
    parts = _Parts(job)
    if parts.row(number).exists():  # by a process that died before it could say so
        return
    form, planned, regions = parts.form, parts.planned, parts.rows[number]
    image = _image(parts, args)
    upscaler, _ = pictures.upscaler_of(args, worker).suited(image)
    height, width = planned["size"]
    peak = planned["predicted_peak"]
    alpha = planned["alpha"] if planned["alpha"] is None else image.dtype.type(planned["alpha"])
    findings: list[Finding] = []
    with (
        pictures.backend(args),
        atomic_write(parts.row(number)) as temporary,
        temporary.open("wb") as file,
        ThreadPoolExecutor(torch.get_num_threads()) as pool,
    ):
        writer = PartWriter(file)
        compressed: list[tuple[int, int, Future[bytes]]] = []
        for done, region in enumerate(regions):
            samples = np.empty(_enlarged(region, form, upscaler.scale, image.shape[2]), image.dtype)
            top, left = region.top * upscaler.scale, region.left * upscaler.scale

            def place(y: int, x: int, part: Pixels) -> None:
                samples[y - top : y - top + part.shape[0], x - left : x - left + part.shape[1]] = part  # noqa: B023

            findings += upscaler.stream(image, place, plan=TilePlan(height, width, (region,), peak))
            if alpha is not None:
                samples = with_alpha(samples, alpha)
            # One tile is compressed while the network is at the next.
            _write(compressed, writer)
            compressed = [
                (y, x, pool.submit(form.compressed, samples[y - top :, x - left :][: form.side, : form.side]))
                for y in range(top, top + samples.shape[0], form.side)
                for x in range(left, left + samples.shape[1], form.side)
            ]
            worker.progress((done + 1) / len(regions))
        _write(compressed, writer)
        writer.close(guard=[asdict(one) for one in findings])


def whole(job: Job, args: argparse.Namespace, worker: Worker) -> Job:
    """Join the rows into the output, and give it what the input tells beside its pixels."""
    parts = _Parts(job)
    if worker.attempt > 1 and not args.overwrite and job.target.exists():
        job.notes = [*job.notes, pictures.WRITTEN_BEFORE]
    else:
        form, (height, width) = parts.form, parts.planned["size"]
        rows = [parts.row(number) for number in range(len(parts.rows))]
        job.guard = [Finding(**one) for part in rows for one in told(part)["guard"]]
        _, described = open_page(job.source, page=job.page, max_pixels=args.max_pixels)
        size = form.width, form.height
        suffix = job.target.suffix.lower()
        metadata = described.enlarged((width, height), size, gray=form.bands <= 2, suffix=suffix)
        pictures.check_still_free(job, args, {})
        with atomic_write(job.target) as temporary:
            join(rows, form, temporary)
            job.notes = [
                *job.notes,
                *(f"not in the tif: {name}" for name in containers.write(temporary, metadata, size)),
            ]
    shutil.rmtree(parts.folder)
    job.status = "done"
    return job


class _Parts:
    """The folder of a job's parts."""

    def __init__(self, job: Job) -> None:
        self.job = job

    @property
    def folder(self) -> Path:
        return self.job.target.with_name(f"{self.job.target.name}.parts")

    @property
    def manifest(self) -> Path:
        return self.folder / "plan.json"

    @property
    def tiled_input(self) -> Path:
        """A copy of an input of which no rectangles can be read."""
        return self.folder / "input"

    def row(self, number: int) -> Path:
        return self.folder / f"{number:06}.part"

    @cached_property
    def planned(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.manifest.read_text())
        return found

    @property
    def rows(self) -> list[tuple[Region, ...]]:
        regions = [Region(*one) for one in self.planned["regions"]]
        return [tuple(row) for _, row in groupby(regions, lambda region: region.top)]

    @property
    def form(self) -> TiledTiff:
        return TiledTiff(**self.planned["form"])

    def differences(self, args: argparse.Namespace, worker: Worker) -> list[str]:
        """What was another thing when the folder was begun."""
        if not self.manifest.exists():  # it was not even laid out
            return []
        before = self.planned["of"]
        return [name.replace("_", " ") for name, value in self.of(args, worker).items() if before.get(name) != value]

    def of(self, args: argparse.Namespace, worker: Worker) -> dict[str, Any]:
        """All that the output depends on."""
        _, dtype = pictures.where(args, worker)
        return {
            "input": [str(self.job.source.resolve()), self.job.page, *_version(self.job.source)],
            "model": [args.model, *_version(Path(args.model)), args.flavor],
            "dtype": str(dtype),
            "scale": args.scale,
            "guard": args.guard,
            "self_ensemble": args.self_ensemble,
            "backend": args.backend,
            "tile": args.tile,
        }


def _lay_out(parts: _Parts, args: argparse.Namespace, worker: Worker) -> None:
    job = parts.job
    parts.folder.mkdir(parents=True, exist_ok=True)
    pixels, described = open_page(job.source, page=job.page, max_pixels=args.max_pixels, once_through=True)
    if not is_tiled(job.source, job.page) and not parts.tiled_input.exists():
        with atomic_write(parts.tiled_input) as temporary:
            write_tiled(pixels, temporary)
    image = _image(parts, args, alpha=True)
    height, width, bands = image.shape
    alpha = None
    if bands in (2, 4) and (alpha := image.constant(bands - 1)) is None:
        raise ImageError("is done by rows, which can be of one transparency only; flatten it, or raise --rows-above")
    upscaler, choice = pictures.upscaler_of(args, worker).suited(image)
    tiles = upscaler.plan(height, width, align=_ALIGN, at_most=_LONGEST)
    scale, dtype = upscaler.scale, image.dtype.name
    form = TiledTiff(width * scale, height * scale, bands, dtype, _ALIGN * scale)
    target_notes(".tif", depth=8 * image.dtype.itemsize, alpha=False, width=form.width, height=form.height)
    planned = {
        "of": parts.of(args, worker),
        "size": (height, width),
        "form": asdict(form),
        "alpha": alpha,
        "model": choice.model if choice else args.model,
        "model_reason": choice.reason if choice else "",
        "notes": described.notes,
        "regions": [(one.top, one.left, one.height, one.width) for one in tiles.regions],
        "predicted_peak": tiles.predicted_peak,
    }
    with atomic_write(parts.manifest) as temporary:
        temporary.write_text(json.dumps(planned))


def _image(parts: _Parts, args: argparse.Namespace, *, alpha: bool = False) -> Regions:
    """The input, of which rectangles can be read."""
    if parts.tiled_input.exists():
        pixels, _ = open_page(parts.tiled_input, max_pixels=args.max_pixels)
    else:
        pixels, _ = open_page(parts.job.source, page=parts.job.page, max_pixels=args.max_pixels)
    return Regions(pixels, None if alpha else pixels.bands - (pixels.bands in (2, 4)))


def _enlarged(region: Region, form: TiledTiff, scale: int, bands: int) -> tuple[int, int, int]:
    """The shape of a region's enlargement, which ends where the image does."""
    bottom, right = (region.top + region.height) * scale, (region.left + region.width) * scale
    return min(bottom, form.height) - region.top * scale, min(right, form.width) - region.left * scale, bands


def _write(compressed: list[tuple[int, int, Future[bytes]]], writer: PartWriter) -> None:
    for y, x, data in compressed:
        writer.add(y, x, data.result())


def _version(path: Path) -> list[int]:
    """What changes with a file; nothing for what is none, such as the name of a model that ships."""
    if not path.is_file():
        return []
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
