# SPDX-License-Identifier: Apache-2.0
"""Sound that a container does not take as it is: coded anew without loss, or refused before the work begins."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av", reason="PyAV is not installed")
import av
import films
from films import run

from ditn.video import work

RATE = 44100


def stereo(count: int) -> np.ndarray:
    """[2, count] in -1..1: two tones, and noise."""
    index = np.arange(count)
    tones = np.sin(np.outer([440, 660], index) * 2 * np.pi / RATE)
    return 0.4 * tones + 0.1 * np.random.default_rng(1).uniform(-1, 1, (2, count))


def make(path: Path, codec: str, *, places: list[int] | None = None, video: str = "mpeg4") -> Path:
    """A film of 15 frames at 15 a second with a second of sound; with `places`, fifths of it that begin there."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream(video, rate=15)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
        sound = output.add_stream(codec, rate=RATE, layout="stereo")
        sound.bit_rate = 128_000
        for number in range(15):
            frame = av.VideoFrame.from_ndarray(films.counter(number), "rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 15)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        fifth = RATE // 5
        for number, place in enumerate(places or range(0, RATE, fifth)):
            samples = stereo(RATE)[:, number * fifth : (number + 1) * fifth].astype(np.float32)
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), "fltp", "stereo")
            frame.sample_rate, frame.pts, frame.time_base = RATE, place, Fraction(1, RATE)
            output.mux(sound.encode(frame))
        output.mux(sound.encode(None))
    return path


def heard(path: Path) -> tuple[float, str, np.ndarray]:
    """When the sound begins, its codec, and all samples [channels, n] in -1..1, as PyAV decodes them."""
    with av.open(str(path)) as film:
        frames = list(film.decode(film.streams.audio[0]))
        parts = []
        for frame in frames:
            samples = frame.to_ndarray()
            samples = samples if frame.format.is_planar else samples.reshape(frame.samples, -1).T
            whole = 1 if samples.dtype.kind == "f" else 2.0 ** (8 * samples.itemsize - 1)
            parts.append((samples.astype(float) - (whole if samples.dtype == np.uint8 else 0)) / whole)
        name = film.streams.audio[0].codec_context.name
        return float(frames[0].pts * frames[0].time_base), name, np.concatenate(parts, 1)


@pytest.mark.parametrize(
    ("given", "codec", "suffix", "coder", "bits"),
    [
        (".avi", "adpcm_ms", ".mkv", "flac", 16),
        (".avi", "adpcm_ms", ".mov", "alac", 16),
        (".avi", "pcm_u8", ".mp4", "flac", 16),
        (".mov", "pcm_alaw", ".mp4", "flac", 16),
        (".mkv", "flac", ".mov", "alac", 16),
        (".mkv", "pcm_f32le", ".mp4", "flac", 24),
        (".wmv", "wmav2", ".mkv", "flac", 24),
        (".wmv", "wmav2", ".mov", "alac", 24),
    ],
)
def test_sound_that_does_not_go_in_is_coded_anew(
    tmp_path, weights, capsys, given: str, codec: str, suffix: str, coder: str, bits: int
) -> None:
    """Every sample is the source's, and begins when it did: the two, decoded by PyAV, side by side."""
    source = make(tmp_path / f"film{given}", codec, video="wmv2" if given == ".wmv" else "mpeg4")
    output, report = tmp_path / f"large{suffix}", tmp_path / "report.json"
    assert run(source, output, weights, "--json", str(report)) == 0
    note = f"({codec}), does not go into the {suffix[1:]} as it is: it is coded anew, as {coder.upper()} of {bits} bits"
    assert note in capsys.readouterr().err
    assert note in json.loads(report.read_text())["pictures"][0]["notes"][0]
    (start, _, before), (begin, name, after) = heard(source), heard(output)
    assert name == coder
    assert abs(begin - start) <= 0.0011  # Matroska's millisecond, or that of mov's edit lists
    assert before.shape == after.shape
    assert np.abs(before - after).max() <= (0 if bits == 16 else 2.0**-23)
    assert len(films.frames(output)) == 15


def test_of_a_part_exactly_its_sound(tmp_path, weights) -> None:
    source = make(tmp_path / "film.avi", "adpcm_ms")
    assert run(source, tmp_path / "part.mov", weights, "--time", "0.2-0.7") == 0
    _, _, before = heard(source)
    start, _, after = heard(tmp_path / "part.mov")
    first, last = 3 * RATE // 15, 11 * RATE // 15  # frames 3 to 10
    assert start == 0
    np.testing.assert_array_equal(after, before[:, first:last])


@pytest.mark.parametrize(("suffix", "codec"), [(".mp4", "pcm_f32le"), (".mov", "flac")])
def test_a_part_without_sound(tmp_path, weights, suffix: str, codec: str) -> None:
    source = make(tmp_path / "film.mkv", codec, places=[0])
    assert run(source, tmp_path / f"part{suffix}", weights, "--time", "0.4-0.8") == 0
    assert len(films.frames(tmp_path / f"part{suffix}")) == 6
    with av.open(str(tmp_path / f"part{suffix}")) as film:
        assert sum(packet.size for stream in film.streams.audio for packet in film.demux(stream)) == 0


def test_gaps_are_silent_and_what_comes_twice_is_left_out(tmp_path, weights) -> None:
    """Fifths of a second: one is late by as much, of the next the first three quarters were heard, and the one after
    that is later by no more than rounding makes it."""
    fifth = RATE // 5
    places = [0, 2 * fifth, 9 * fifth // 4, 13 * fifth // 4 + 88, 17 * fifth // 4]
    assert run(make(tmp_path / "film.mkv", "pcm_f32le", places=places), tmp_path / "large.mp4", weights) == 0
    one, two, three, four, five = stereo(RATE).reshape(2, 5, fifth).swapaxes(0, 1)
    expected = np.concatenate([one, 0 * one, two, three[:, 3 * fifth // 4 :], four, five], 1)
    start, _, after = heard(tmp_path / "large.mp4")
    assert start == 0
    assert after.shape == expected.shape
    assert np.abs(after - expected).max() <= 2.0**-22


def test_sound_that_cannot_be_kept_is_refused_before_the_work(tmp_path, weights, monkeypatch, capsys) -> None:
    monkeypatch.setattr(work, "enlarge_segment", lambda *_: pytest.fail("has begun"))
    assert run(make(tmp_path / "film.avi", "adpcm_ms"), tmp_path / "large.webm", weights) == 1
    assert "its stream 1, audio (adpcm_ms), does not go into .webm; write .mkv" in capsys.readouterr().err
    source = make(tmp_path / "some film.mkv", "flac")
    source.write_bytes(source.read_bytes().replace(b"A_FLAC", b"A_FLOG"))
    for suffix in (".mkv", ".mov", ".webm"):
        assert run(source, tmp_path / f"large{suffix}", weights) == 1
        said = capsys.readouterr().err
        assert "its stream 1, audio, can be neither copied nor decoded; leave it out, with ffmpeg -i" in said
        assert "'some film.mkv' -map 0 -map -0:1 -c copy rest.mkv" in said
    assert not list(tmp_path.glob("large*"))
