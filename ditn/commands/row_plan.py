# SPDX-License-Identifier: Apache-2.0
"""How an image too large for memory is done by rows of tiles, and the folder in which that stands and the rows lie."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

from ditn.commands import pictures
from ditn.commands.jobs import Job
from ditn.imaging.arrays import ImageError
from ditn.imaging.atomic import atomic_write
from ditn.imaging.files import open_page
from ditn.imaging.output import target_notes
from ditn.imaging.regions import Regions, is_tiled, write_tiled
from ditn.imaging.tiled_tiff import TiledTiff
from ditn.inference.tiles import Region
from ditn.work.items import Worker

# Input pixels of an output tile's side, which is so many times the scale: a multiple of 16, as TIFF demands.
_ALIGN = 64
# The longest side of the network's tiles: they overlap by little then, and a row is soon done.
_LONGEST = 1024


@dataclass(frozen=True)
class Folder:
    """The folder of a job's rows, beside its output."""

    path: Path

    @classmethod
    def of(cls, job: Job) -> Folder:
        return cls(job.target.with_name(f"{job.target.name}.parts"))

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def tiled_input(self) -> Path:
        """A copy of an input of which no rectangles can be read."""
        return self.path / "input"

    def row(self, number: int) -> Path:
        return self.path / f"{number:06}.part"


@dataclass(frozen=True)
class RowPlan:
    """How an image is done: the network's tiles, the file that becomes of them.

    of      all that the output depends on, by name
    size    height and width of the image
    alpha   where it has any, that of all its pixels
    """

    of: dict[str, Any]
    size: tuple[int, int]
    form: TiledTiff
    alpha: int | None
    model: str
    model_reason: str
    notes: list[str]
    regions: list[Region]
    predicted_peak: int

    @cached_property
    def rows(self) -> list[list[Region]]:
        return [list(row) for _, row in groupby(self.regions, lambda region: region.top)]

    def differences(self, of: dict[str, Any]) -> list[str]:
        """The names of what is another thing now."""
        return [name.replace("_", " ") for name, value in of.items() if self.of.get(name) != value]

    def write(self, path: Path) -> None:
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(asdict(self)))


def read(path: Path) -> RowPlan:
    """The plan that another run has written."""
    found = json.loads(path.read_text())
    form, regions = TiledTiff(**found["form"]), [Region(**one) for one in found["regions"]]
    return RowPlan(**{**found, "size": tuple(found["size"]), "form": form, "regions": regions})


def depends_on(job: Job, args: argparse.Namespace, worker: Worker) -> dict[str, Any]:
    """All that the output depends on."""
    _, dtype = pictures.where(args, worker)
    return {
        "input": [str(job.source.resolve()), job.page, *_version(job.source)],
        "model": [args.model, *_version(Path(args.model)), args.flavor],
        "dtype": str(dtype),
        "scale": args.scale,
        "guard": args.guard,
        "self_ensemble": args.self_ensemble,
        "backend": args.backend,
        "tile": args.tile,
    }


def lay_out(job: Job, args: argparse.Namespace, worker: Worker) -> RowPlan:
    """Plan the rows of an image, and copy it where rectangles of it cannot be read."""
    folder = Folder.of(job)
    pixels, described = open_page(job.source, page=job.page, max_pixels=args.max_pixels, once_through=True)
    if not is_tiled(job.source, job.page):
        with atomic_write(folder.tiled_input) as temporary:
            write_tiled(pixels, temporary)
    image = image_of(job, args, alpha=True)
    height, width, bands = image.shape
    alpha = None
    if bands in (2, 4) and (alpha := image.constant(bands - 1)) is None:
        raise ImageError("is done by rows, which can be of one transparency only; flatten it, or raise --rows-above")
    upscaler, choice = pictures.upscaler_of(args, worker).suited(image)
    tiles = upscaler.plan(height, width, align=_ALIGN, at_most=_LONGEST)
    form = TiledTiff(width * upscaler.scale, height * upscaler.scale, bands, image.dtype.name, _ALIGN * upscaler.scale)
    target_notes(".tif", depth=8 * image.dtype.itemsize, alpha=False, width=form.width, height=form.height)
    return RowPlan(
        depends_on(job, args, worker),
        (height, width),
        form,
        alpha,
        choice.model if choice else args.model,
        choice.reason if choice else "",
        described.notes,
        list(tiles.regions),
        tiles.predicted_peak,
    )


def image_of(job: Job, args: argparse.Namespace, *, alpha: bool = False) -> Regions:
    """The input, of which rectangles can be read; without its alpha, unless that is wanted."""
    copy = Folder.of(job).tiled_input
    path, page = (copy, 0) if copy.exists() else (job.source, job.page)
    pixels, _ = open_page(path, page=page, max_pixels=args.max_pixels)
    return Regions(pixels, None if alpha else pixels.bands - (pixels.bands in (2, 4)))


def _version(path: Path) -> list[int]:
    """What changes with a file; nothing for what is none, such as the name of a model that ships."""
    if not path.is_file():
        return []
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
