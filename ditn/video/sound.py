# SPDX-License-Identifier: Apache-2.0
"""Sound that a container does not take as it is: decoded, and coded anew without loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from ditn.video.film import flushed, opened, packets_of
from ditn.video.layout import pyav
from ditn.video.source import Source, ticks

# By container.
_CODERS = {"matroska": "flac", "mp4": "flac", "mov": "alac"}
_UNNAMED = ("mono", "stereo", "3.0", "quad", "5.0", "5.1", "6.1", "7.1")  # by the number of channels
# When a packet is due, its stream, for those due at once, and the packet.
Moment = tuple[Fraction, int, Any]


@dataclass(frozen=True)
class Sound:
    """A stream that is decoded and coded anew, into `output`. `depth`: s16, or s32, of which 24 bits are kept."""

    index: int
    rate: int
    layout: str
    depth: str
    output: Any


def coder(output: Any, source: Source, index: int) -> Sound:
    """A stream for sound that is coded anew. Raises ValueError or FFmpegError if none is possible."""
    codec = _CODERS.get(output.format.name)
    first = next(_decoded(source, index), None)
    if codec is None or first is None or len(first.layout.channels) > len(_UNNAMED):
        raise ValueError(index)
    layout = first.layout.name.replace("(side)", "")  # which neither coder tells from those at the back
    if "channels" in layout:
        layout = _UNNAMED[len(first.layout.channels) - 1]
    depth = "s16" if first.format.name.strip("p") in ("u8", "s16") else "s32"
    stream = output.add_stream(codec, rate=first.sample_rate, layout=layout)
    stream.codec_context.format = depth + "p" * (codec == "alac")
    stream.codec_context.time_base = Fraction(1, first.sample_rate)
    stream.codec_context.open()  # so that what it refuses is known before the film is enlarged
    return Sound(index, first.sample_rate, layout, depth, stream)


def _decoded(source: Source, index: int) -> Iterator[Any]:
    """Frames of sound, as far as they can be decoded."""
    with opened(source.path) as again:
        stream = again.streams[index]
        if stream.codec_context is None:
            return
        for packet in packets_of(again, stream):
            try:
                frames = stream.codec_context.decode(packet)
            except pyav().error.FFmpegError:
                continue  # it is silent there
            yield from frames
        yield from flushed(stream.codec_context)


def coded_packets(sound: Sound, source: Source) -> Iterator[Moment]:
    """Sound coded anew, from its first sample on without a gap: what is missing is silent, what comes twice is left
    out. Of a part of a film exactly that part."""
    unit = Fraction(1, sound.rate)

    def coded(frame: Any) -> Iterator[Moment]:
        for packet in sound.output.encode(frame):
            yield packet.dts * unit, 1 + sound.index, packet

    def framed(samples: npt.NDArray[Any]) -> Any:
        frame = pyav().AudioFrame.from_ndarray(samples.reshape(1, -1), sound.depth, sound.layout)
        frame.sample_rate, frame.pts, frame.time_base = sound.rate, at, unit
        return frame

    end = ticks(source.end * source.time_base - (source.origin or 0), unit)
    at: int | None = None
    for place, samples in _samples(sound, source):
        if source.origin is not None:
            if place >= end:
                break
            samples = samples[max(-place, 0) : end - place]
            place = max(place, 0)
            if not len(samples):
                continue
        at = place if at is None else at
        if at - place > sound.rate // 10:  # nearer ones follow each other: times are rounded
            samples = samples[at - place :]
        elif place - at > sound.rate // 10:
            while at < min(place, end):
                silence = np.zeros((min(place - at, sound.rate), samples.shape[1]), samples.dtype)
                yield from coded(framed(silence))
                at += len(silence)
        if len(samples):
            yield from coded(framed(samples))
            at += len(samples)
    if at is not None:  # else the part has no sound
        yield from coded(None)


def _samples(sound: Sound, source: Source) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """Samples [n, channels], and where the first of them belongs, in samples from the time that the output calls 0."""
    shift = source.origin or Fraction(0)
    resampler: Any = None
    kind, place = None, 0
    for frame in _decoded(source, sound.index):
        if kind != (frame.format.name, frame.layout.name, frame.sample_rate):
            kind = frame.format.name, frame.layout.name, frame.sample_rate
            mixed = frame.layout.nb_channels != pyav().AudioLayout(sound.layout).nb_channels
            resampler = pyav().AudioResampler(sound.depth, sound.layout if mixed else None, sound.rate)
        if frame.pts is not None:
            place = ticks(frame.pts * frame.time_base - shift, Fraction(1, sound.rate))
        for part in resampler.resample(frame):
            samples = part.to_ndarray().reshape(part.samples, -1)
            yield place, samples
            place += len(samples)
