# SPDX-License-Identifier: Apache-2.0
"""Films, as PyAV decodes them: looked through once for the time of every frame, then read from any frame on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ditn.imaging.arrays import Pixels
from ditn.video.colour import Colour, to_rgb, understood
from ditn.video.layout import FilmError, Layout, layout_of, planar_name, pyav, url
from ditn.video.source import Source, file_identity

SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".m2v", ".vob", ".ts", ".mts", ".m2ts"),
    *(".wmv", ".asf", ".flv", ".f4v", ".ogv", ".3gp", ".mxf", ".nut", ".y4m", ".dv"),
)
_INTERLACED = {2: "top field first", 3: "bottom field first", 4: "top field first", 5: "bottom field first"}
# How far before a frame to look for one from which it can be decoded: where an index is missing or wrong, further.
_BACK = (0.0, 2.0, 20.0, None)


@dataclass(frozen=True)
class Film(Source):
    """A file's first video stream. `decoder` is the one that it needs, where that is not FFmpeg's choice. `counted`:
    the file has no times, or AVI's, which are those of decoding: then frames are known by counting from the first."""

    decoder: str = ""
    counted: bool = False

    @property
    def seekable(self) -> bool:
        return not self.counted

    def frames(self, start: int, stop: int) -> Iterator[tuple[int, Pixels]]:
        """Raises FilmError for a frame that is interlaced or of another size than the first."""
        if self.counted:
            for number, frame in enumerate(self._decoded(0, None), start=-self.skipped):
                if start <= number < stop:
                    yield number, self._pixels(frame, number)
            return
        numbers = {self.pts[number]: number for number in range(start, stop)}
        first, last = self.pts[start], self.pts[stop - 1]
        entry = max((one for one in self.entries if one <= start), default=0)
        # A seek to the file's first frame may lead behind it, and there is no earlier one to look from.
        for back in _BACK if start + self.skipped else (None,):
            reached = False
            for frame in self._decoded(self.pts[entry], back):
                if frame.pts is None:
                    continue
                if frame.pts > last:
                    break
                if frame.pts < first:
                    reached = True
                    continue
                if not reached and frame.pts > first and back is not None:
                    break  # the file's index led too far
                reached = True
                if (found := numbers.pop(frame.pts, None)) is not None:
                    yield found, self._pixels(frame, found)
            if reached:
                return

    def _decoded(self, pts: int, back: float | None) -> Iterator[Any]:
        """Frames from `back` seconds before a time on, or earlier; from the file's beginning if that is None."""
        av = pyav()
        with opened(self.path) as container:
            stream = main_stream(container, self.path)
            if back is not None:
                try:
                    container.seek(pts - int(back / stream.time_base), stream=stream, backward=True)
                except av.error.FFmpegError:  # a bare stream, which may have no index; where this stands is unknown now
                    yield from self._decoded(pts, None)
                    return
            decoder = stream.codec_context
            if self.decoder:
                decoder = av.CodecContext.create(self.decoder, "r")
            else:
                decoder.thread_type = "AUTO"
            for packet in packets_of(container, stream):
                try:
                    frames = decoder.decode(packet)
                except (av.error.InvalidDataError, av.error.EOFError):
                    continue  # what is lacking is counted and reported by whoever asked
                yield from frames
            yield from flushed(decoder)

    def _pixels(self, frame: Any, number: int) -> Pixels:
        where = f"at {self.time(number):.3f} s"
        if (frame.width, frame.height) != (self.width, self.height):
            raise FilmError(
                f"changes from {self.width}x{self.height} to {frame.width}x{frame.height} pixels {where}; "
                "enlarge the parts one by one, with --time"
            )
        if frame.interlaced_frame:
            raise FilmError(f"is interlaced {where}; deinterlace it first, with FFmpeg's bwdif for example")
        layout = layout_of(frame.format.name)
        if layout.bands != layout_of(self.layout).bands:
            raise FilmError(f"changes from {self.layout} to {frame.format.name} {where}")
        if not layout.planar or (layout.gray and layout.alpha):
            layout = layout_of(planar_name(layout))
            frame = frame.reformat(format=layout.name)
        return to_rgb([_plane(plane, layout) for plane in frame.planes], layout, self.colour)


def probe(path: Path) -> Film:
    """What there is to know of a film, without decoding more than its first frame. It is read through, though.

    Raises FilmError, by name, for what is no film, has no video or an unknown codec, is interlaced, mirrored, HDR, or
    without times."""
    av = pyav()
    with opened(path) as container:
        stream = main_stream(container, path)
        context = stream.codec_context
        if context is None:
            raise FilmError("its video is of a codec that FFmpeg does not know")
        if context.field_order in _INTERLACED:
            order = _INTERLACED[context.field_order]
            raise FilmError(f"is interlaced, {order}; deinterlace it first, with FFmpeg's bwdif for example")
        decoder = ""
        if context.name == "vp9" and "1" in (stream.metadata.get(name) for name in ("alpha_mode", "ALPHA_MODE")):
            decoder = "libvpx-vp9"  # FFmpeg's own leaves alpha out
        base, rate = stream.time_base, stream.average_rate or stream.guessed_rate or Fraction(25)
        centred = context.name in ("mjpeg", "mpeg1video")
        rest = float(container.duration or 0) / av.time_base
        begin = float(container.start_time or 0) / av.time_base
        aspect = stream.sample_aspect_ratio or Fraction(1)
        times, entries, end, reached = _times(container, stream, max(round(1 / (rate * base)), 1))
        counted = not entries or (container.format.name == "avi" and context.has_b_frames)
    if not times:
        raise FilmError("has no frame that can be read")
    film = Film(
        path,
        context.width,
        context.height,
        base,
        rate,
        times,
        end,
        context.pix_fmt or "",
        Colour(),
        "",
        decoder=decoder,
    )
    frame = next(film._decoded(times[0], None), None)
    if frame is None:
        raise FilmError(f"no frame of it can be decoded as {context.name}")
    if _is_mirrored(frame):
        raise FilmError("is shown mirrored, which is not kept; mirror its frames first, with FFmpeg's hflip or vflip")
    layout = layout_of(frame.format.name)
    colour = Colour(frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc, centred)
    notes = []
    if reached < begin + rest - max(0.5, 0.02 * rest):
        notes.append(f"truncated: it ends after {reached - begin:.1f} of {rest:.1f} seconds")
    return replace(
        film,
        width=frame.width,
        height=frame.height,
        layout=layout.name,
        colour=understood(colour, layout, frame.width, frame.height),
        identity=file_identity(path),
        rotation=frame.rotation,
        aspect=aspect if aspect > 0 else Fraction(1),
        entries=(0,) if counted else entries,
        counted=counted,
        notes=tuple(notes),
    )


def _is_mirrored(frame: Any) -> bool:
    """Whether the matrix by which a player shows the frame [x, y, 1] does more than turn it."""
    matrix = frame.side_data.get(pyav().sidedata.sidedata.Type.DISPLAYMATRIX)
    if matrix is None:
        return False
    a, b, _, c, d = map(int, np.frombuffer(bytes(matrix), np.int32)[:5])
    return a * d < b * c


def _times(container: Any, stream: Any, step: int) -> tuple[tuple[int, ...], tuple[int, ...], int, float]:
    """When each frame of a stream is shown, those at which decoding can begin, when the last one goes; and the second
    at which the last packet of any stream ends. Where times are lacking, every `step` ticks, and none to begin at."""
    found: list[tuple[int | None, bool, int]] = []
    reached = 0.0
    for packet in packets_of(container):
        time = packet.pts if packet.pts is not None else packet.dts
        if time is not None:
            reached = max(reached, float((time + (packet.duration or 0)) * packet.time_base))
        if packet.stream_index == stream.index and not packet.is_discard:
            found.append((time, packet.is_keyframe, packet.duration or 0))
    if any(time is None for time, _, _ in found):
        return tuple(range(0, step * len(found), step)), (), step * len(found), reached
    shown = sorted((time, is_key, duration) for time, is_key, duration in found if time is not None)
    times = tuple(time for time, _, _ in shown)
    if len(set(times)) < len(times):
        raise FilmError("has several frames of one time; put it anew into its container")
    if not shown:
        return (), (), 0, reached
    last = shown[-1][2] or (times[-1] - times[-2] if len(times) > 1 else step)
    return times, tuple(number for number, (_, is_key, _) in enumerate(shown) if is_key), times[-1] + last, reached


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The file as PyAV's container. Raises FilmError for what is none."""
    av = pyav()
    try:
        container = av.open(url(path), metadata_errors="replace")
    except av.error.FFmpegError as error:
        if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
            raise
        raise FilmError(
            f"is no film that can be read ({error.strerror}); of an mp4 that was cut off, the index is missing"
        ) from error
    with container:
        yield container


def main_stream(container: Any, path: Path) -> Any:
    """The first video stream that is no cover picture. Raises FilmError if there is none."""
    av = pyav()
    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:
            return stream
    kinds = ", ".join(sorted({stream.type for stream in container.streams}))
    raise FilmError(f"has no video{f', only {kinds}' if kinds else ''}")


def packets_of(container: Any, *streams: Any) -> Iterator[Any]:
    """All packets, as far as the file goes."""
    av = pyav()
    try:
        yield from (packet for packet in container.demux(*streams) if packet.size)
    except av.error.FFmpegError:
        return  # cut off or damaged: times say where


def flushed(decoder: Any) -> list[Any]:
    """What a decoder still holds."""
    try:
        frames: list[Any] = decoder.decode(None)
    except pyav().error.FFmpegError:
        return []
    return frames


def _plane(plane: Any, layout: Layout) -> Any:
    """[h, w] samples of a frame's plane, without what fills its lines up."""
    size = 1 if layout.depth <= 8 else 2
    lines = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width * size]
    return np.ascontiguousarray(lines).view(np.uint8 if size == 1 else np.uint16)
