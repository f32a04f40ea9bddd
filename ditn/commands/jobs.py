# SPDX-License-Identifier: Apache-2.0
"""What `ditn upscale` has to do: which images are read, and where each one's enlargement goes."""

from __future__ import annotations

import argparse
import glob
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ditn.imaging.arrays import ImageError
from ditn.imaging.files import SUFFIXES, page_count
from ditn.inference.guard import Finding


@dataclass
class Job:
    """One image (one page of a file) and what became of it: "planned", "done", "skipped" or "failed". Which
    model it went through, and why if that was chosen; the tiles in which the guard found its output wrong."""

    input: str
    output: str
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
        self.status, self.reason = "failed", str(reason) or type(reason).__name__


def plan_jobs(args: argparse.Namespace) -> list[Job]:
    """A job for every page of every image, some of which have failed or been skipped already."""
    single = len(args.inputs) == 1 and args.output.suffix.lower() in SUFFIXES and not Path(args.inputs[0]).is_dir()
    if args.output.suffix and not single and args.output.suffix.lower() in SUFFIXES:
        raise ValueError(f"{args.output} names one image, but there are several inputs; name a folder")
    jobs: list[Job] = []
    taken: dict[str, str] = {}
    for path, relative in _inputs(args):
        if isinstance(relative, str):
            jobs.append(Job(str(path), "", status="failed", reason=relative))
            continue
        for job in _pages(path, args.output if single else _output(args, relative)):
            _check_output(job, taken, args)
            jobs.append(job)
    return jobs


def _inputs(args: argparse.Namespace) -> Iterator[tuple[Path, Path | str]]:
    """Each image with its place in the output folder; or, where there is none, with the reason."""
    for given in args.inputs:
        path = Path(given)
        if path.is_dir():
            yield from _walk(path, path, args)
        elif path.exists():
            yield path, Path(path.name)
        elif found := sorted(glob.glob(given, recursive=True)):
            yield from ((Path(name), Path(Path(name).name)) for name in found if Path(name).is_file())
        else:
            yield path, "does not exist"


def _walk(folder: Path, root: Path, args: argparse.Namespace) -> Iterator[tuple[Path, Path | str]]:
    """Without hidden files, which are no images (macOS' ._ twins, our own unfinished ones); without linked folders,
    which may lead in circles; without the output folder, whose images would be enlarged again."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        yield folder, f"cannot be listed: {error.strerror}"
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        # os.path, unlike pathlib, takes a file that may not be looked at for a file: reading it gives the reason.
        if os.path.isdir(entry):
            if args.recursive and not os.path.islink(entry) and entry.resolve() != args.output.resolve():
                yield from _walk(entry, root, args)
        elif entry.suffix.lower() in SUFFIXES:
            yield entry, entry.relative_to(root)


def _output(args: argparse.Namespace, relative: Path) -> Path:
    suffix = f".{args.format}" if args.format else relative.suffix.lower()
    # GIF and the like can be read but not written.
    folder: Path = args.output
    return folder / relative.with_name(f"{relative.stem}{args.suffix}{suffix if suffix in SUFFIXES else '.png'}")


def _pages(path: Path, output: Path) -> Iterator[Job]:
    try:
        pages = page_count(path)
    except (ImageError, OSError) as error:
        job = Job(str(path), str(output))
        job.fail(error)
        yield job
        return
    for page in range(pages):
        place = output.with_name(f"{output.stem}-page{page + 1}{output.suffix}") if pages > 1 else output
        yield Job(str(path), str(place), page=page)


def _check_output(job: Job, taken: dict[str, str], args: argparse.Namespace) -> None:
    """Fail or skip a job whose output is taken, by another job or by a file."""
    if job.status != "planned":
        return
    key = os.path.abspath(job.output)
    if key in taken:
        job.fail(f"would be written to {job.output}, as {taken[key]} is already; use --suffix or --format")
    elif os.path.exists(job.output) and os.path.samefile(job.output, job.input):
        job.fail("would overwrite itself; choose another --output or a --suffix")
    elif os.path.exists(job.output) and args.skip_existing:
        job.status, job.reason = "skipped", f"{job.output} exists"
    elif os.path.exists(job.output) and not args.overwrite:
        job.fail(f"{job.output} exists; use --overwrite or --skip-existing")
    taken.setdefault(key, job.input)
