# SPDX-License-Identifier: Apache-2.0
"""One image enlarged: a function of its job and the arguments, whichever process does it."""

from __future__ import annotations

import argparse
import math
import shutil
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

from ditn.commands.device import choose_device
from ditn.commands.jobs import STREAM, Job
from ditn.commands.names import identity
from ditn.imaging.arrays import ImageError, Pixels
from ditn.imaging.atomic import nameless_file
from ditn.imaging.files import read
from ditn.imaging.output import target_notes, write_raw
from ditn.inference.chooser import scale_for
from ditn.inference.options import AUTO
from ditn.inference.placement import default_dtype
from ditn.inference.plan import budget
from ditn.inference.upscaler import Upscaler
from ditn.model.checkpoint import load
from ditn.work.items import Worker
from ditn_kernels import REGISTRY, explain, hint, use_backend

WRITTEN_BEFORE = "was written by a process that died before it could report"


def enlarge(job: Job, args: argparse.Namespace, worker: Worker) -> Job:
    """Do the job, and say in it what became of it: whatever a damaged file brings up ends this job, not the others."""
    start = time.perf_counter()
    try:
        with backend(args):
            _enlarge(job, args, worker)
        job.status = "done"
    except KeyboardInterrupt:
        job.fail("interrupted")
        raise
    except BrokenPipeError as error:
        job.fail(error)
        raise
    except Exception as error:
        job.fail(error)
    job.seconds = round(time.perf_counter() - start, 3)
    return job


def upscaler_of(args: argparse.Namespace, worker: Worker) -> Upscaler:
    """One for all items of a worker and model, so that every model is loaded once."""
    if args.model not in worker.kept:
        with backend(args):
            worker.kept[args.model] = _upscaler(args, worker)
    made: Upscaler = worker.kept[args.model]
    return made


def backend(args: argparse.Namespace) -> AbstractContextManager[None]:
    """In which the backend is used that is asked for, if one is."""
    return use_backend(args.backend) if args.backend else nullcontext()


def facts(args: argparse.Namespace, worker: Worker) -> tuple[dict[str, str | None], str | None]:
    """The backend that runs each operator under these options; and why that is slower than it need be, if it is."""
    device, dtype = where(args, worker)
    chosen = {}
    with backend(args):
        for op in REGISTRY.values():
            inputs = op.inputs(op.samples[0], dtype=dtype, device=device)
            chosen[op.name] = explain(op, *inputs.values()).chosen
        return chosen, hint(device)


def where(args: argparse.Namespace, worker: Worker) -> tuple[torch.device, torch.dtype]:
    """The device and the dtype that this worker computes in: of several, each has a GPU of its own while they last."""
    device = choose_device(args.device)
    if device.type == "cuda" and device.index is None and worker.peers > 1:
        device = torch.device("cuda", worker.number % torch.cuda.device_count())
    return device, getattr(torch, args.dtype) if args.dtype else default_dtype(device)


def check_still_free(job: Job, args: argparse.Namespace, written: dict[tuple[int, int] | None, str]) -> None:
    """Refuse what has appeared since the jobs were planned: a file of someone else's or, where a folder takes no
    notice of case or of how a letter is composed, of this run's."""
    there = identity(job.target)
    if there in written:
        raise ImageError(f"would overwrite the output of {written[there]}: the folder takes both names for one")
    if there and not args.overwrite:
        raise ImageError(f"{job.output} has appeared meanwhile; use --overwrite or --skip-existing")


def _upscaler(args: argparse.Namespace, worker: Worker) -> Upscaler:
    device, dtype = where(args, worker)
    options: dict[str, Any] = {
        "tile": args.tile,
        "max_memory": args.max_memory or _share(device, worker),
        "self_ensemble": args.self_ensemble,
        "guard": args.guard,
        "cuda_graph": args.cuda_graph,
    }
    if args.model == AUTO:
        return Upscaler(AUTO, scale=scale_for(args.scale or math.inf), device=device, dtype=dtype, **options)
    return Upscaler(load(args.model, flavor=args.flavor, device=device, dtype=dtype), **options)


def _share(device: torch.device, worker: Worker) -> int | None:
    """The bytes of this worker's share of the device's memory; None, which leaves it to each image, for all of it."""
    sharing = worker.peers
    if device.type == "cuda":
        sharing = len(range(worker.number % torch.cuda.device_count(), worker.peers, torch.cuda.device_count()))
    return budget(None, device) // sharing if sharing > 1 else None


def _enlarge(job: Job, args: argparse.Namespace, worker: Worker) -> None:
    """Read, enlarge into a file of raw samples beside the output, encode from there."""
    # The outputs of this worker so far, which a folder may hold under more names than one.
    written = worker.kept.setdefault(WRITTEN_BEFORE, {})
    output = job.target
    if worker.attempt > 1 and not args.overwrite and output.exists():
        job.notes = [WRITTEN_BEFORE]
        return
    page = read(job.source, page=job.page, max_pixels=args.max_pixels)
    height, width, bands = page.pixels.shape
    upscaler, choice = upscaler_of(args, worker).suited(page.pixels)
    job.model = args.model
    if choice:
        job.model, job.model_reason = choice.model, choice.reason
    factor = args.scale or upscaler.scale
    job.input_size = (width, height)
    job.output_size = (max(round(width * factor), 1), max(round(height * factor), 1))
    dtype = page.pixels.dtype.name
    job.notes = page.described.notes + target_notes(
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
    with nameless_file(output.parent) as raw:
        raw.truncate(math.prod(shape) * page.pixels.dtype.itemsize)

        def emit(top: int, left: int, part: Pixels) -> None:
            _place(raw, shape, top, left, part)

        job.guard = upscaler.stream(page.pixels, emit, plan=plan, progress=worker.progress)
        raw.flush()
        check_still_free(job, args, written)
        job.notes += write_raw(raw, shape, dtype, output, page, size=job.output_size, quality=args.quality)
        written[identity(output)] = job.input
    send(job)


def send(job: Job) -> None:
    """To standard output, if that is where the job's output goes."""
    if job.output == STREAM:
        with job.target.open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.buffer.flush()


def _place(raw: Any, shape: tuple[int, int, int], top: int, left: int, part: Pixels) -> None:
    """Write a part of the image into the file, row by row: plain writes, so that memory stays small."""
    _, width, bands = shape
    pixel = bands * part.dtype.itemsize
    for row, samples in enumerate(np.ascontiguousarray(part), start=top):
        raw.seek((row * width + left) * pixel)
        raw.write(samples.tobytes())
