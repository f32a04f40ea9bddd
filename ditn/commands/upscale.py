# SPDX-License-Identifier: Apache-2.0
"""`ditn upscale`: files, folders and globs in, larger pictures out."""

from __future__ import annotations

import argparse
import glob
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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ditn.commands.device import choose_device
from ditn.imaging.files import MAX_PIXELS, SUFFIXES, ImageError, page_count, read, target_notes, write_raw
from ditn.inference.chooser import AUTO, scale_for
from ditn.inference.guard import GUARDS, Finding
from ditn.inference.memory import predicted_peak
from ditn.inference.upscaler import Pixels, Upscaler
from ditn.model.checkpoint import load
from ditn_kernels import REGISTRY, explain, use_backend

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}


@dataclass
class Job:
    """One picture (one page of a file) and what became of it: "planned", "done", "skipped" or "failed". Which
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="pictures, folders or glob patterns")
    add("-o", "--output", required=True, type=Path, help="a picture for one input, else a folder")
    add(
        "--model",
        default=AUTO,
        help="a shipped model (see `ditn info`), a file of weights, or auto: for each picture the one for clean "
        "pictures or the one for photographs, as its pixels suggest (%(default)s)",
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
        help="what becomes of places where the network's output has nothing to do with the picture: repair takes them "
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
    add("--json", type=Path, metavar="REPORT", help="write a report of every picture")


def run(args: argparse.Namespace) -> int:
    """Every picture that can be is done. 0 if that was all of them, 1 if some failed; the report says which and why."""
    if not 1 <= args.quality <= 100:
        raise ValueError(f"--quality is {args.quality}, must be 1 to 100")
    if args.scale is not None and not 0 < args.scale < math.inf:
        raise ValueError(f"--scale is {args.scale}, must be a positive number")
    if args.flavor and args.model == AUTO:
        raise ValueError("--flavor says whose weights a file holds; name that file with --model")
    if args.json and not args.json.parent.is_dir():
        raise ValueError(f"--json {args.json}: {args.json.parent} is no folder")
    jobs = plan(args)
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


def plan(args: argparse.Namespace) -> list[Job]:
    """A job for every page of every picture, some of which have failed or been skipped already."""
    single = len(args.inputs) == 1 and args.output.suffix.lower() in SUFFIXES and not Path(args.inputs[0]).is_dir()
    if args.output.suffix and not single and args.output.suffix.lower() in SUFFIXES:
        raise ValueError(f"{args.output} names one picture, but there are several inputs; name a folder")
    jobs: list[Job] = []
    taken: dict[str, str] = {}
    for path, relative in _inputs(args):
        if isinstance(relative, str):
            jobs.append(Job(str(path), "", status="failed", reason=relative))
            continue
        for job in _pages(path, args.output if single else _output(args, relative)):
            _settle(job, taken, args)
            jobs.append(job)
    return jobs


def _inputs(args: argparse.Namespace) -> Iterator[tuple[Path, Path | str]]:
    """Each picture with its place in the output folder; or, where there is none, with the reason."""
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
    """Without hidden files, which are no pictures (macOS' ._ twins, our own unfinished ones); without linked folders,
    which may lead in circles; without the output folder, whose pictures would be enlarged again."""
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


def _settle(job: Job, taken: dict[str, str], args: argparse.Namespace) -> None:
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


def _run_all(jobs: list[Job], args: argparse.Namespace) -> None:
    planned = [job for job in jobs if job.status == "planned"]
    forced = use_backend(args.backend) if args.backend else nullcontext()
    with forced, tqdm(total=len(planned), unit="picture", disable=None) as bar:
        finished = 0

        def advance(share: float) -> None:
            bar.n = round(finished + share, 2)
            bar.refresh()

        upscaler = _upscaler(args, advance)
        for job in planned:
            bar.set_description(Path(job.input).name)
            start = time.perf_counter()
            try:
                _run_one(job, upscaler, args)
                job.status = "done"
            except (OSError, ValueError, MemoryError, RuntimeError) as error:
                job.fail(error)
            job.seconds = round(time.perf_counter() - start, 3)
            finished += 1
            advance(0)


def _upscaler(args: argparse.Namespace, progress: Callable[[float], None]) -> Upscaler:
    """One for all pictures, so that every model is loaded once."""
    device, dtype = _where(args)
    options: dict[str, Any] = {
        "tile": args.tile,
        "max_memory": args.max_memory,
        "self_ensemble": args.self_ensemble,
        "guard": args.guard,
        "progress": progress,
    }
    if args.model == AUTO:
        return Upscaler(AUTO, scale=scale_for(args.scale or math.inf), device=device, dtype=dtype, **options)
    return Upscaler(load(args.model, flavor=args.flavor, device=device, dtype=dtype), **options)


def _run_one(job: Job, upscaler: Upscaler, args: argparse.Namespace) -> None:
    """Read, enlarge into a file of raw samples beside the output, encode from there."""
    output = Path(job.output)
    picture = read(Path(job.input), page=job.page, max_pixels=args.max_pixels)
    height, width, bands = picture.pixels.shape
    upscaler, choice = upscaler.suited(picture.pixels)
    job.model = args.model
    if choice:
        job.model, job.model_reason = choice.model, choice.reason
        tqdm.write(f"{job.input}: {job.model}: {job.model_reason}")
    factor = args.scale or upscaler.scale
    job.input_size = (width, height)
    job.output_size = (max(round(width * factor), 1), max(round(height * factor), 1))
    dtype = picture.pixels.dtype.name
    job.notes = picture.notes + target_notes(
        output.suffix.lower(),
        depth=8 * picture.pixels.dtype.itemsize,
        alpha=bands in (2, 4),
        width=job.output_size[0],
        height=job.output_size[1],
    )
    regions = upscaler.plan(height, width)
    config = upscaler.model.config
    job.tiles = len(regions)
    job.predicted_peak_bytes = predicted_peak(
        upscaler.model, max(region.grown(config.overlap, height, width).pixels for region in regions)
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    shape = (height * upscaler.scale, width * upscaler.scale, bands)
    with tempfile.NamedTemporaryFile(dir=output.parent, prefix=f".{output.stem}.", suffix=".raw") as raw:
        raw.truncate(math.prod(shape) * picture.pixels.dtype.itemsize)
        job.guard = upscaler.stream(picture.pixels, lambda top, left, part: _place(raw, shape, top, left, part))
        raw.flush()
        write_raw(Path(raw.name), shape, dtype, output, picture, size=job.output_size, quality=args.quality)
    if job.guard:
        more = f" and {len(job.guard) - 1} more tiles" if len(job.guard) > 1 else ""
        tqdm.write(f"{job.input}: {job.guard[0]}{more}: the output of {job.model} had nothing to do with the picture")


def _place(raw: Any, shape: tuple[int, int, int], top: int, left: int, part: Pixels) -> None:
    """Write a part of the picture into the file, row by row: plain writes, so that memory stays small."""
    _, width, bands = shape
    pixel = bands * part.dtype.itemsize
    for row, samples in enumerate(np.ascontiguousarray(part), start=top):
        raw.seek((row * width + left) * pixel)
        raw.write(samples.tobytes())


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM unwinds as Ctrl-C does, so that temporary files go and no half picture stays."""

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
