# SPDX-License-Identifier: Apache-2.0
"""Films through `ditn upscale`: every frame once and in its time, sound in step, colours right."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av", reason="PyAV is not installed")
import av
import films
from PIL import Image

import ditn
from ditn.commands.cli import main

MODEL = "ditn-tiny-x2"


def enlarge(source: Path, output: Path, *options: str) -> Path:
    assert main(["upscale", str(source), "-o", str(output), "--model", MODEL, *options]) == 0
    return output


def test_a_film_comes_back_whole(tmp_path) -> None:
    """Frames in order, their times, the sound to the sample, chapters, attachments and tags; nothing else is left."""
    count = 20
    uneven = [1000 * number + 300 * (number % 3) for number in range(count)]
    source = films.make(tmp_path / "film.mkv", count, pts=uneven, sound="flac", sample_aspect_ratio=Fraction(4, 3))
    output = enlarge(source, tmp_path / "large.mkv")
    assert films.numbers(output) == films.numbers(source) == list(range(count))
    assert films.seconds(output) == films.seconds(source)
    start, samples = films.sound_of(output)
    assert start == 0
    assert np.array_equal(samples, films.clicks(count))
    assert np.flatnonzero(samples > 20000).tolist() == films.click_places(count)
    with av.open(str(output)) as film:
        video = film.streams.video[0]
        assert (video.width, video.height, video.codec_context.name) == (64, 48, "h264")
        assert video.sample_aspect_ratio == Fraction(4, 3)
        assert film.metadata["title"] == "A film"
        assert [chapter["metadata"]["title"] for chapter in film.chapters()] == ["first"]
        assert [bytes(stream.data) for stream in film.streams if stream.type == "attachment"] == [b"a font"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["film.mkv", "large.mkv"]


def test_an_mp4_keeps_its_times_to_the_tick(tmp_path) -> None:
    """Of 1/24000 s, with frames that are decoded in another order than shown, and sound that begins before 0."""
    uneven = [1001 * number + 137 * (number % 3) for number in range(20)]
    source = films.make(tmp_path / "film.mp4", 20, pts=uneven, sound="aac", options={"qp": "0", "bf": "3"})
    output = enlarge(source, tmp_path / "large.mp4")
    assert films.numbers(output) == list(range(20))
    assert films.seconds(output) == [tick * films.TICK for tick in uneven]
    (start, samples), (given_start, given) = films.sound_of(output), films.sound_of(source)
    assert start == given_start
    assert np.array_equal(samples, given)
    with av.open(str(output)) as film, av.open(str(source)) as before:
        assert film.streams.video[0].duration == before.streams.video[0].duration


def test_a_part_of_a_film(tmp_path) -> None:
    """Its frames and its sound from the moment on at which its first frame was shown."""
    source = films.make(tmp_path / "film.mp4", 30, sound="alac")
    output = enlarge(source, tmp_path / "part.mp4", "--time", "0:00.4-0.9")
    inside = [number for number, tick in enumerate(films.times(30)) if 0.4 <= tick * films.TICK < 0.9]
    assert films.numbers(output) == inside
    assert films.seconds(output) == [
        (films.times(30)[number] - films.times(30)[inside[0]]) * films.TICK for number in inside
    ]
    start, samples = films.sound_of(output)
    _, whole = films.sound_of(source)
    first = round(films.times(30)[inside[0]] * films.TICK * films.SOUND)
    assert start == 0
    assert len(samples) > 0.5 * films.SOUND
    assert np.array_equal(samples, whole[first : first + len(samples)])


def test_subtitles_and_covers_are_copied(tmp_path) -> None:
    """Byte by byte, into Matroska, mp4 and back; subtitles only into what holds them."""
    picture = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(picture, "jpeg")
    film = films.enriched(tmp_path / "film.mkv", films.make(tmp_path / "bare.mkv", 6, sound="flac"), picture.getvalue())
    large = enlarge(film, tmp_path / "large.mkv")
    turned = enlarge(film, tmp_path / "large.mp4")
    again = enlarge(turned, tmp_path / "again.mkv")
    for path in (large, turned, again):
        with av.open(str(path)) as output:
            packets = [packet for packet in output.demux() if packet.size and packet.stream.type != "audio"]
            covers = [packet for packet in packets if packet.stream.disposition & av.stream.Disposition.attached_pic]
            assert [bytes(packet) for packet in covers] == [picture.getvalue()]
            lines = [packet for packet in packets if packet.stream.type == "subtitle"]
            if path == large:
                assert [(line.pts, line.duration, bytes(line)) for line in lines] == [
                    (100, 200, b"Hello"),
                    (400, 300, b"World"),
                ]
                assert lines[0].stream.metadata["language"] == "eng"
        assert films.numbers(path) == list(range(6))


# What is written losslessly is compared everywhere; what is not, in the middle of the bars: edges ring.
PAIRS = [
    ("h264", ".mp4", "libx264", "yuv420p", 6, False, "0", True),
    ("hevc", ".mkv", "libx264", "yuv420p10le", 1, False, "0", True),
    ("vp9", ".webm", "libx264", "yuv444p", 1, True, "0", True),
    ("av1", ".mkv", "ffv1", "yuv420p10le", 9, False, "1", False),
    ("ffv1", ".mkv", "ffv1", "yuv422p10le", 5, False, None, True),
    ("prores", ".mov", "libx264", "yuv444p10le", 1, False, None, False),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("codec", "suffix", "given", "layout", "matrix", "full", "crf", "lossless"), PAIRS, ids=[pair[0] for pair in PAIRS]
)
def test_colours_are_those_of_an_independent_path(
    tmp_path, codec: str, suffix: str, given: str, layout: str, matrix: int, full: bool, crf: str | None, lossless: bool
) -> None:
    """The standards' equations in float64 from the source to RGB, the Upscaler, and the same equations back: within 1
    of 255 in every component."""
    container = ".mkv" if given == "ffv1" else ".mp4"
    source = films.make(
        tmp_path / f"film{container}", 5, films.bars, codec=given, layout=layout, matrix=matrix, full=full
    )
    quality = ["--crf", crf] if crf else []
    output = enlarge(source, tmp_path / f"large{suffix}", "--codec", codec, *quality)
    written = films.frames(output)
    assert len(written) == 5
    with av.open(str(output)) as film:
        assert film.streams.video[0].codec_context.colorspace == matrix
        assert film.streams.video[0].codec_context.color_range == (2 if full else 1)
    upscaler = ditn.Upscaler(MODEL, device="cpu")
    for before, after in zip(films.frames(source), written, strict=True):
        assert [part.bits for part in after.format.components] >= [part.bits for part in before.format.components]
        depth = after.format.components[0].bits
        larger = upscaler(films.decoded(before, matrix, full=full).astype(np.float32)).clip(0, 1).astype(float)
        found = films.planes(after)
        y, *chroma = films.coded(larger, matrix, depth, full=full)
        height, width = found[1].shape
        expected = [y, *(films.shared(plane, y.shape[1] // width, y.shape[0] // height) for plane in chroma)]
        for plane, right in zip(found, expected, strict=True):
            side = plane.shape[1] // 8
            off = np.arange(plane.shape[1]) % side
            where = np.full(off.shape, True) if lossless else (off >= 3 * side // 8) & (off < side - 3 * side // 8)
            assert np.abs(plane - right)[:, where].max() * 255 / (2**depth - 1) <= 1
