# SPDX-License-Identifier: Apache-2.0
"""`ditn upscale`: files, folders and globs in, larger images out."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ditn.commands.device import choose_device
from ditn.commands.jobs import Job, plan_jobs
from ditn.imaging.arrays import Pixels
from ditn.imaging.files import MAX_PIXELS, SUFFIXES, read, target_notes, write_raw
from ditn.inference.chooser import AUTO, scale_for
from ditn.inference.guard import GUARDS
from ditn.inference.upscaler import Upscaler
from ditn.model.checkpoint import load
from ditn_kernels import REGISTRY, explain, use_backend

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="images, folders or glob patterns")
    add("-o", "--output", required=True, type=Path, help="an image for one input, else a folder")
    add(
        "--model",
        default=AUTO,
        help="a shipped model (see `ditn info`), a file of weights, or auto: for each image the one for clean "
        "images or the one for photographs, as its pixels suggest (%(default)s)",
    )
    add("--flavor", choices=("official", "neosr"), help="whose weights a file holds, where the file does not say")
    add("--scale", type=float, help="any factor: the model's, then Lanczos resampling (default: the model's; 4)")
    add("--recursive", action="store_true", help="folders with all their sub-folders, laid out alike in OUTPUT")
    add(
        "--format", choices=[suffix[1:] for suffix in SUFFIXES], help="of the output (default: OUTPUT's or the input's)"
    )
    add("--suffix", default="", help="added to each output's name, before the dot")
    add("--quality", type=int, default=92, help="of JPEG and WebP, 1 to 100 (%(default)s)")
    add(
        "--guard",
        choices=GUARDS,
        default="repair",
        help="what becomes of places where the network's output has nothing to do with the image: repair takes them "
        "from an interpolation and says so, warn only says so, off does not look (%(default)s)",
    )
    add("--self-ensemble", action="store_true", help="mean over eight flips and rotations: 8 times the time")
    add("--tile", type=_tile, default="auto", help="side in input pixels, 0 for none, or auto (%(default)s)")
    add(
        "--max-memory",
        type=parse_bytes,
        metavar="BYTES",
        help="for the network, such as 800M or 2G (default: half of what is free)",
    )
    add("--max-pixels", type=int, default=MAX_PIXELS, help="refuse larger inputs, which may be forged (%(default)s)")
    add("--device", help="such as cpu or cuda:0 (default: a GPU if there is one)")
    add("--dtype", choices=DTYPES, help="(default: float16 on a GPU, float32 on a CPU)")
    add("--backend", help="force a backend (default: the fastest that can run; see `ditn info`)")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--skip-existing", action="store_true", help="leave outputs that exist as they are")
    existing.add_argument("--overwrite", action="store_true", help="replace outputs that exist")
    add("--dry-run", action="store_true", help="say what would be done, and do nothing")
    add("--json", type=Path, metavar="REPORT", help="write a report of every image")


def run(args: argparse.Namespace) -> int:
    """Every image that can be is done. 0 if that was all of them, 1 if some failed; the report says which and why."""
    if not 1 <= args.quality <= 100:
        raise ValueError(f"--quality is {args.quality}, must be 1 to 100")
    if args.scale is not None and not 0 < args.scale < math.inf:
        raise ValueError(f"--scale is {args.scale}, must be a positive number")
    if args.flavor and args.model == AUTO:
        raise ValueError("--flavor says whose weights a file holds; name that file with --model")
    if args.json and not args.json.parent.is_dir():
        raise ValueError(f"--json {args.json}: {args.json.parent} is no folder")
    jobs = plan_jobs(args)
    if args.dry_run:
        for job in jobs:
            print(
                f"{job.input} -> {job.output}"
                if job.status == "planned"
                else f"{job.input}: {job.status}: {job.reason}"
            )
    elif any(job.status == "planned" for job in jobs):
        with _terminated_like_interrupted():
            _run_all(jobs, args)
    for job in jobs:
        if job.status == "failed":
            print(f"{job.input}: {job.reason}", file=sys.stderr)
    if args.json:
        _write_report(args, jobs)
    failed = sum(job.status == "failed" for job in jobs)
    if not args.dry_run and sys.stderr.isatty():
        done, skipped = (sum(job.status == status for job in jobs) for status in ("done", "skipped"))
        print(f"{done} done, {skipped} skipped, {failed} failed", file=sys.stderr)
    return 1 if failed or not jobs else 0


def _run_all(jobs: list[Job], args: argparse.Namespace) -> None:
    planned = [job for job in jobs if job.status == "planned"]
    forced = use_backend(args.backend) if args.backend else nullcontext()
    with forced, tqdm(total=len(planned), unit="image", disable=None) as bar:
        finished = 0

        def advance(share: float) -> None:
            bar.n = round(finished + share, 2)
            bar.refresh()

        upscaler = _upscaler(args)
        for job in planned:
            bar.set_description(Path(job.input).name)
            start = time.perf_counter()
            try:
                _run_one(job, upscaler, args, advance)
                job.status = "done"
            except (OSError, ValueError, MemoryError, RuntimeError) as error:
                job.fail(error)
            job.seconds = round(time.perf_counter() - start, 3)
            finished += 1
            advance(0)


def _upscaler(args: argparse.Namespace) -> Upscaler:
    """One for all images, so that every model is loaded once."""
    device, dtype = _where(args)
    options: dict[str, Any] = {
        "tile": args.tile,
        "max_memory": args.max_memory,
        "self_ensemble": args.self_ensemble,
        "guard": args.guard,
    }
    if args.model == AUTO:
        return Upscaler(AUTO, scale=scale_for(args.scale or math.inf), device=device, dtype=dtype, **options)
    return Upscaler(load(args.model, flavor=args.flavor, device=device, dtype=dtype), **options)


def _run_one(job: Job, upscaler: Upscaler, args: argparse.Namespace, progress: Callable[[float], None]) -> None:
    """Read, enlarge into a file of raw samples beside the output, encode from there."""
    output = Path(job.output)
    page = read(Path(job.input), page=job.page, max_pixels=args.max_pixels)
    height, width, bands = page.pixels.shape
    upscaler, choice = upscaler.suited(page.pixels)
    job.model = args.model
    if choice:
        job.model, job.model_reason = choice.model, choice.reason
        tqdm.write(f"{job.input}: {job.model}: {job.model_reason}")
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
        job.notes += write_raw(raw, shape, dtype, output, page, size=job.output_size, quality=args.quality)
    if job.guard:
        more = f" and {len(job.guard) - 1} more tiles" if len(job.guard) > 1 else ""
        tqdm.write(f"{job.input}: {job.guard[0]}{more}: the output of {job.model} had nothing to do with the image")


def _place(raw: Any, shape: tuple[int, int, int], top: int, left: int, part: Pixels) -> None:
    """Write a part of the image into the file, row by row: plain writes, so that memory stays small."""
    _, width, bands = shape
    pixel = bands * part.dtype.itemsize
    for row, samples in enumerate(np.ascontiguousarray(part), start=top):
        raw.seek((row * width + left) * pixel)
        raw.write(samples.tobytes())


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM unwinds as Ctrl-C does, so that temporary files go and no half image stays."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _write_report(args: argparse.Namespace, jobs: list[Job]) -> None:
    report = {
        "model": args.model,
        "backends": _backends(args),
        "pictures": [asdict(job) for job in jobs],
    }
    partial = args.json.with_name(f".{args.json.name}.partial")
    partial.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, args.json)


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
    return device, DTYPES[args.dtype or ("float16" if device.type == "cuda" else "float32")]


def parse_bytes(text: str) -> int:
    """ "2G", "800M", "1.5GiB" or a number of bytes; K, M, G, T are powers of 1024."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*", text, re.IGNORECASE)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no amount of memory; write 800M or 2G")
    return int(float(match[1]) * 1024 ** ("kmgt".find(match[2].lower()) + 1 if match[2] else 0))


def _tile(text: str) -> int | str:
    if text == "auto":
        return text
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is neither auto nor a number of pixels")
    return int(text)
