# SPDX-License-Identifier: Apache-2.0
"""The parts of a film put together, with the times of its source and everything of it that is not video."""

from __future__ import annotations

import heapq
import io
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from shlex import quote
from typing import Any

from ditn.imaging.atomic import atomic_write
from ditn.video.encoding import CONTAINERS, Encoding, tag
from ditn.video.film import Film, main_stream, opened, packets_of
from ditn.video.layout import FilmError, pyav, url
from ditn.video.sound import Moment, Sound, coded_packets, coder
from ditn.video.source import Source, ticks

# Of the container, not of the film.
_OF_CONTAINERS = {
    *("encoder", "major_brand", "minor_version", "compatible_brands", "duration", "vendor_id"),
    *("bps", "number_of_frames", "number_of_bytes", "alpha_mode"),
}


def join(path: Path, source: Source, encoding: Encoding, parts: Sequence[tuple[int, Path]]) -> int:
    """Write the film at `path` from its parts, each with the number of its first frame. Nothing is encoded again.
    Returns how many frames it has. What the container cannot hold is left out, or coded anew (see `changes_of`)."""
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
            copies, anew, _ = _besides(output, container, main_stream(container, source.path), source)
            packets.append(_copied_packets(container, copies, source, early=edits))
            packets += [coded_packets(sound, source) for sound in anew]
        for _, _, packet in heapq.merge(*packets, key=lambda moment: moment[:2]):
            output.mux(packet)
    return len(numbers)


def changes_of(source: Film, suffix: str) -> list[str]:
    """What of a film is left out of a container of that suffix, and which sound is coded anew for it, in words. Raises
    FilmError for sound that neither can be."""
    with (
        opened(source.path) as container,
        pyav().open(io.BytesIO(), "w", format=CONTAINERS[suffix]) as output,
    ):
        output.add_stream("ffv1" if suffix == ".mkv" else "vp9" if suffix == ".webm" else "h264")
        _, anew, lost = _besides(output, container, main_stream(container, source.path), source)
        for stream in lost:
            if stream.type == "audio" and suffix == ".mkv":
                raise FilmError(
                    f"its {_told(stream)}, can be neither copied nor decoded; leave it out, with ffmpeg -i "
                    f"{quote(source.path.name)} -map 0 -map -0:{stream.index} -c copy rest{source.path.suffix}"
                )
            if stream.type == "audio":
                changes_of(source, ".mkv")  # says what helps where that does not take it either
                raise FilmError(f"its {_told(stream)}, does not go into {suffix}; write .mkv")
        return [f"not in the {suffix[1:]}: {_told(stream)}" for stream in lost] + [
            f"{_told(container.streams[sound.index])}, does not go into the {suffix[1:]} as it is: it is coded anew, "
            f"as {sound.output.codec_context.name.upper()} of {16 if sound.depth == 's16' else 24} bits"
            for sound in anew
        ]


def _told(stream: Any) -> str:
    name = stream.codec_context.name if stream.codec_context else stream.type
    return f"stream {stream.index}, {stream.type if name == stream.type else f'{stream.type} ({name})'}"


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
    shift = ticks(source.origin or Fraction(0), source.time_base)
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


def _besides(output: Any, container: Any, main: Any, source: Source) -> tuple[dict[int, Any], list[Sound], list[Any]]:
    """Streams for all that is copied, by the source's index; sound that is coded anew; what the output cannot hold.
    Tags and chapters are set."""
    av = pyav()
    copies: dict[int, Any] = {}
    anew: list[Sound] = []
    lost: list[Any] = []
    for stream in container.streams:
        cover = stream.type == "video" and bool(stream.disposition & av.stream.Disposition.attached_pic)
        if stream.index == main.index or (stream.type == "data" and container.chapters()):
            continue  # QuickTime's text of chapters, which are set below
        try:
            if stream.type == "attachment" or (cover and output.format.name == "matroska"):
                _attach(output, stream, source)
                continue
            if stream.type not in ("audio", "subtitle") and not cover:
                raise ValueError(stream.type)
            if _takes(output.format.name, source, stream.index):
                copy = copies[stream.index] = output.add_stream_from_template(stream, opaque=True)
            elif stream.type == "audio":
                anew.append(coder(output, source, stream.index))
                copy = anew[-1].output
            else:
                raise ValueError(stream.type)
        except (ValueError, av.error.FFmpegError):
            lost.append(stream)
            continue
        copy.metadata.update(_kept(stream.metadata))
        copy.disposition = stream.disposition
    output.metadata.update(_kept(container.metadata))
    output.streams.video[0].metadata.update(_kept(main.metadata))
    output.streams.video[0].disposition = main.disposition
    output.set_chapters(source.chapters(container.chapters()))
    return copies, anew, lost


def _takes(container: str, source: Source, index: int) -> bool:
    """Whether a container takes a stream as it is: for some that shows only when it is closed over a packet."""
    av = pyav()
    with opened(source.path) as again:
        packet = next(packets_of(again, again.streams[index]), None)
        try:
            with av.open(io.BytesIO(), "w", format=container) as output:
                copy = output.add_stream_from_template(again.streams[index], opaque=True)
                if packet:
                    packet.stream, packet.pts, packet.dts = copy, 0, 0
                    output.mux(packet)
        except (ValueError, av.error.FFmpegError):
            return False
    return True


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
            shift = ticks(source.origin, unit)
            packet.pts -= shift
            packet.dts = packet.pts if packet.dts is None else packet.dts - shift
        elif packet.dts is None:
            packet.dts = packet.pts
        packet.stream = copies[index]
        yield packet.dts * unit, 1 + index, packet


def check_parts(parts: Sequence[Path]) -> None:
    """Raises FilmError if parts were encoded differently, as by another version of the encoder."""
    headers = set()
    for part in parts:
        with opened(part) as container:
            headers.add(container.streams.video[0].codec_context.extradata)
    if len(headers) > 1:
        raise FilmError("its parts were encoded by different versions of the encoder; begin anew with --overwrite")
