# SPDX-License-Identifier: Apache-2.0
"""Where frames come from, and what they all have: a number, a time, pixels."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Self

from ditn.imaging.arrays import Pixels
from ditn.video.colour import Colour
from ditn.video.layout import FilmError


@dataclass(frozen=True)
class Source(ABC):
    """Frames in their order. It can be pickled: files are opened when frames are asked for.

    pts         when each frame is shown, in ticks of `time_base` seconds, ascending; `end`, when the last one goes
    rate        frames per second, on average
    layout      the name of the pixel format; `colour`, what its numbers mean
    rotation    degrees counter-clockwise by which a player turns the frames; `aspect`, of a pixel, width by height
    entries     numbers of the frames at which decoding can begin
    skipped     frames of the input before the first one
    origin      the time, in seconds, that the output calls 0, where only a part is wanted; None: times stay
    identity    what tells this input from another, or from itself before it was changed
    notes       what is not as it should be, for the report
    """

    path: Path
    width: int
    height: int
    time_base: Fraction
    rate: Fraction
    pts: tuple[int, ...]
    end: int
    layout: str
    colour: Colour
    identity: str
    rotation: int = 0
    aspect: Fraction = Fraction(1)
    entries: tuple[int, ...] = (0,)
    skipped: int = 0
    origin: Fraction | None = None
    notes: tuple[str, ...] = field(default=(), compare=False)

    @abstractmethod
    def frames(self, start: int, stop: int) -> Iterator[tuple[int, Pixels]]:
        """The number and the pixels [H, W, bands], uint8 or uint16, of each frame of start <= number < stop that can be
        decoded, in order."""

    @property
    def seekable(self) -> bool:
        """Whether a frame is found without decoding all before it."""
        return True

    @property
    def count(self) -> int:
        return len(self.pts)

    @property
    def first_time(self) -> Fraction:
        """When the film begins, in seconds."""
        return self.pts[0] * self.time_base

    def time(self, number: int) -> float:
        """Seconds from the film's beginning to a frame."""
        return float((self.pts[number] - self.pts[0]) * self.time_base)

    def duration(self, number: int) -> int:
        """Ticks for which a frame is shown."""
        return (self.pts[number + 1] if number + 1 < self.count else self.end) - self.pts[number]

    def cut(self, start: float, stop: float) -> Self:
        """The frames that begin in start <= seconds < stop, counted from the first frame. Raises FilmError if there are
        none."""
        begin = self.first_time + Fraction(start).limit_denominator(1_000_000)
        first = bisect_left(self.pts, math.ceil(begin / self.time_base))
        last = self.count
        if stop < math.inf:
            finish = self.first_time + Fraction(stop).limit_denominator(1_000_000)
            last = bisect_left(self.pts, math.ceil(finish / self.time_base))
        if first >= last:
            length = float((self.end - self.pts[0]) * self.time_base)
            raise FilmError(f"has no frame between {start:g} and {stop:g} seconds; it is {length:.3f} seconds long")
        return replace(
            self,
            pts=self.pts[first:last],
            end=self.pts[last] if last < self.count else self.end,
            entries=tuple(entry - first for entry in self.entries if first <= entry < last),
            skipped=self.skipped + first,
            origin=self.pts[first] * self.time_base,
        )

    def chapters(self, chapters: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The input's chapters, where only a part is wanted those in it, from its beginning."""
        if self.origin is None:
            return [dict(chapter) for chapter in chapters]
        kept = []
        for chapter in chapters:
            unit = chapter["time_base"]
            shift, end = ticks(self.origin, unit), ticks(self.end * self.time_base, unit)
            if chapter["start"] < end and chapter["end"] > shift:
                start, stop = max(chapter["start"] - shift, 0), min(chapter["end"], end) - shift
                kept.append({**chapter, "start": start, "end": stop})
        return kept


def ticks(seconds: Fraction, unit: Fraction) -> int:
    """The nearest whole number of units, halves up."""
    return math.floor(seconds / unit + Fraction(1, 2))


def file_identity(path: Path) -> str:
    """Size and time of change, to the nanosecond."""
    status = path.stat()
    return f"{status.st_size} bytes of {status.st_mtime_ns}"
