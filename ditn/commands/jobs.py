# SPDX-License-Identifier: Apache-2.0
"""What `ditn upscale` has to do: which images are read, and where each one's enlargement goes."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ditn.commands.found import Image, LeftOut, Missing, find
from ditn.commands.names import identity, place_of
from ditn.imaging.arrays import ImageError
from ditn.imaging.files import SUFFIXES, page_count
from ditn.inference.guard import Finding
from ditn.work.items import Result
from ditn.work.items import reason as in_words

STREAM = "-"  # standard input among the inputs, standard output as the output
_ALIKE = {".tiff": ".tif", ".dib": ".bmp"} | dict.fromkeys((".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", ".pjp"), ".jpg")


@dataclass
class Job:
    """One image (one page of a file) and what became of it: "planned", "done", "skipped" or "failed". Which
    model it went through, and why if that was chosen; the tiles in which the guard found its output wrong.

    `input` and `output` are what people are told; `source` and `target` are where it is read from and written to.
    """

    input: str
    output: str
    source: Path
    target: Path
    page: int = 0
    status: str = "planned"
    reason: str = ""
    notes: list[str] = field(default_factory=list)
    guard: list[Finding] = field(default_factory=list)
    model: str = ""
    model_reason: str = ""
    input_size: tuple[int, int] | None = None
    output_size: tuple[int, int] | None = None
    tiles: int = 0
    predicted_peak_bytes: int = 0
    seconds: float = 0.0

    def fail(self, reason: object) -> None:
        self.status, self.reason = "failed", in_words(reason)

    def take(self, result: Result) -> None:
        """What became of it in another process: that one's copy of it, or a reason."""
        if result.failure:
            self.fail(result.failure)
        else:
            vars(self).update(vars(result.value))

    def entry(self) -> dict[str, Any]:
        """What the report says of it."""
        return {name: value for name, value in asdict(self).items() if name not in ("source", "target")}


@dataclass(frozen=True)
class Plan:
    """The jobs, some of which have failed or been skipped already, and what folders hold besides."""

    jobs: list[Job]
    left_out: list[LeftOut]

    def count(self, status: str) -> int:
        return sum(job.status == status for job in self.jobs)


def plan_jobs(args: argparse.Namespace, scratch: Path) -> Plan:
    """A job for every page of every image. What goes through standard input and output lies in the folder `scratch`
    meanwhile. Raises ValueError for arguments that contradict each other."""
    single = _names_one_image(args)
    left_out: list[LeftOut] = []
    if args.inputs == [STREAM]:
        found: list[Image | Missing] = [Image(_standard_input(scratch), Path(STREAM))]
    else:
        folder = None if single else Path(args.output)
        found = list(find(args.inputs, folder, recursive=args.recursive, left_out=left_out))
    jobs: list[Job] = []
    for one in found:
        name = STREAM if args.inputs == [STREAM] else str(one.path)
        if isinstance(one, Missing):
            jobs.append(Job(name, "", one.path, Path(), status="failed", reason=one.reason))
            continue
        target = _target(args, one.place, scratch) if args.output == STREAM or not single else Path(args.output)
        jobs += _pages(name, one.path, target, args)
    check_outputs(jobs, args)
    return Plan(jobs, left_out)


def _names_one_image(args: argparse.Namespace) -> bool:
    """Whether OUTPUT is an image, not a folder. What contradicts itself is refused."""
    output = Path(args.output)
    if STREAM in args.inputs and len(args.inputs) > 1:
        raise ValueError(f"{STREAM}, standard input, goes alone, there are {len(args.inputs)} inputs")
    if args.output == STREAM or not (output.is_dir() or args.output.endswith(os.sep) or not output.suffix):
        _check_one_image(args, output)
        return True
    if STREAM in args.inputs:
        raise ValueError(f"--output {output} is a folder; name the image, or {STREAM} for standard output")
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output {output} is a file without a suffix; name a folder or an image")
    if Path(args.suffix).name != args.suffix:
        raise ValueError(f"--suffix is {args.suffix!r}, must be part of a file's name")
    return False


def _check_one_image(args: argparse.Namespace, output: Path) -> None:
    suffix = output.suffix.lower()
    if args.output != STREAM and suffix not in SUFFIXES:
        raise ValueError(
            f"--output {output}: {suffix} cannot be written, only {', '.join(SUFFIXES)}; "
            f"if a folder is meant, write {output}{os.sep}"
        )
    if len(args.inputs) > 1 or os.path.isdir(args.inputs[0]):
        raise ValueError(f"--output {output} takes one image, but there are several inputs; name a folder")
    if suffix and args.format and _kind(suffix) != _kind(f".{args.format}"):
        raise ValueError(f"--output {output} and --format {args.format} contradict each other; leave one of them out")
    if args.suffix:
        raise ValueError(f"--suffix {args.suffix} is for names in a folder; --output {output} is the whole name")


def _kind(suffix: str) -> str:
    """The suffix that stands for all that mean the same."""
    return _ALIKE.get(suffix, suffix)


def _standard_input(scratch: Path) -> Path:
    path = scratch / "standard-input"
    with path.open("wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    return path


def _target(args: argparse.Namespace, place: Path, scratch: Path) -> Path:
    suffix = f".{args.format}" if args.format else place.suffix.lower()
    if suffix not in SUFFIXES:  # GIF and the like can be read but not written
        suffix = _kind(suffix) if _kind(suffix) in SUFFIXES else ".png"
    if args.output == STREAM:
        return scratch / f"standard-output{suffix}"
    return Path(args.output) / place.with_name(f"{place.stem}{args.suffix}{suffix}")


def _pages(name: str, source: Path, target: Path, args: argparse.Namespace) -> Iterator[Job]:
    output = STREAM if args.output == STREAM else str(target)
    try:
        pages = page_count(source)
        if pages > 1 and args.output == STREAM:
            raise ImageError(f"has {pages} pages, standard output takes one; name a file or a folder")
    except Exception as error:  # whatever a damaged file brings up ends this job, not the others
        job = Job(name, output, source, target)
        job.fail(error)
        yield job
        return
    for page in range(pages):
        place = target.with_name(f"{target.stem}-page{page + 1}{target.suffix}") if pages > 1 else target
        yield Job(name, STREAM if args.output == STREAM else str(place), source, place, page=page)


def check_outputs(jobs: Iterable[Job], args: argparse.Namespace) -> None:
    """Fail or skip every job whose output is taken: by another job, by an input, by a file."""
    inputs = {identity(job.source): job.input for job in jobs}
    inputs[identity(Path(args.model))] = "the model"
    outputs = {identity(job.target): job.input for job in jobs if job.status == "planned"}
    outputs.pop(None, None)  # of those that are not there yet
    taken: dict[str, str] = {}
    for job in jobs:
        if job.status != "planned":
            continue
        place, there = place_of(job.target), identity(job.target)
        made_of = outputs.get(identity(job.source), job.input)
        if args.skip_existing and made_of != job.input:  # in the folder that it was written to by the run before
            job.status, job.reason = "skipped", f"is what {made_of} becomes"
        elif place in taken:
            job.fail(f"would be written to {job.output}, as {taken[place]} is already; give it an --output of its own")
        elif there and there == identity(job.source):
            job.fail("would overwrite itself; choose another --output or a --suffix")
        elif there and args.skip_existing:
            job.status, job.reason = "skipped", f"{job.output} exists"
        elif there and there in inputs:
            job.fail(f"would overwrite {inputs[there]}, an input; choose another --output or a --suffix")
        elif there and not args.overwrite:
            job.fail(f"{job.output} exists; use --overwrite or --skip-existing")
        if job.status != "failed":
            taken[place] = job.input
    if args.json and (place_of(args.json) in taken or (args.json.is_file() and identity(args.json) in inputs)):
        raise ValueError(f"--json {args.json} is an image or the model of this run; choose another name")
