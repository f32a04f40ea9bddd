# SPDX-License-Identifier: Apache-2.0
"""`ditn upscale` for films, animations and numbered pictures."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ditn.commands.found import absent
from ditn.commands.jobs import STREAM, Job, Plan, check_outputs
from ditn.commands.names import identity
from ditn.commands.report import tell, write_report
from ditn.commands.signals import raise_if_interrupted
from ditn.imaging.files import QUALITY
from ditn.inference.upscaler import Upscaler
from ditn.video.colour import BT2020
from ditn.video.encoding import CONTAINERS, choose
from ditn.video.film import SUFFIXES, Film, probe
from ditn.video.joining import changes_of
from ditn.video.layout import FilmError, layout_of
from ditn.video.pictures import (
    ANIMATED,
    NUMBERED,
    Animation,
    animation,
    are_numbered,
    as_depth,
    given,
    is_animated,
    is_pattern,
    numbered,
    pictures,
)
from ditn.video.source import Source, file_identity
from ditn.video.work import Work, begin, enlarge_segment, finish, is_begun, is_done, outcome_of, segments

_OPTIONS = ("codec", "crf", "pix_fmt", "rate", "time", "reuse", "resume")


def is_meant(args: argparse.Namespace) -> bool:
    """Whether these are films, animations or numbered pictures: by the suffix of OUTPUT or, where that is a folder or
    an image, by the inputs."""
    suffix = "" if _is_folder(args.output) else Path(args.output).suffix.lower()
    if suffix in CONTAINERS:
        return True
    if is_pattern(args.output) or (suffix in ANIMATED and len(args.inputs) == 1):
        folders = is_pattern(args.output)
        return bool(args.rate) or any(_has_frames(name) or (folders and os.path.isdir(name)) for name in args.inputs)
    return not suffix and all(_is_film(name) or is_animated(Path(name)) for name in args.inputs)


def _is_folder(output: str) -> bool:
    return os.path.isdir(output) or output.endswith(("/", os.sep))


def _has_frames(name: str) -> bool:
    return are_numbered(Path(name)) or _is_film(name) or is_animated(Path(name))


def _is_film(name: str) -> bool:
    return Path(name).suffix.lower() in SUFFIXES and not os.path.isdir(name)


def refuse(args: argparse.Namespace) -> None:
    """Raises ValueError for what is of films, where images are meant."""
    outputs = f"an OUTPUT that ends in {', '.join(CONTAINERS)}, an animation, or frames/%06d.png"
    for name in filter(_is_film, args.inputs):
        raise ValueError(
            f"{name} is a film, and --output {args.output} is not: it takes {outputs}; or a folder for films alone"
        )
    for name in _OPTIONS:
        if getattr(args, name) not in (None, False):
            raise ValueError(f"--{name.replace('_', '-')} is for films: for {outputs}")


def run(
    args: argparse.Namespace,
    make: Callable[[argparse.Namespace], Upscaler],
    backends_of: Callable[[argparse.Namespace], Mapping[str, str | None]],
) -> int:
    """Every film that can be is done. 0 if that was all of them, 1 if some failed. `make` gives the Upscaler."""
    from ditn_kernels import use_backend

    plan = Plan(jobs_of(args), [])
    backends = backends_of(args) if args.json else {}
    planned = [job for job in plan.jobs if job.status == "planned"]
    try:
        with use_backend(args.backend) if args.backend else nullcontext():
            upscaler = make(args) if planned else None
            for job in planned:
                assert upscaler
                _run_one(job, upscaler, args)
    finally:
        try:
            if args.json:
                write_report(args.json, plan, model=args.model, backends=backends)
        finally:
            tell(plan)
    return 1 if plan.count("failed") else 0


def jobs_of(args: argparse.Namespace) -> list[Job]:
    """A job for each film. Raises ValueError for arguments that contradict each other."""
    output = Path(args.output)
    if STREAM in args.inputs or args.output == STREAM:
        raise ValueError("films come from files and go to files, not through standard input and output")
    single = bool(output.suffix) and not _is_folder(args.output)
    if single and len(args.inputs) > 1:
        raise ValueError(f"--output {output} takes one film, but there are several inputs; name a folder")
    if args.format:
        raise ValueError("--format is for images; the suffix of OUTPUT says what a film is written as")
    if single and args.suffix:
        raise ValueError(f"--suffix {args.suffix} is for names in a folder; --output {output} is the whole name")
    to_numbers = is_pattern(args.output) and output.suffix.lower() not in CONTAINERS
    if to_numbers and output.suffix.lower() not in NUMBERED:
        raise ValueError(f"--output {output}: numbered pictures are {', '.join(NUMBERED)}")
    jobs = []
    for name in args.inputs:
        path = Path(name)
        suffix = path.suffix.lower()
        suffix = suffix if suffix in CONTAINERS or suffix in ANIMATED else ".mkv"
        target = output if single else output / f"{path.stem}{args.suffix}{suffix}"
        job = Job(name, str(target), path, target)
        frames = are_numbered(path)
        if why := absent(path.parent if frames else path):
            job.fail(why)
        elif to_numbers and target.parent.is_dir() and (there := numbered(target).values()):
            own = {identity(file) for file in given(path)} if path.is_dir() or frames else set()
            if any(identity(file) in own for file in there):
                job.fail("would overwrite its own pictures; choose another --output")
            elif not (args.overwrite or (args.resume and is_begun(target))):
                job.fail(f"{target.parent} has such pictures already; use --overwrite or another folder")
        jobs.append(job)
    check_outputs(jobs, args)
    return jobs


def _run_one(job: Job, upscaler: Upscaler, args: argparse.Namespace) -> None:
    start = time.perf_counter()
    told = 0
    try:
        work, chosen, options = prepared(job, upscaler, args)
        told = _say(job)
        if args.dry_run:
            print(f"{job.input} -> {job.output}: {work.source.count} frames, {work.size[0]}x{work.size[1]}")
            return
        work = begin(work, options, resume=args.resume, overwrite=args.overwrite)
    except KeyboardInterrupt:
        job.fail("interrupted")
        raise
    except Exception as error:  # whatever a damaged file brings up ends this job, not the others
        job.fail(error)
        return
    try:
        _enlarge(work, chosen, job)
        whole(work, job, args)
    except FilmError as error:
        shutil.rmtree(work.folder, ignore_errors=True)
        job.fail(error)
    except KeyboardInterrupt:
        job.fail(f"interrupted{_to_go_on(work)}")
        raise
    except Exception as error:
        job.fail(error)
        job.reason += _to_go_on(work)
    finally:
        job.seconds = round(time.perf_counter() - start, 3)
    _say(job, told)


def _say(job: Job, told: int = 0) -> int:
    """Its notes but the first ones, which are told already. Returns how many it has."""
    for note in job.notes[told:]:
        tqdm.write(f"{job.input}: {note}", file=sys.stderr)
    return len(job.notes)


def _to_go_on(work: Work) -> str:
    """What has been done, in words; nothing of it is left if that is not one segment."""
    every = segments(work.source)
    done = sum(is_done(work, segment) for segment in every)
    if not done:
        shutil.rmtree(work.folder, ignore_errors=True)
        return ""
    return f"; {done} of {len(every)} segments are done, --resume goes on"


def _source(job: Job, args: argparse.Namespace) -> Source:
    path = job.source
    if path.is_dir() or are_numbered(path):
        if not args.rate:
            raise FilmError("is a folder of pictures; say with --rate how many a second are")
        source: Source = pictures(path, args.rate)
    else:
        if args.rate:
            raise FilmError("--rate is for numbered pictures; a film keeps its own times")
        source = animation(path) if is_animated(path) else probe(path)
    if source.width * source.height > args.max_pixels:
        raise FilmError(
            f"has frames of {source.width}x{source.height} pixels, more than --max-pixels {args.max_pixels:,}"
        )
    return source.cut(*args.time) if args.time else source


def prepared(job: Job, upscaler: Upscaler, args: argparse.Namespace) -> tuple[Work, Upscaler, dict[str, Any]]:
    """The work, the Upscaler that suits it, by a frame in its middle, and all that decides what the result is."""
    source = _source(job, args)
    suffix = job.target.suffix.lower()
    middle = max(entry for entry in (0, *source.entries) if entry <= source.count // 2)
    some = next((pixels for start in (middle, 0) for _, pixels in source.frames(start, source.count)), None)
    if some is None:
        raise FilmError("none of its frames can be decoded")
    upscaler, choice = upscaler.suited(as_depth(some, 8 if layout_of(source.layout).depth <= 8 else 16))
    job.model = choice.model if choice else args.model
    job.model_reason = choice.reason if choice else ""
    factor = args.scale or upscaler.scale
    width, height = (max(round(side * factor), 1) for side in (source.width, source.height))
    encoding = None
    if suffix in CONTAINERS:
        if args.scale and args.scale != upscaler.scale:  # resampled in any case: to even sides, which all codecs take
            width, height = (max(2 * round(side / 2), 2) for side in (width, height))
        encoding = choose(source, suffix, width, height, codec=args.codec, quality=args.crf, layout=args.pix_fmt)
        if isinstance(source, Film):
            job.notes += changes_of(source, suffix)
    elif args.codec or args.crf is not None or args.pix_fmt:
        raise FilmError(f"--codec, --crf and --pix-fmt are for films, not for {suffix}")
    else:
        job.notes += _untold(source, suffix)
    plan = upscaler.plan(source.height, source.width)
    job.input_size, job.output_size = (source.width, source.height), (width, height)
    job.tiles, job.predicted_peak_bytes = len(plan.regions), plan.predicted_peak
    job.notes += source.notes
    quality = args.quality
    if quality is None and not (suffix == ".webp" and isinstance(source, Animation) and source.lossless):
        quality = QUALITY
    work = Work(source, job.target, (width, height), plan, encoding, quality=quality, reuse=args.reuse)
    weights = Path(job.model)
    options = {
        "version": version("ditn-kernels"),
        "model": f"{job.model}, {file_identity(weights)}" if weights.is_file() else job.model,
        "device": upscaler.device.type,
        "dtype": str(upscaler.dtype),
        **{
            name: getattr(args, name)
            for name in ("backend", "flavor", "guard", "self_ensemble", "tile", "time", "rate")
        },
        "quality": quality,
    }
    return work, upscaler, {name: str(value) for name, value in options.items()}


def _untold(source: Source, suffix: str) -> list[str]:
    """What pictures do not tell, and their pixels are not changed for."""
    notes = []
    if source.aspect != 1:
        notes.append(f"not in the {suffix[1:]}: pixels of {source.aspect}")
    if source.colour.primaries == BT2020:
        notes.append(f"not in the {suffix[1:]}: that its colours are BT.2020's")
    return notes


def _enlarge(work: Work, upscaler: Upscaler, job: Job) -> None:
    """All segments that are not done."""
    every = segments(work.source)
    todo = [segment for segment in every if not is_done(work, segment)]
    done = work.source.count - sum(segment.stop - segment.start for segment in todo)
    if job.model_reason:
        tqdm.write(f"{job.input}: {job.model}: {job.model_reason}")
    with tqdm(total=work.source.count, initial=done, unit="frame", disable=None, desc=job.source.name) as bar:

        def advance(count: int) -> None:
            raise_if_interrupted()
            bar.n = done + count
            bar.refresh()

        for segment in todo:
            enlarge_segment(work, segment, upscaler, advance)
            done += segment.stop - segment.start


def whole(work: Work, job: Job, args: argparse.Namespace) -> None:
    """The output, and in the job what is to be said of it."""
    outcomes = [outcome_of(work, segment) for segment in segments(work.source)]
    job.guard = [finding for outcome in outcomes for finding in outcome.findings]
    if job.guard:
        job.notes.append(f"{job.guard[0]}, and so {len(job.guard)} times")
    if work.reuse:
        tiles = len(work.plan.regions) * sum(outcome.frames for outcome in outcomes)
        still = sum(outcome.reused for outcome in outcomes)
        job.notes.append(f"{still:,} of {tiles:,} tiles stood still and were taken over")
    if job.target.exists() and not args.overwrite:
        raise OSError(f"{job.output} has appeared meanwhile; use --overwrite")
    job.notes += finish(work)
    job.status = "done"
