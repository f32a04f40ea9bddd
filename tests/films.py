# SPDX-License-Identifier: Apache-2.0
"""Films made in tests, what comes out of films, by PyAV alone, and `ditn upscale` on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from ditn.commands.cli import main

RATE, TICK = Fraction(24000, 1001), Fraction(1, 24000)
SOUND = 48000
SIZE = 32, 24
# White, yellow, cyan, green, magenta, red, blue, black, at three quarters of their light.
BARS = np.array(
    [[191, 191, 191], [191, 191, 0], [0, 191, 191], [0, 191, 0], [191, 0, 191], [191, 0, 0], [0, 0, 191], [16, 16, 16]]
)


def run(source: Path, output: Path, weights: str, *options: str) -> int:
    """`ditn upscale` without the guard, which would repair what weights at random make. Its exit code."""
    return main(["upscale", str(source), "-o", str(output), "--model", weights, "--guard", "off", *options])


def counter(number: int) -> np.ndarray:
    """A frame [24, 32, 3] with its number in eight bars, the lowest bit first."""
    bits = [255 * (number >> bit & 1) for bit in range(8)]
    return np.broadcast_to(np.repeat(bits, 4)[None, :, None], (24, 32, 3)).astype(np.uint8)


def bars(number: int) -> np.ndarray:
    """A frame [24, 64, 3] of colour bars, one bar further each time."""
    return np.broadcast_to(np.repeat(np.roll(BARS, number, 0), 8, 0)[None], (24, 64, 3)).astype(np.uint8)


def times(count: int) -> list[int]:
    return [round(number / RATE / TICK) for number in range(count)]


def clicks(count: int) -> np.ndarray:
    """Sound for so many frames: a soft tone, and a click of one sample where every fifth frame begins."""
    index = np.arange(int(count / RATE * SOUND))
    sound = (np.sin(index * 2 * np.pi * 440 / SOUND) * 2000).astype(np.int16)
    sound[click_places(count)] = 30000
    return sound


def click_places(count: int) -> list[int]:
    return [round(number / RATE * SOUND) for number in range(0, count, 5)]


def make(
    path: Path,
    count: int,
    frame: Callable[[int], np.ndarray] = counter,
    *,
    codec: str = "libx264",
    layout: str = "yuv420p",
    pts: Sequence[int] | None = None,
    sound: str | None = None,
    matrix: int = 6,
    full: bool = False,
    options: dict[str, str] | None = None,
    rotation: int = 0,
    **context: Any,
) -> Path:
    """A film of `count` frames, with `clicks` for sound if that names a codec. Without other options it is lossless."""
    options = {"libx264": {"qp": "0", "g": "6"}, "ffv1": {}}.get(codec, {}) if options is None else options
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=RATE, options=options)
        first = frame(0)
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = layout
        stream.codec_context.time_base = TICK
        stream.codec_context.colorspace = matrix
        stream.codec_context.color_range = 2 if full else 1
        for name, value in context.items():
            setattr(stream.codec_context, name, value)
        if rotation:
            stream.set_display_rotation(rotation)
        audio = output.add_stream(sound, rate=SOUND, layout="mono") if sound else None
        if path.suffix == ".mkv":
            output.add_attachment("font.ttf", "application/x-truetype-font", b"a font")
        output.set_chapters(
            [{"id": 1, "start": 0, "end": 400, "time_base": Fraction(1, 1000), "metadata": {"title": "first"}}]
        )
        output.metadata["title"] = "A film"
        for number, tick in enumerate(pts or times(count)):
            pixels = frame(number)
            made = av.VideoFrame.from_ndarray(pixels, "rgba" if pixels.shape[2] == 4 else "rgb24").reformat(
                format=layout, dst_colorspace=matrix, dst_color_range=2 if full else 1, interpolation="BICUBIC"
            )
            made.pts, made.time_base = tick, TICK
            output.mux(stream.encode(made))
        output.mux(stream.encode(None))
        if audio:
            whole = av.AudioFrame.from_ndarray(clicks(count)[None], format="s16", layout="mono")
            whole.sample_rate, whole.pts, whole.time_base = SOUND, 0, Fraction(1, SOUND)
            fifo = av.AudioFifo()
            for part in av.AudioResampler(format=audio.codec_context.format, layout="mono", rate=SOUND).resample(whole):
                fifo.write(part)
            while (part := fifo.read(audio.codec_context.frame_size or 1024, partial=True)) is not None:
                output.mux(audio.encode(part))
            output.mux(audio.encode(None))
    return path


def enriched(path: Path, source: Path, cover: bytes) -> Path:
    """The streams of a film, subtitles in two lines and a cover, in Matroska."""
    subtitles = path.with_suffix(".srt")
    subtitles.write_text("1\n00:00:00,100 --> 00:00:00,300\nHello\n\n2\n00:00:00,400 --> 00:00:00,700\nWorld\n")
    with av.open(str(source)) as given, av.open(str(subtitles)) as lines, av.open(str(path), "w") as output:
        copies = {
            one.index: output.add_stream_from_template(one, opaque=True)
            for one in given.streams
            if one.type != "attachment"
        }
        text = output.add_stream_from_template(lines.streams[0], opaque=True)
        text.metadata["language"] = "eng"
        output.add_attachment("cover.jpg", "image/jpeg", cover)
        for container, streams in ((lines, {0: text}), (given, copies)):
            for packet in container.demux():
                if packet.size:
                    packet.stream = streams[packet.stream_index]
                    output.mux(packet)
    return path


def frames(path: Path, decoder: str = "") -> list[av.VideoFrame]:
    with av.open(str(path)) as film:
        stream = film.streams.video[0]
        if not decoder:
            return list(film.decode(stream))
        context = av.CodecContext.create(decoder, "r")
        return [frame for packet in film.demux(stream) for frame in context.decode(packet)]


def seconds(path: Path) -> list[Fraction]:
    """When each frame is shown."""
    return [frame.pts * frame.time_base for frame in frames(path)]


def planes(frame: av.VideoFrame) -> list[np.ndarray]:
    """The samples of a planar frame as they are, [h, w] each."""
    size = 1 if frame.format.components[0].bits == 8 else 2
    lines = [np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size) for plane in frame.planes]
    return [
        line[:, : plane.width * size].copy().view(np.uint8 if size == 1 else "<u2")
        for line, plane in zip(lines, frame.planes, strict=True)
    ]


# R' G' B' -> Y' of BT.601, BT.709 and BT.2020, as printed there, by their code points in H.273.
LUMA = {
    5: (0.299, 0.587, 0.114),
    6: (0.299, 0.587, 0.114),
    1: (0.2126, 0.7152, 0.0722),
    9: (0.2627, 0.678, 0.0593),
}


def coded(rgb: np.ndarray, matrix: int, depth: int, *, full: bool) -> list[np.ndarray]:
    """Y, Cb, Cr of 4:4:4 in float64, not rounded, of [H, W, 3] in 0..1, by the equations of BT.709-6, part 3; those of
    BT.601 and BT.2020 are alike."""
    red, _, blue = np.moveaxis(rgb, -1, 0)
    y = np.tensordot(rgb, LUMA[matrix], 1)
    cb, cr = (blue - y) / (2 - 2 * LUMA[matrix][2]), (red - y) / (2 - 2 * LUMA[matrix][0])
    if full:
        return [y * (2**depth - 1), *(c * (2**depth - 1) + 2 ** (depth - 1) for c in (cb, cr))]
    step = 2 ** (depth - 8)
    return [(219 * y + 16) * step, *((224 * c + 128) * step for c in (cb, cr))]


def shared(chroma: np.ndarray, across: int, down: int) -> np.ndarray:
    """Chroma of 4:4:4 for 4:2:2 and 4:2:0: 1 2 1 around every second column, on which it lies; the mean of two rows."""
    if across == 2:
        wide = np.pad(chroma, ((0, 0), (1, 1)), mode="edge")
        chroma = (wide[:, :-2] + 2 * wide[:, 1:-1] + wide[:, 2:])[:, ::2] / 4
    return (chroma[::2] + chroma[1::2]) / 2 if down == 2 else chroma


def decoded(frame: av.VideoFrame, matrix: int, *, full: bool) -> np.ndarray:
    """A frame as RGB [H, W, 3] in 0..1, float64, clamped: chroma by linear interpolation, and the equations solved."""
    y, *chroma = (plane.astype(float) for plane in planes(frame))
    depth, (height, width) = frame.format.components[0].bits, y.shape
    for index, plane in enumerate(chroma):
        across, down = width // plane.shape[1], height // plane.shape[0]
        rows = (np.arange(height) - (down - 1) / 2) / down
        plane = np.stack([np.interp(rows, np.arange(len(plane)), column) for column in plane.T], 1)
        columns = np.arange(width) / across
        chroma[index] = np.stack([np.interp(columns, np.arange(plane.shape[1]), row) for row in plane])
    black = np.array(coded(np.zeros((1, 1, 3)), matrix, depth, full=full))[:, 0, 0]
    unit = np.array(coded(np.eye(3)[None], matrix, depth, full=full))[:, 0] - black[:, None]
    solved = np.linalg.solve(unit, (np.stack([y, *chroma], -1) - black)[..., None])[..., 0]
    return solved.clip(0, 1)


def numbers(path: Path) -> list[int]:
    """What the bars of every frame say."""
    found = []
    for frame in frames(path):
        gray = frame.reformat(format="gray").to_ndarray()
        side = gray.shape[1] // 8
        means = [gray[:, bit * side + side // 4 : (bit + 1) * side - side // 4].mean() for bit in range(8)]
        found.append(sum(int(mean > 127) << bit for bit, mean in enumerate(means)))
    return found


def sound_of(path: Path) -> tuple[Fraction, np.ndarray]:
    """When the sound begins and all of its samples."""
    with av.open(str(path)) as film:
        parts = list(film.decode(film.streams.audio[0]))
        return parts[0].pts * parts[0].time_base, np.concatenate([part.to_ndarray()[0] for part in parts])
