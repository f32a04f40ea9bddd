# SPDX-License-Identifier: Apache-2.0
"""Which codec, quality and pixel format a film is written in, and the part of a film that is written so."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ditn.imaging.arrays import Pixels
from ditn.imaging.atomic import atomic_write
from ditn.video.colour import Colour, encoded, from_rgb
from ditn.video.layout import FilmError, Layout, layout_of, planar_name, pyav, url
from ditn.video.source import Source


@dataclass(frozen=True)
class Codec:
    """An encoder of FFmpeg's: the containers, by suffix, that take it; the name of its option for quality and what that
    is by default; options that it gets besides, and those for quality 0, where that is to lose nothing. `keeps_rgb`:
    RGB stays so, or at least keeps all of its chroma."""

    encoder: str
    containers: tuple[str, ...]
    quality: str = ""
    default: int = 0
    options: tuple[tuple[str, str], ...] = ()
    lossless: tuple[tuple[str, str], ...] = ()
    keeps_rgb: bool = False


_ANY, _MATROSKA = (".mkv", ".mp4", ".m4v", ".mov"), (".mkv",)
_QUIET = ("x265-params", "log-level=none")
CODECS = {
    "h264": Codec("libx264", _ANY, "crf", 16, lossless=(("qp", "0"),)),
    "hevc": Codec("libx265", _ANY, "crf", 18, (_QUIET,), lossless=(("x265-params", f"{_QUIET[1]}:lossless=1"),)),
    "vp9": Codec("libvpx-vp9", (".mkv", ".webm", ".mp4"), "crf", 20, (("row-mt", "1"),), lossless=(("lossless", "1"),)),
    "av1": Codec("libsvtav1", (".mkv", ".webm", ".mp4"), "crf", 24, (("preset", "6"),)),
    "ffv1": Codec("ffv1", _MATROSKA, options=(("level", "3"),), keeps_rgb=True),
    "prores": Codec("prores_ks", (".mov", ".mkv"), keeps_rgb=True),
    "h264_nvenc": Codec("h264_nvenc", _ANY, "cq", 19),
    "hevc_nvenc": Codec("hevc_nvenc", _ANY, "cq", 21),
    "av1_nvenc": Codec("av1_nvenc", (".mkv", ".mp4"), "cq", 26),
}
CONTAINERS = {".mkv": "matroska", ".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".webm": "webm"}
# Containers that lose VP9's transparency, which is a second film beside the first, and take no other codec's.
_OPAQUE = (".mp4", ".m4v")
# Formats that FFmpeg lists but few decoders know, or that its encoder does not open with.
_UNUSED = {"hevc": ("yuva420p", "yuva420p10le"), "vp9": ("yuva422p", "yuva444p", "gbrap")}


@dataclass(frozen=True)
class Encoding:
    """How a film is encoded: `codec`, a name of CODECS; `quality`, its own measure of it; and what the frames are."""

    codec: str
    quality: int | None
    layout: str
    colour: Colour
    width: int
    height: int
    rate: Fraction
    aspect: Fraction


def choose(
    source: Source,
    suffix: str,
    width: int,
    height: int,
    *,
    codec: str | None = None,
    quality: int | None = None,
    layout: str | None = None,
) -> Encoding:
    """The encoding for an output of that suffix and size; what is None is chosen after the source: H.264, HEVC above 8
    bits; VP9 in WebM, AV1 above 8 bits; with transparency VP9, ProRes in mov; the source's depth and chroma, and of RGB
    4:2:0. Raises FilmError for what does not go together."""
    given = layout_of(source.layout)
    if given.alpha and suffix in _OPAQUE:
        raise _opaque(suffix)
    codec = codec or _default_codec(given, suffix)
    if codec not in CODECS:
        raise FilmError(f"--codec {codec} is unknown; there are {', '.join(CODECS)}")
    chosen = CODECS[codec]
    if suffix not in chosen.containers:
        raise FilmError(f"{codec} does not go into {suffix}; it goes into {', '.join(chosen.containers)}")
    if quality is not None and not chosen.quality:
        raise FilmError(f"{codec} has no --crf")
    formats = _formats(codec)
    if layout and layout not in formats:
        raise FilmError(f"{codec} has no pixel format {layout}; it has {', '.join(sorted(formats))}")
    fits = [one for one in formats.values() if width % one.across == 0 and height % one.down == 0]
    if layout and formats[layout] not in fits:
        raise FilmError(f"{width}x{height} pixels do not go into {layout}, which halves its chroma; use a 4:4:4 format")
    fits = [one for one in fits if one.name == layout] if layout else fits
    if given.alpha and not any(one.alpha for one in fits):
        raise _opaque(layout or codec)
    if not fits:
        raise FilmError(f"{codec} takes no frames of {width}x{height} pixels; its chroma is halved")
    best = min(fits, key=lambda one: _loss(one, given, keeps_rgb=chosen.keeps_rgb))
    if source.aspect != 1 and codec in ("vp9", "av1") and suffix in (".mkv", ".webm"):
        raise FilmError(
            f"its pixels are {source.aspect}, which {codec} does not keep in {suffix}; use .mp4 or --codec hevc"
        )
    return Encoding(
        codec,
        (chosen.default if quality is None else quality) if chosen.quality else None,
        best.name,
        encoded(source.colour, best),
        width,
        height,
        source.rate.limit_denominator(100_000),
        source.aspect,
    )


def _opaque(what: str) -> FilmError:
    return FilmError(
        f"has transparency, which {what} does not keep; use --codec ffv1 (.mkv), prores (.mov) or vp9 (.webm)"
    )


def _default_codec(given: Layout, suffix: str) -> str:
    if given.alpha:
        return "prores" if suffix == ".mov" else "vp9"
    if suffix == ".webm":
        return "av1" if given.depth > 8 else "vp9"
    return "hevc" if given.depth > 8 else "h264"


def _formats(codec: str) -> dict[str, Layout]:
    """The pixel formats of an encoder that can be made here. Raises FilmError if this build of FFmpeg lacks it."""
    av = pyav()
    try:
        names = [one.name for one in av.codec.Codec(CODECS[codec].encoder, "w").video_formats or ()]
    except ValueError:
        raise FilmError(f"this build of PyAV has no {CODECS[codec].encoder}, which encodes {codec}") from None
    found = {}
    for name in names:
        with suppress(FilmError):  # floats
            one = layout_of(name)
            if (
                (one.planar or (one.rgb and one.depth == 8))
                and not one.gray
                and max(one.across, one.down) <= 2
                and name not in _UNUSED.get(codec, ())
            ):
                found[name] = one
    return {name: one for name, one in found.items() if not name.startswith("yuvj")}


def _loss(one: Layout, given: Layout, *, keeps_rgb: bool) -> tuple[int, ...]:
    """What a format loses of the given one, and then what it has in excess: the least is chosen."""
    halved = given.rgb and not keeps_rgb
    across, down = (2, 2) if halved else (given.across, given.down)
    return (
        one.alpha != given.alpha,
        max(given.depth - one.depth, 0),
        max(one.across - across, 0) + max(one.down - down, 0),
        one.rgb != (given.rgb and keeps_rgb),
        max(across - one.across, 0) + max(down - one.down, 0),
        max(one.depth - given.depth, 0),
    )


@contextmanager
def encoder(path: Path, encoding: Encoding) -> Iterator[Callable[[int, Pixels], None]]:
    """A part of a film, which is there when the block has ended: what is given takes a frame's number within the part
    and its pixels, in order. The part is a Matroska file whose packets have these numbers for milliseconds, so that any
    time can be given to them later, in any unit."""
    av = pyav()
    os.environ.setdefault("SVT_LOG", "1")  # errors only
    layout, codec = layout_of(encoding.layout), CODECS[encoding.codec]
    options = dict(codec.options) | ({codec.quality: str(encoding.quality)} if codec.quality else {})
    if encoding.quality == 0:
        options |= dict(codec.lossless)
    if encoding.codec == "vp9":
        options["b"] = "0"  # or --crf would only be a bound
    bare = {"fflags": "+bitexact"}  # no time and no random number in the file
    with (
        atomic_write(path) as temporary,
        av.open(url(temporary), "w", format="matroska", container_options=bare) as part,
    ):
        stream = part.add_stream(codec.encoder, rate=encoding.rate, options=options)
        context = stream.codec_context
        context.width, context.height, context.pix_fmt = encoding.width, encoding.height, encoding.layout
        context.time_base = 1 / encoding.rate
        context.sample_aspect_ratio = encoding.aspect
        tag(context, encoding.colour)
        if layout.alpha and encoding.codec == "vp9":
            stream.metadata["alpha_mode"] = "1"

        def write(frame: Any) -> None:
            for packet in stream.encode(frame):
                packet.time_base, packet.duration = Fraction(1, 1000), 0
                part.mux(packet)

        given = False

        def add(number: int, pixels: Pixels) -> None:
            nonlocal given
            given = True
            frame = _frame(pixels, layout, encoding.colour)
            frame.pts, frame.time_base = number, context.time_base
            write(frame)

        yield add
        if given:  # else the part is an empty file
            write(None)


def tag(one: Any, colour: Colour) -> None:
    """Say of a codec's context or a frame what its numbers mean."""
    one.colorspace, one.color_range = colour.matrix, colour.range
    one.color_primaries, one.color_trc = colour.primaries, colour.transfer


def _frame(pixels: Pixels, layout: Layout, colour: Colour) -> Any:
    twin = layout if layout.planar else layout_of(planar_name(layout))
    frame = pyav().VideoFrame(pixels.shape[1], pixels.shape[0], twin.name)
    for plane, samples in zip(frame.planes, from_rgb(pixels, twin, colour), strict=True):
        raw = np.ascontiguousarray(samples).view(np.uint8)
        lines = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
        lines[:, : raw.shape[1]] = raw
    if not layout.planar:
        frame = frame.reformat(format=layout.name)
    tag(frame, colour)
    return frame
