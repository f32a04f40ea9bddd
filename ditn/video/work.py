# SPDX-License-Identifier: Apache-2.0
"""A film in segments: each is enlarged by a function of its inputs alone, into a part of its own; then all are joined.

A run that ends early leaves whole parts, and one that goes on does the others. Because every run works segment by
segment, in the same tiles, both write the same film.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ditn.imaging.arrays import Pixels
from ditn.imaging.atomic import atomic_write
from ditn.imaging.files import QUALITY
from ditn.inference.guard import Finding
from ditn.inference.plan import TilePlan
from ditn.inference.tiles import Region
from ditn.inference.upscaler import Upscaler
from ditn.video.encoding import Encoding, encoder
from ditn.video.joining import check_parts, join
from ditn.video.layout import FilmError, layout_of
from ditn.video.pictures import as_depth, is_pattern, name_of, numbered, picture_bytes, write_animation
from ditn.video.source import Source
from ditn.video.stream import FrameUpscaler, ahead, behind, overlapped

# Frames of a segment: few enough that little is lost with one, many enough that its key frame costs nothing.
_SEGMENT = 120
_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Work:
    """A film to be made: from `source`, in the tiles of `plan`, as frames of `size` (width, height), to `output`;
    encoded as `encoding` or, where that is None, as pictures or an animation of `quality` (see `picture_bytes`). It
    can be pickled."""

    source: Source
    output: Path
    size: tuple[int, int]
    plan: TilePlan
    encoding: Encoding | None
    quality: int | None = QUALITY
    reuse: bool = False

    @property
    def folder(self) -> Path:
        """Where the parts lie until they are joined: beside the output; of pictures, in their folder."""
        return _folder(self.output)


@dataclass(frozen=True)
class Segment:
    """The frames start <= number < stop."""

    number: int
    start: int
    stop: int


@dataclass(frozen=True)
class Outcome:
    """Of a segment: how many frames were enlarged, how many tiles stood still, what the guard found."""

    frames: int
    reused: int
    findings: list[Finding]


def segments(source: Source) -> list[Segment]:
    """Ranges of about 120 frames that cover a source: each ends where decoding can begin, but after 240 in any case,
    unless frames can only be counted."""
    edges, entries = [0], set(source.entries)
    for number in range(1, source.count):
        length = number - edges[-1]
        if length >= _SEGMENT and (number in entries or (source.seekable and length >= 2 * _SEGMENT)):
            edges.append(number)
    edges.append(source.count)
    return [Segment(index, start, stop) for index, (start, stop) in enumerate(pairwise(edges))]


def part_of(work: Work, segment: Segment) -> Path:
    """Where a segment's part lies: a file of a film, a folder of pictures."""
    return work.folder / f"{segment.number:06}{'.mkv' if work.encoding else ''}"


def outcome_of(work: Work, segment: Segment) -> Outcome:
    """What was found in a segment whose part is there, whoever made it."""
    told = json.loads(_outcome(work, segment).read_text(encoding="utf-8"))
    return Outcome(told["frames"], told["reused"], [Finding(**one) for one in told["findings"]])


def is_done(work: Work, segment: Segment) -> bool:
    """Whether a segment's part and outcome are there, and the part is not empty although it had frames: after a power
    cut a file may have its name, but not yet what was written into it."""
    try:
        frames = outcome_of(work, segment).frames
        return part_of(work, segment).stat().st_size > 0 or not frames
    except (OSError, ValueError):
        return False


def _outcome(work: Work, segment: Segment) -> Path:
    return work.folder / f"{segment.number:06}.json"


def _folder(output: Path) -> Path:
    return output.with_name(f"{output.name}.parts")


def is_begun(output: Path) -> bool:
    """Whether a run to this output was begun and not finished."""
    return (_folder(output) / _MANIFEST).exists()


def begin(work: Work, options: dict[str, Any], *, resume: bool = False, overwrite: bool = False) -> Work:
    """Make the folder of the parts, or take up the one that an earlier run has left: then in the tiles of that run.
    `options` is all that decides what the result is. With `overwrite` such a folder is removed, unless it is taken up.

    Raises FilmError if a folder is there but not to be taken up, or of another input or other options; and for pictures
    that would stay beside those to be written, and look like frames."""
    if work.encoding is None and is_pattern(work.output.name) and work.output.parent.is_dir():
        own = {name_of(work.output, number + 1).name for number in range(work.source.count)}
        others = [file.name for file in numbered(work.output).values() if file.name not in own]
        if others:
            raise FilmError(
                f"{work.output.parent} has {len(others)} more such pictures, {others[0]} to {others[-1]}, than the "
                f"{len(own)} that are to be written; move them away, or use another folder"
            )
    manifest = work.folder / _MANIFEST
    said = {"input": work.source.identity, **options, "encoding": repr(work.encoding), "size": list(work.size)}
    said = json.loads(json.dumps(said))
    if overwrite and not resume and manifest.exists():
        shutil.rmtree(work.folder)
    if manifest.exists():
        if not resume:
            raise FilmError(f"{work.folder} is there from a run that was not finished; use --resume or --overwrite")
        found = json.loads(manifest.read_text(encoding="utf-8"))
        if differ := [
            name for name in said.keys() | found["options"].keys() if said.get(name) != found["options"].get(name)
        ]:
            raise FilmError(
                f"--resume: {', '.join(sorted(differ))} differ from the run that was not finished; use --overwrite"
            )
        plan = found["plan"]
        regions = tuple(Region(*region) for region in plan["regions"])
        return replace(work, plan=TilePlan(plan["height"], plan["width"], regions, plan["predicted_peak"]))
    if work.folder.exists() and any(not path.name.startswith(".ditn-") for path in work.folder.iterdir()):
        raise FilmError(f"{work.folder} is there, and no run made it; move it away, for parts are to lie there")
    work.folder.mkdir(parents=True, exist_ok=True)
    plan = asdict(work.plan) | {"regions": [list(asdict(region).values()) for region in work.plan.regions]}
    with atomic_write(manifest) as temporary:
        temporary.write_text(json.dumps({"options": said, "plan": plan}), encoding="utf-8")
    return work


def enlarge_segment(
    work: Work, segment: Segment, upscaler: Upscaler, progress: Callable[[int], None] | None = None
) -> Outcome:
    """Decode, enlarge and encode a segment, side by side, into its part, which is whole or not there, and its outcome
    beside that. `progress` is called with the number of frames after each."""
    enlarge = FrameUpscaler(upscaler, work.plan, work.size, reuse=work.reuse)
    findings: list[Finding] = []
    done = 0
    frames = work.source.frames(segment.start, segment.stop)
    with _part(work, segment) as write, behind(write) as put, ahead(frames) as coming:
        by_two = upscaler.device.type == "cuda" and not work.reuse
        enlarged = overlapped(lambda frame: (frame[0], *enlarge(frame[1])), coming, upscaler.device if by_two else None)
        for number, larger, found in enlarged:
            findings += found
            put((number - segment.start, larger))
            done += 1
            if progress:
                progress(done)
        outcome = Outcome(done, enlarge.reused, findings)
        with atomic_write(_outcome(work, segment)) as temporary:
            temporary.write_text(json.dumps(asdict(outcome)), encoding="utf-8")
    return outcome


@contextmanager
def _part(work: Work, segment: Segment) -> Iterator[Callable[[tuple[int, Pixels]], None]]:
    path = part_of(work, segment)
    if work.encoding:
        with encoder(path, work.encoding) as add:
            yield lambda item: add(*item)
        return
    temporary = work.folder / f".ditn-{os.urandom(8).hex()}"
    temporary.mkdir()
    depth = 16 if layout_of(work.source.layout).depth > 8 and is_pattern(work.output.name) else 8
    suffix = work.output.suffix.lower() if is_pattern(work.output.name) else ".png"

    def write(item: tuple[int, Pixels]) -> None:
        number, pixels = item
        upright = np.rot90(as_depth(pixels, depth), work.source.rotation // 90)
        data = picture_bytes(upright, suffix, quality=work.quality)
        (temporary / f"{segment.start + number:08}{suffix}").write_bytes(data)

    try:
        yield write
        shutil.rmtree(path, ignore_errors=True)  # one whose outcome cannot be read
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def finish(work: Work) -> list[str]:
    """Join the parts into the output and remove their folder. Returns what was lost, in words. Raises FilmError if not
    one frame could be decoded."""
    every = segments(work.source)
    parts = [(segment.start, part_of(work, segment)) for segment in every]
    notes: list[str] = []
    older = 0
    if work.encoding:
        parts = [(start, part) for start, part in parts if part.stat().st_size]
        written = 0
        if parts:
            check_parts([part for _, part in parts])
            written = join(work.output, work.source, work.encoding, parts)
    else:
        files = [file for _, part in parts for file in sorted(part.iterdir())]
        frames = [(int(file.stem), file) for file in files]
        # More than are left here if a run was killed while it gave them their names.
        written = sum(outcome_of(work, segment).frames for segment in every)
        if written and is_pattern(work.output.name):
            for number, file in frames:
                os.replace(file, name_of(work.output, number + 1))
            there = sum(name_of(work.output, number + 1).exists() for number in range(work.source.count))
            written = min(written, there)
            older = there - written
        elif frames:
            write_animation(work.output, work.source, frames, quality=work.quality)
    shutil.rmtree(work.folder)
    if not written:
        raise FilmError("none of its frames can be decoded")
    if missing := work.source.count - written:
        notes.append(f"{missing} of {work.source.count} frames could not be decoded and are missing")
    if older:
        notes.append(f"{older} of their numbers still have the pictures of an earlier run")
    return notes
