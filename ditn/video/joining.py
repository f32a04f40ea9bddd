# SPDX-License-Identifier: Apache-2.0
"""The parts of a film put together, with the times of its source and everything of it that is not video."""

from __future__ import annotations

import heapq
import io
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any

from ditn.imaging.atomic import atomic_write
from ditn.video.encoding import CONTAINERS, Encoding, tag
from ditn.video.film import Film, main_stream, opened, packets_of
from ditn.video.layout import FilmError, pyav, url
from ditn.video.source import Source

# Of the container, not of the film.
_OF_CONTAINERS = {
    *("encoder", "major_brand", "minor_version", "compatible_brands", "duration", "vendor_id"),
    *("bps", "number_of_frames", "number_of_bytes", "alpha_mode"),
}
Moment = tuple[Fraction, int, Any]


def join(path: Path, source: Source, encoding: Encoding, parts: Sequence[tuple[int, Path]]) -> int:
    """Write the film at `path` from its parts, each with the number of its first frame. Nothing is encoded again.
    Returns how many frames it has. What the container cannot hold is left out (see `lost_of`)."""
    av = pyav()
    suffix = path.suffix.lower()
    options = {"fflags": "+bitexact"}
    edits = suffix not in (".mkv", ".webm")
    if edits:
        options["video_track_timescale"] = str(source.time_base.denominator)
    numbers = [number for first, part in parts for number in _numbers(first, part)]
    with ExitStack() as stack:
        temporary = stack.enter_context(atomic_write(path))
        container = stack.enter_context(opened(source.path)) if isinstance(source, Film) else None
        part = stack.enter_context(opened(parts[0][1]))
        output = stack.enter_context(av.open(url(temporary), "w", format=CONTAINERS[suffix], container_options=options))
        video = _video(output, part, source, encoding)
        packets = [_video_packets(video, source, parts, numbers)]
        if container:
            copies, _ = _copied(output, container, main_stream(container, source.path), source)
            packets.append(_copied_packets(container, copies, source, early=edits))
        for _, _, packet in heapq.merge(*packets, key=lambda moment: moment[:2]):
            output.mux(packet)
    return len(numbers)


def lost_of(source: Film, suffix: str) -> list[str]:
    """What of a film a container of that suffix cannot hold, in words. Raises FilmError if that is sound."""
    with (
        opened(source.path) as container,
        pyav().open(io.BytesIO(), "w", format=CONTAINERS[suffix]) as output,
    ):
        output.add_stream("ffv1" if suffix == ".mkv" else "vp9" if suffix == ".webm" else "h264")
        _, lost = _copied(output, container, main_stream(container, source.path), source)
    if sound := [name for name in lost if "audio" in name]:
        raise FilmError(f"its {sound[0]}, does not go into {suffix}; write .mkv")
    return lost


def _video(output: Any, part: Any, source: Source, encoding: Encoding) -> Any:
    template = part.streams.video[0]
    stream = output.add_stream_from_template(template, opaque=True)
    context = stream.codec_context
    tag(context, encoding.colour)
    context.sample_aspect_ratio = encoding.aspect
    if encoding.codec == "prores":
        context.codec_tag = template.codec_context.codec_tag
    elif encoding.codec.startswith("hevc") and output.format.name != "matroska":
        context.codec_tag = "hvc1"  # which Apple's players ask for
    stream.time_base = source.time_base
    if source.rotation:
        stream.set_display_rotation(source.rotation)
    if encoding.codec == "vp9" and "yuva" in encoding.layout:
        stream.metadata["alpha_mode"] = "1"
    return stream


def _numbers(first: int, part: Path) -> list[int]:
    """The number of the frame in each packet of a part, in the order of decoding."""
    with opened(part) as container:
        return [first + packet.pts for packet in packets_of(container, container.streams.video[0])]


def _video_packets(
    stream: Any, source: Source, parts: Sequence[tuple[int, Path]], numbers: Sequence[int]
) -> Iterator[Moment]:
    """The parts' packets at the times of the source. A packet is decoded when the frame is shown that lies as many
    places before it as frames change places, so that no time comes twice and none after its frame is shown."""
    shown = sorted(numbers)
    place = {number: index for index, number in enumerate(shown)}
    depth = max((index - place[number] for index, number in enumerate(numbers)), default=0)
    shift = _ticks(source.origin or Fraction(0), source.time_base)
    index = 0
    for _, part in parts:
        with opened(part) as container:
            for packet in packets_of(container, container.streams.video[0]):
                number = numbers[index]
                # The first ones before the film begins, by as much as they are early.
                before = index - depth
                decoded = source.pts[shown[abs(before)]]
                decoded = 2 * source.pts[shown[0]] - decoded if before < 0 else decoded
                packet.pts, packet.dts = source.pts[number] - shift, decoded - shift
                packet.time_base, packet.duration = source.time_base, source.duration(number)
                packet.stream = stream
                yield packet.dts * source.time_base, 0, packet
                index += 1


def _copied(output: Any, container: Any, main: Any, source: Source) -> tuple[dict[int, Any], list[str]]:
    """Streams for all that is copied, by the source's index; tags and chapters; and what the output cannot hold."""
    av = pyav()
    copies: dict[int, Any] = {}
    lost: list[str] = []
    for stream in container.streams:
        cover = stream.type == "video" and bool(stream.disposition & av.stream.Disposition.attached_pic)
        if stream.index == main.index or (stream.type == "data" and container.chapters()):
            continue  # QuickTime's text of chapters, which are set below
        name = stream.codec_context.name if stream.codec_context else stream.type
        try:
            if stream.type == "attachment" or (cover and output.format.name == "matroska"):
                _attach(output, stream, source)
                continue
            if stream.type not in ("audio", "subtitle") and not cover:
                raise ValueError(stream.type)
            copy = output.add_stream_from_template(stream, opaque=True)
        except ValueError:
            lost.append(f"stream {stream.index}, {stream.type if name == stream.type else f'{stream.type} ({name})'}")
            continue
        copy.metadata.update(_kept(stream.metadata))
        copy.disposition = stream.disposition
        copies[stream.index] = copy
    output.metadata.update(_kept(container.metadata))
    output.streams.video[0].metadata.update(_kept(main.metadata))
    output.streams.video[0].disposition = main.disposition
    output.set_chapters(_chapters(container, source))
    return copies, lost


def _attach(output: Any, stream: Any, source: Source) -> None:
    """Into Matroska an attachment or a cover, which is one there. Raises ValueError if the output has none."""
    if output.format.name != "matroska":
        raise ValueError("attachments are Matroska's")
    named = {name.lower(): value for name, value in stream.metadata.items()}
    name, mime = named.get("filename", f"{stream.type}{stream.index}"), named.get("mimetype", "")
    if stream.type == "attachment":
        output.add_attachment(name, mime, bytes(stream.data))
        return
    with opened(source.path) as again:  # whose packets are not those that are still to be copied
        kind = stream.codec_context.name.replace("mjpeg", "jpeg")
        data = bytes(next(packets_of(again, again.streams[stream.index])))
        output.add_attachment(named.get("filename", f"cover.{kind}"), mime or f"image/{kind}", data)


def _kept(metadata: dict[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in metadata.items()
        if not name.lower().startswith("_statistics") and name.lower() not in _OF_CONTAINERS
    }


def _chapters(container: Any, source: Source) -> list[dict[str, Any]]:
    """The chapters, where only a part is wanted those in it, from its beginning."""
    chapters = [dict(chapter) for chapter in container.chapters()]
    if source.origin is None:
        return chapters
    kept = []
    for chapter in chapters:
        unit = chapter["time_base"]
        shift, end = _ticks(source.origin, unit), _ticks(source.end * source.time_base, unit)
        if chapter["start"] < end and chapter["end"] > shift:
            start, stop = max(chapter["start"] - shift, 0), min(chapter["end"], end) - shift
            kept.append(chapter | {"start": start, "end": stop})
    return kept


def _copied_packets(container: Any, copies: dict[int, Any], source: Source, *, early: bool) -> Iterator[Moment]:
    """The packets at their own times; where only a part is wanted, those that begin in it, or `early`, too, the one
    that lasts into it, which a container with edit lists has begin in its middle."""
    streams = [container.streams[index] for index in copies]
    if not streams:
        return
    end = source.end * source.time_base
    for packet in packets_of(container, *streams):
        index, unit = packet.stream_index, packet.time_base
        if copies[index].type == "video":  # a cover, which has no time
            packet.pts = packet.dts = 0
            packet.stream = copies[index]
            yield Fraction(0), 1 + index, packet
            continue
        if packet.pts is None:
            continue
        if source.origin is not None:
            earliest = source.origin - (packet.duration or 0) * unit if early else source.origin
            if not earliest <= packet.pts * unit < end:
                continue
            shift = _ticks(source.origin, unit)
            packet.pts -= shift
            packet.dts = packet.pts if packet.dts is None else packet.dts - shift
        elif packet.dts is None:
            packet.dts = packet.pts
        packet.stream = copies[index]
        yield packet.dts * unit, 1 + index, packet


def _ticks(seconds: Fraction, unit: Fraction) -> int:
    """The nearest whole number of units, halves up."""
    return math.floor(seconds / unit + Fraction(1, 2))


def check_parts(parts: Sequence[Path]) -> None:
    """Raises FilmError if parts were encoded differently, as by another version of the encoder."""
    headers = set()
    for part in parts:
        with opened(part) as container:
            headers.add(container.streams.video[0].codec_context.extradata)
    if len(headers) > 1:
        raise FilmError("its parts were encoded by different versions of the encoder; begin anew with --overwrite")
