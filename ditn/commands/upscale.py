# SPDX-License-Identifier: Apache-2.0
"""`ditn upscale`: files, folders and globs in, larger images out."""

from __future__ import annotations

import argparse
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ditn.commands import film
from ditn.commands.device import choose_device
from ditn.commands.jobs import STREAM, Job, Plan, plan_jobs
from ditn.commands.names import identity
from ditn.commands.report import tell, write_report
from ditn.commands.signals import raise_if_interrupted
from ditn.imaging.arrays import ImageError, Pixels
from ditn.imaging.files import read, target_notes, write_raw
from ditn.inference.chooser import scale_for
from ditn.inference.options import AUTO
from ditn.inference.upscaler import Upscaler
from ditn.model.checkpoint import load
from ditn_kernels import REGISTRY, explain, hint, use_backend


def run(args: argparse.Namespace) -> int:
    """Every image that can be is done. 0 if that was all of them, 1 if some failed; the report says which and why. An
    interrupted run reports what it has done."""
    if film.is_meant(args):
        return film.run(args, _upscaler, _backends)
    film.refuse(args)
    if args.output == STREAM and not args.dry_run and sys.stdout.isatty():
        raise ValueError("standard output is a terminal, which shows no image; redirect it or name a file")
    with tempfile.TemporaryDirectory(prefix="ditn-") as scratch:
        plan = plan_jobs(args, Path(scratch))
        if args.dry_run:
            for job in plan.jobs:
                print(f"{job.input}" + (f" -> {job.output}" if job.status == "planned" else f": {job.reason}"))
        backends = _backends(args) if args.json else {}
        try:
            if plan.count("planned") and not args.dry_run:
                _run_all(plan, args)
        finally:
            try:
                if args.json:
                    write_report(args.json, plan, model=args.model, backends=backends)
            finally:
                tell(plan)
    return 1 if plan.count("failed") else 0


def _run_all(plan: Plan, args: argparse.Namespace) -> None:
    planned = [job for job in plan.jobs if job.status == "planned"]
    written: dict[tuple[int, int] | None, str] = {}
    forced = use_backend(args.backend) if args.backend else nullcontext()
    with forced, tqdm(total=len(planned), unit="image", disable=None) as bar:
        finished = 0

        def advance(share: float) -> None:
            raise_if_interrupted()
            bar.n = round(finished + share, 2)
            bar.refresh()

        upscaler = _upscaler(args)
        for job in planned:
            bar.set_description(Path(job.input).name)
            start = time.perf_counter()
            try:
                _run_one(job, upscaler, args, advance, written)
                job.status = "done"
            except KeyboardInterrupt:
                job.fail("interrupted")
                raise
            except BrokenPipeError as error:
                job.fail(error)
                raise
            except Exception as error:  # whatever a damaged file brings up ends this job, not the others
                job.fail(error)
            job.seconds = round(time.perf_counter() - start, 3)
            finished += 1
            advance(0)


def _upscaler(args: argparse.Namespace) -> Upscaler:
    """One for all images, so that every model is loaded once."""
    device, dtype = _where(args)
    if slow := hint(device):
        tqdm.write(f"ditn upscale: {slow}", file=sys.stderr)
    options: dict[str, Any] = {
        "tile": args.tile,
        "max_memory": args.max_memory,
        "self_ensemble": args.self_ensemble,
        "guard": args.guard,
        "cuda_graph": args.cuda_graph,
    }
    if args.model == AUTO:
        return Upscaler(AUTO, scale=scale_for(args.scale or math.inf), device=device, dtype=dtype, **options)
    return Upscaler(load(args.model, flavor=args.flavor, device=device, dtype=dtype), **options)


def _run_one(
    job: Job,
    upscaler: Upscaler,
    args: argparse.Namespace,
    progress: Callable[[float], None],
    written: dict[tuple[int, int] | None, str],
) -> None:
    """Read, enlarge into a file of raw samples beside the output, encode from there. `written` are the outputs so
    far, which a folder may hold under more names than one."""
    output = job.target
    page = read(job.source, page=job.page, max_pixels=args.max_pixels)
    height, width, bands = page.pixels.shape
    upscaler, choice = upscaler.suited(page.pixels)
    job.model = args.model
    if choice:
        job.model, job.model_reason = choice.model, choice.reason
        _say(f"{job.input}: {job.model}: {job.model_reason}", args)
    factor = args.scale or upscaler.scale
    job.input_size = (width, height)
    job.output_size = (max(round(width * factor), 1), max(round(height * factor), 1))
    dtype = page.pixels.dtype.name
    job.notes = page.notes + target_notes(
        output.suffix.lower(),
        depth=8 * page.pixels.dtype.itemsize,
        alpha=bands in (2, 4),
        width=job.output_size[0],
        height=job.output_size[1],
    )
    plan = upscaler.plan(height, width)
    job.tiles, job.predicted_peak_bytes = len(plan.regions), plan.predicted_peak
    output.parent.mkdir(parents=True, exist_ok=True)
    shape = (height * upscaler.scale, width * upscaler.scale, bands)
    # A file without a name, of which nothing is left whatever ends the process.
    with tempfile.TemporaryFile(dir=output.parent) as raw:
        raw.truncate(math.prod(shape) * page.pixels.dtype.itemsize)

        def emit(top: int, left: int, part: Pixels) -> None:
            _place(raw, shape, top, left, part)

        job.guard = upscaler.stream(page.pixels, emit, plan=plan, progress=progress)
        raw.flush()
        _check_still_free(job, args, written)
        job.notes += write_raw(raw, shape, dtype, output, page, size=job.output_size, quality=args.quality)
        written[identity(output)] = job.input
    if job.output == STREAM:
        with output.open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.buffer.flush()
    if job.guard:
        more = f" and {len(job.guard) - 1} more tiles" if len(job.guard) > 1 else ""
        _say(f"{job.input}: {job.guard[0]}{more}: the output of {job.model} had nothing to do with the image", args)


def _say(text: str, args: argparse.Namespace) -> None:
    tqdm.write(text, file=sys.stderr if args.output == STREAM else sys.stdout)


def _check_still_free(job: Job, args: argparse.Namespace, written: dict[tuple[int, int] | None, str]) -> None:
    """Refuse what has appeared since the jobs were planned: a file of someone else's or, where a folder takes no
    notice of case or of how a letter is composed, of this run's."""
    there = identity(job.target)
    if there in written:
        raise ImageError(f"would overwrite the output of {written[there]}: the folder takes both names for one")
    if there and not args.overwrite:
        raise ImageError(f"{job.output} has appeared meanwhile; use --overwrite or --skip-existing")


def _place(raw: Any, shape: tuple[int, int, int], top: int, left: int, part: Pixels) -> None:
    """Write a part of the image into the file, row by row: plain writes, so that memory stays small."""
    _, width, bands = shape
    pixel = bands * part.dtype.itemsize
    for row, samples in enumerate(np.ascontiguousarray(part), start=top):
        raw.seek((row * width + left) * pixel)
        raw.write(samples.tobytes())


def _backends(args: argparse.Namespace) -> dict[str, str | None]:
    """The backend that runs each operator under these options."""
    device, dtype = _where(args)
    chosen = {}
    for op in REGISTRY.values():
        inputs = op.inputs(op.samples[0], dtype=dtype, device=device)
        chosen[op.name] = explain(op, *inputs.values(), backend=args.backend).chosen
    return chosen


def _where(args: argparse.Namespace) -> tuple[torch.device, torch.dtype]:
    device = choose_device(args.device)
    return device, getattr(torch, args.dtype or ("float16" if device.type == "cuda" else "float32"))
