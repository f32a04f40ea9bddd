# SPDX-License-Identifier: Apache-2.0
"""Films that are turned, transparent, damaged, or not to be enlarged: kept, or refused by name."""

from __future__ import annotations

import os
import resource
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import PROJECT

pytest.importorskip("av", reason="PyAV is not installed")
import av
import films
from films import run
from networks import small

import ditn
from ditn.video.encoding import choose
from ditn.video.film import probe
from ditn.video.layout import FilmError


def test_a_turned_film_stays_turned_and_its_pictures_are_upright(tmp_path, weights) -> None:
    source = films.make(tmp_path / "film.mp4", 3, rotation=90)
    for name in ("large.mp4", "large.mkv", "large.mov"):
        assert run(source, tmp_path / name, weights) == 0
        frame = films.frames(tmp_path / name)[0]
        assert (frame.rotation, frame.width, frame.height) == (90, 64, 48)
    (tmp_path / "frames").mkdir()
    assert run(source, tmp_path / "frames" / "%03d.png", weights, "--model", "ditn-tiny-x2") == 0
    assert sorted(path.name for path in (tmp_path / "frames").iterdir()) == ["001.png", "002.png", "003.png"]
    from PIL import Image

    with Image.open(tmp_path / "frames" / "002.png") as picture:
        pixels = np.asarray(picture.convert("L")).astype(int)
    # Number 1: the left eighth is white, and a quarter turn counter-clockwise puts that at the bottom.
    assert pixels.shape == (64, 48)
    assert pixels[-4:].mean() > 200
    assert pixels[:48].mean() < 50


@pytest.mark.parametrize("matrix", [(-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0)], ids=str)
def test_a_mirrored_film_is_refused(tmp_path, weights, capsys, matrix: tuple[int, ...]) -> None:
    """By the matrix of its track, ISO/IEC 14496-12, 8.3.2: a quarter turn is no mirror."""
    source = films.make(tmp_path / "film.mp4", 2)
    data = bytearray(source.read_bytes())
    place = data.index(b"tkhd") + 44

    def shown_by(a: int, b: int, c: int, d: int) -> Path:
        one = 1 << 16
        data[place : place + 36] = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
        source.write_bytes(data)
        return source

    assert run(shown_by(*matrix), tmp_path / "large.mp4", weights) == 1
    assert "is shown mirrored" in capsys.readouterr().err
    assert run(shown_by(0, -1, 1, 0), tmp_path / "large.mp4", weights) == 0


def transparent(number: int) -> np.ndarray:
    frame = np.full((24, 32, 4), 255, np.uint8)
    frame[:, :16] = [200, 30, 90, 64]
    return frame


@pytest.mark.parametrize(
    ("suffix", "decoder", "tolerance"), [(".webm", "libvpx-vp9", 6), (".mkv", "libvpx-vp9", 6), (".mov", "", 6)]
)
def test_transparency_is_kept(tmp_path, suffix: str, decoder: str, tolerance: int) -> None:
    """By VP9 and ProRes, which lose a little; read again by FFmpeg."""
    source = films.make(tmp_path / "film.mkv", 3, transparent, codec="ffv1", layout="yuva444p")
    assert run(source, tmp_path / f"large{suffix}", "ditn-tiny-x2") == 0
    frames = films.frames(tmp_path / f"large{suffix}", decoder)
    assert len(frames) == 3
    alpha = frames[0].reformat(format="rgba").to_ndarray()[..., 3].astype(int)
    assert np.abs(alpha[:, 4:28] - 64).max() <= tolerance
    assert np.abs(alpha[:, 36:60] - 255).max() <= tolerance
    film = probe(tmp_path / f"large{suffix}")
    assert next(film.frames(0, 1))[1].shape == (48, 64, 4)


@pytest.mark.parametrize(
    ("suffix", "codec", "by"),
    [
        (".mkv", ["--codec", "h264"], "h264"),
        (".mp4", [], ".mp4"),
        (".mp4", ["--codec", "vp9"], ".mp4"),
        (".m4v", [], ".m4v"),
    ],
)
def test_transparency_that_would_be_lost_is_refused(
    tmp_path, weights, capsys, suffix: str, codec: list, by: str
) -> None:
    source = films.make(tmp_path / "film.mkv", 2, transparent, codec="ffv1", layout="yuva444p")
    assert run(source, tmp_path / f"large{suffix}", weights, *codec) == 1
    assert f"has transparency, which {by} does not keep; use --codec ffv1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("suffix", "fields", "message"),
    [
        (".mkv", {"options": {"x264-params": "tff=1"}}, "is interlaced, top field first; deinterlace it first"),
        (".mp4", {"options": {"x264-params": "bff=1"}}, "is interlaced, bottom field first"),
        (".mkv", {"color_trc": 16, "layout": "yuv420p10le"}, r"is HDR10 \(PQ\)"),
        (".mkv", {"color_trc": 18, "layout": "yuv420p10le"}, "is HLG"),
    ],
)
def test_what_is_not_enlarged_is_named(tmp_path, suffix: str, fields: dict, message: str) -> None:
    with pytest.raises(FilmError, match=message):
        probe(films.make(tmp_path / f"film{suffix}", 3, **fields))


@pytest.mark.parametrize(("suffix", "codec"), [(".ts", "mpeg2video"), (".m2ts", "mpeg1video"), (".m2v", "mpeg2video")])
def test_no_frame_of_a_stream_without_an_index_is_lost(tmp_path, monkeypatch, suffix: str, codec: str) -> None:
    """Not the first, before which a seek finds nothing, and none of a film that cannot be sought in at all: all that
    PyAV decodes, in its order, whole and of a part."""

    def noisy(number: int) -> np.ndarray:
        return films.counter(number) // 4 * 3 + np.random.default_rng(number).integers(0, 60, (24, 32, 3), np.uint8)

    monkeypatch.setattr("ditn.video.work._SEGMENT", 4)
    options = {"g": "5", "bf": "2"}
    source = films.make(tmp_path / f"film{suffix}", 14, noisy, codec=codec, options=options, time_base=1 / films.RATE)
    assert films.numbers(source) == list(range(14))
    assert run(source, tmp_path / "large.mkv", "ditn-tiny-x2") == 0
    assert films.numbers(tmp_path / "large.mkv") == list(range(14))
    assert run(source, tmp_path / "part.mkv", "ditn-tiny-x2", "--time", "0.2-0.4") == 0
    assert films.numbers(tmp_path / "part.mkv") == [5, 6, 7, 8, 9]


def test_a_file_without_video(tmp_path, weights, capsys) -> None:
    with av.open(str(tmp_path / "sound.mkv"), "w") as output:
        stream = output.add_stream("flac", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4608), np.int16), format="s16", layout="mono")
        frame.sample_rate, frame.pts = 48000, 0
        output.mux([*stream.encode(frame), *stream.encode(None)])
    assert run(tmp_path / "sound.mkv", tmp_path / "large.mkv", weights) == 1
    assert "has no video, only audio" in capsys.readouterr().err
    (tmp_path / "text.mkv").write_text("no film")
    assert run(tmp_path / "text.mkv", tmp_path / "large.mkv", weights) == 1
    assert "is no film that can be read" in capsys.readouterr().err
    assert not (tmp_path / "large.mkv").exists()


def test_an_unknown_codec(tmp_path, weights, capsys) -> None:
    source = films.make(tmp_path / "film.mkv", 3)
    source.write_bytes(source.read_bytes().replace(b"V_MPEG4/ISO/AVC", b"V_MPEG9/ISO/XYZ"))
    assert run(source, tmp_path / "large.mkv", weights) == 1
    assert "of a codec that FFmpeg does not know" in capsys.readouterr().err


def test_a_size_that_changes(tmp_path, weights, capsys) -> None:
    """A transport stream may: two films one after the other."""
    one = films.make(tmp_path / "one.ts", 6)
    later = [tick + 24000 for tick in films.times(6)]
    other = films.make(tmp_path / "other.ts", 6, lambda number: np.zeros((48, 64, 3), np.uint8), pts=later)
    (tmp_path / "both.ts").write_bytes(one.read_bytes() + other.read_bytes())
    assert run(tmp_path / "both.ts", tmp_path / "large.mkv", weights) == 1
    assert "changes from 32x24 to 64x48 pixels at 1.0" in capsys.readouterr().err
    assert not list(tmp_path.glob("large*"))


@pytest.mark.parametrize(("suffix", "share"), [(".mkv", 0.6), (".mp4", 0.9), (".ts", 0.5)])
def test_a_truncated_film_is_done_as_far_as_it_goes(tmp_path, weights, capsys, suffix: str, share: float) -> None:
    def noise(number: int) -> np.ndarray:
        return np.random.default_rng(number).integers(0, 255, (24, 32, 3)).astype(np.uint8)

    options = {"qp": "0", "g": "6"}
    whole = films.make(tmp_path / f"film{suffix}", 48, noise, options=options)
    data = whole.read_bytes()
    whole.write_bytes(data[: int(share * len(data))])
    done = run(whole, tmp_path / "large.mkv", weights)
    said = capsys.readouterr().err
    if suffix == ".mp4":  # its index stands at the end
        assert done == 1
        assert "of an mp4 that was cut off, the index is missing" in said
        assert not list(tmp_path.glob("large*"))
        return
    assert done == 0
    if suffix == ".mkv":  # a transport stream does not say how long it is
        assert "truncated: it ends after" in said
    assert 0.3 * 48 < len(films.frames(tmp_path / "large.mkv")) < 0.8 * 48
    assert films.seconds(tmp_path / "large.mkv")[5] - films.seconds(tmp_path / "large.mkv")[0] > 0


def test_frames_that_cannot_be_decoded_are_counted_and_the_others_keep_their_times(tmp_path, weights, capsys) -> None:
    source = films.make(tmp_path / "film.mkv", 12, codec="mpeg4", options={"g": "1"})
    with av.open(str(source)) as film:
        broken = [packet for packet in film.demux(film.streams.video[0]) if packet.size][4:6]
        data = bytearray(source.read_bytes())
        for packet in broken:
            place = data.index(bytes(packet))
            data[place : place + packet.size] = bytes(packet.size)
    source.write_bytes(data)
    assert run(source, tmp_path / "large.mkv", weights) == 0
    assert "2 of 12 frames could not be decoded and are missing" in capsys.readouterr().err
    whole = films.seconds(films.make(tmp_path / "whole.mkv", 12))
    assert films.seconds(tmp_path / "large.mkv") == whole[:4] + whole[6:]
    # Among pictures, too, those of an earlier run are not taken for this one's.
    assert run(tmp_path / "whole.mkv", tmp_path / "out" / "%d.png", weights) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert run(source, tmp_path / "out" / "%d.png", weights, "--overwrite") == 0
    said = capsys.readouterr().err
    assert "2 of 12 frames could not be decoded and are missing" in said
    assert "2 of their numbers still have the pictures of an earlier run" in said
    after = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert all(before[name] == after[name] for name in ("5.png", "6.png"))


def test_a_folder_of_someone_else_is_left_alone(tmp_path, weights, capsys) -> None:
    source = films.make(tmp_path / "film.mkv", 2)
    (tmp_path / "large.mkv.parts").mkdir()
    (tmp_path / "large.mkv.parts" / "letter.txt").write_text("mine")
    assert run(source, tmp_path / "large.mkv", weights, "--overwrite") == 1
    assert "no run made it" in capsys.readouterr().err
    assert (tmp_path / "large.mkv.parts" / "letter.txt").read_text() == "mine"


@pytest.mark.slow
def test_a_full_disk(tmp_path) -> None:
    """Files end at 30 kB: the film does not fit. That is said, and nothing has its name."""
    ditn.save(small(), tmp_path / "small.safetensors")
    rng = np.random.default_rng(1)
    source = films.make(tmp_path / "film.mkv", 12, lambda _: rng.integers(0, 255, (24, 32, 3)).astype(np.uint8))
    limit = 30_000
    command = [*(sys.executable, "-m", "ditn", "upscale", str(source), "-o", str(tmp_path / "large.mkv")), "--crf", "0"]
    command += ["--model", str(tmp_path / "small.safetensors"), "--guard", "off"]
    done = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert not list(tmp_path.glob("large*"))


def test_without_pyav_the_message_names_what_to_install(tmp_path, weights, monkeypatch, capsys) -> None:
    source = films.make(tmp_path / "film.mkv", 2)
    monkeypatch.setitem(sys.modules, "av", None)
    assert run(source, tmp_path / "large.mkv", weights) == 1
    assert "pip install 'ditn-kernels[video]'" in capsys.readouterr().err


def test_codecs_and_formats_are_chosen_after_the_source(tmp_path) -> None:
    def chosen(suffix: str, given: str, **asked) -> tuple[str, str]:
        path = tmp_path / f"{given}.mkv"
        if not path.exists():
            films.make(path, 1, transparent if "a4" in given else films.counter, codec="ffv1", layout=given)
        made = choose(probe(path), suffix, 64, 48, **asked)
        return made.codec, made.layout

    assert chosen(".mkv", "yuv420p") == ("h264", "yuv420p")
    assert chosen(".mp4", "yuv420p10le") == ("hevc", "yuv420p10le")
    assert chosen(".webm", "yuv420p") == ("vp9", "yuv420p")
    assert chosen(".webm", "yuv422p10le") == ("av1", "yuv420p10le")
    assert chosen(".mp4", "yuv444p") == ("h264", "yuv444p")
    assert chosen(".mp4", "bgr0") == ("h264", "yuv420p")
    assert chosen(".mov", "yuv420p", layout="yuv420p10le") == ("h264", "yuv420p10le")
    assert chosen(".webm", "yuva420p") == ("vp9", "yuva420p")
    assert chosen(".mov", "yuva444p") == ("prores", "yuva444p10le")
    with pytest.raises(FilmError, match="h264 has no pixel format yuv411p"):
        choose(probe(tmp_path / "yuv420p.mkv"), ".mkv", 64, 48, codec="h264", layout="yuv411p")
    with pytest.raises(FilmError, match="65x48 pixels do not go into yuv420p"):
        choose(probe(tmp_path / "yuv420p.mkv"), ".mkv", 65, 48, layout="yuv420p")
    assert choose(probe(tmp_path / "yuv420p.mkv"), ".mkv", 65, 48).layout == "yuv444p"
    with pytest.raises(FilmError, match="codec mpeg9 is unknown"):
        choose(probe(tmp_path / "yuv420p.mkv"), ".mkv", 64, 48, codec="mpeg9")
    with pytest.raises(FilmError, match=r"ffv1 does not go into \.mp4"):
        choose(probe(tmp_path / "yuv420p.mkv"), ".mp4", 64, 48, codec="ffv1")
