# SPDX-License-Identifier: Apache-2.0
"""Segments: interrupted and taken up, reused tiles, the order of decoding."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from conftest import PROJECT

pytest.importorskip("av", reason="PyAV is not installed")
import films
from films import run
from networks import small

from ditn.inference.tile_loop import TileNetwork
from ditn.inference.upscaler import Upscaler
from ditn.video import stream, work
from ditn.video.colour import Colour
from ditn.video.layout import FilmError
from ditn.video.pictures import Pictures

# What is given to the encoder decides every byte. With rate control x264 reads memory that it never wrote (its
# macroblock tree, by AVX-512).
LOSSLESS = ("--crf", "0")


def noise(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 255, (16, 16, 3)).astype(np.uint8)


def pictures(count: int, **fields) -> Pictures:
    start = {"width": 8, "height": 8, "time_base": Fraction(1, 24), "rate": Fraction(24), "layout": "rgb24"}
    times = {"pts": tuple(range(count)), "end": count, "entries": tuple(range(count))}
    return Pictures(Path("none"), colour=Colour(0, 2), identity="", **(start | times | fields))


def test_segments_begin_where_decoding_can_and_cover_all() -> None:
    for entries in ((0,), tuple(range(0, 1000, 50)), tuple(range(0, 1000, 170)), (0, 3, 999)):
        cut = work.segments(pictures(1000, entries=entries))
        assert [segment.start for segment in cut] == [0, *(segment.stop for segment in cut[:-1])]
        assert cut[-1].stop == 1000
        assert all(1 <= segment.stop - segment.start <= 240 for segment in cut)
        assert all(
            segment.start in entries or segment.start - cut[index - 1].start == 240 for index, segment in enumerate(cut)
        )
    assert [(one.start, one.stop) for one in work.segments(pictures(300, entries=tuple(range(0, 300, 50))))] == [
        (0, 150),
        (150, 300),
    ]


@pytest.mark.parametrize("told", [False, True])
def test_an_interrupted_run_goes_on_and_equals_an_unbroken_one(tmp_path, weights, monkeypatch, capsys, told) -> None:
    """To the byte; and what was done is not done again."""
    monkeypatch.setattr(work, "_SEGMENT", 4)
    source = films.make(tmp_path / "film.mkv", 14, noise, sound="flac", options={"qp": "0", "g": "4"})
    assert run(source, tmp_path / "whole.mkv", weights, *LOSSLESS) == 0
    real, seen = stream.FrameUpscaler.__call__, []

    def dying(self, pixels):
        seen.append(1)
        if len(seen) == 7:
            raise KeyboardInterrupt
        return real(self, pixels)

    monkeypatch.setattr(stream.FrameUpscaler, "__call__", dying)
    broken, report = tmp_path / "broken.mkv", tmp_path / "report.json"
    assert run(source, broken, weights, *LOSSLESS, "--json", str(report)) == 130
    assert "1 of 4 segments are done, --resume goes on" in json.loads(report.read_text())["pictures"][0]["reason"]
    assert not broken.exists()
    assert run(source, broken, weights, *LOSSLESS) == 1
    assert "use --resume or --overwrite" in capsys.readouterr().err
    assert run(source, broken, weights, "--resume", "--crf", "30") == 1
    assert "encoding differ" in capsys.readouterr().err
    # As after a power cut: a file has its name, but nothing in it, be it the part or what is told of it.
    (empty,) = (tmp_path / "broken.mkv.parts").glob("*.mkv")
    (empty.with_suffix(".json") if told else empty).write_bytes(b"")
    seen.clear()
    monkeypatch.setattr(stream.FrameUpscaler, "__call__", lambda self, pixels: (seen.append(1), real(self, pixels))[1])
    with monkeypatch.context() as patched:
        patched.setattr("ditn.commands.film.finish", lambda work: 1 / 0)
        assert run(source, broken, weights, *LOSSLESS, "--resume") == 1
    assert len(seen) == 14
    assert empty.stat().st_size
    assert run(source, broken, weights, *LOSSLESS, "--resume") == 0
    assert len(seen) == 14
    assert broken.read_bytes() == (tmp_path / "whole.mkv").read_bytes()
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".parts") or path.name.startswith(".")]


def test_a_run_that_did_no_segment_leaves_nothing(tmp_path, weights, monkeypatch) -> None:
    source = films.make(tmp_path / "film.mkv", 3, noise)

    def full(self, pixels):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stream.FrameUpscaler, "__call__", full)
    before = set(tmp_path.iterdir())
    assert run(source, tmp_path / "large.mkv", weights) == 1
    assert set(tmp_path.iterdir()) == before


def test_what_stands_still_is_computed_once_and_alike(tmp_path, weights, monkeypatch, capsys) -> None:
    """Frames of which the left part changes: tiles beyond the reach of that are those of the frame before."""

    def moving(number: int) -> np.ndarray:
        frame = np.random.default_rng(7).integers(0, 255, (16, 128, 3)).astype(np.uint8)
        frame[:, :8] = noise(number // 2)[:, :8]
        return frame

    source = films.make(tmp_path / "film.mkv", 6, moving, codec="ffv1", layout="yuv444p")
    assert run(source, tmp_path / "each.mkv", weights, "--tile", "16", *LOSSLESS) == 0
    calls = []
    real = TileNetwork.enlarge
    monkeypatch.setattr(TileNetwork, "enlarge", lambda *given, **named: (calls.append(1), real(*given, **named))[1])
    assert run(source, tmp_path / "once.mkv", weights, "--tile", "16", "--reuse", *LOSSLESS) == 0
    assert (tmp_path / "once.mkv").read_bytes() == (tmp_path / "each.mkv").read_bytes()
    overlap = small().config.overlap
    changing = sum(tile * 16 - overlap < 8 for tile in range(8))
    assert changing < 8
    assert len(calls) == 8 + 2 * changing
    assert f"{48 - len(calls)} of 48 tiles stood still" in capsys.readouterr().err


def test_work_and_segments_can_be_sent_to_other_processes(tmp_path) -> None:
    source = films.make(tmp_path / "film.mkv", 3, noise)
    from ditn.video.film import probe

    film = probe(source)
    again = pickle.loads(pickle.dumps(film))
    assert again == film
    for (_, one), (_, other) in zip(again.frames(1, 3), film.frames(1, 3), strict=True):
        assert np.array_equal(one, other)


def test_any_range_of_frames_is_what_decoding_from_the_beginning_gives(tmp_path) -> None:
    """Also where it begins between key frames, of open groups of pictures, and without an index."""
    from ditn.video.film import probe

    for name, codec, options in (
        ("a.mkv", "libx264", {"qp": "0", "g": "5", "bf": "2", "x264-params": "open-gop=1"}),
        ("b.ts", "libx264", {"qp": "0", "g": "5", "bf": "2"}),
        ("c.mpg", "mpeg2video", {"g": "4", "bf": "2"}),
        ("d.avi", "mpeg4", {"g": "5", "bf": "2"}),
        ("e.ts", "mpeg2video", {"g": "4", "bf": "2"}),
        ("f.ts", "mpeg1video", {"g": "4"}),
        ("g.m2v", "mpeg2video", {"g": "4"}),
    ):
        film = probe(films.make(tmp_path / name, 17, noise, codec=codec, options=options, time_base=1 / films.RATE))
        whole = dict(film.frames(0, film.count))
        assert list(whole) == list(range(17)), name
        for start, stop in ((0, 1), (3, 9), (5, 6), (7, 17), (16, 17)):
            part = dict(film.frames(start, stop))
            assert list(part) == list(range(start, stop)), name
            assert all(np.array_equal(part[number], whole[number]) for number in part), name


def test_an_error_of_either_thread_ends_the_run() -> None:
    def broken():
        yield 1
        raise FilmError("cannot go on")

    with pytest.raises(FilmError, match="cannot go on"), stream.ahead(broken()) as coming:
        list(coming)

    def take(item: int) -> None:
        if item == 3:
            raise OSError("disk full")

    def give(items: range) -> None:
        with stream.behind(take) as put:
            for item in items:
                put(item)

    for items in (range(100), range(3, 4)):
        with pytest.raises(OSError, match="disk full"):
            give(items)


@pytest.mark.slow
def test_a_killed_run_goes_on(tmp_path, weights) -> None:
    """SIGKILL, which no program can answer, in the middle; the result is the unbroken run's."""
    source = films.make(tmp_path / "film.mkv", 600, noise, options={"qp": "0", "g": "100"})
    options = ["--model", weights, "--guard", "off", *LOSSLESS, "-o"]
    command = [sys.executable, "-m", "ditn", "upscale", str(source), *options]
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    killed = subprocess.Popen([*command, str(tmp_path / "large.mkv")], env=environment)
    parts = tmp_path / "large.mkv.parts"
    while not list(parts.glob("0*.mkv")):
        assert killed.poll() is None
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "large.mkv").exists()
    subprocess.run([*command, str(tmp_path / "large.mkv"), "--resume"], env=environment, check=True)
    subprocess.run([*command, str(tmp_path / "whole.mkv")], env=environment, check=True)
    assert (tmp_path / "large.mkv").read_bytes() == (tmp_path / "whole.mkv").read_bytes()
    assert not parts.exists()


@pytest.mark.slow
def test_memory_is_flat_over_2000_frames(tmp_path, weights) -> None:
    """What it takes at frame 2000 is what it took at frame 400, to a few frames."""
    source = films.make(tmp_path / "film.mkv", 2000, noise, options={"qp": "0", "g": "100"})
    taken = []
    real = stream.FrameUpscaler.__call__

    def watched(self, pixels):
        taken.append(psutil.Process().memory_info().rss)
        return real(self, pixels)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream.FrameUpscaler, "__call__", watched)
        assert run(source, tmp_path / "large.mkv", weights) == 0
    assert len(taken) == 2000
    assert np.mean(taken[1800:]) - np.mean(taken[400:600]) < 16 * 2**20


def test_numbered_pictures_are_cut_by_time() -> None:
    part = replace(pictures(48), files=tuple(Path(f"{number}.png") for number in range(48))).cut(0.5, 1)
    assert (part.count, part.skipped, part.origin) == (12, 12, Fraction(1, 2))
    with pytest.raises(FilmError, match="no frame between 5 and 6"):
        pictures(48).cut(5, 6)


def test_frames_that_overlap_on_a_gpu_stay_in_order(monkeypatch) -> None:
    """On a stand-in for CUDA's streams: each of two threads has one, and what fails is told."""
    of_thread: dict[int, object] = {}

    class Stream:
        def __init__(self, device: torch.device) -> None:
            self.waited_for: list[object] = []

        def wait_stream(self, other: object) -> None:
            self.waited_for.append(other)

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: "default")
    monkeypatch.setattr(torch.cuda, "set_stream", lambda one: of_thread.__setitem__(threading.get_ident(), one))
    together = threading.Barrier(2, timeout=10)

    def doubled(number: int) -> int:
        assert of_thread[threading.get_ident()].waited_for == ["default"]
        together.wait()  # two at a time, or neither goes on
        return 2 * number

    gpu = torch.device("cuda", 0)
    assert list(stream.overlapped(doubled, range(6), gpu)) == [0, 2, 4, 6, 8, 10]
    assert len(of_thread) == 2
    with pytest.raises(ZeroDivisionError):
        list(stream.overlapped(lambda number: 1 // (2 - number), range(6), gpu))


def test_two_threads_may_enlarge_frames_at_once() -> None:
    """Neither hands out the other's frame."""
    upscaler = Upscaler(small(), guard="off")
    frames = [np.random.default_rng(seed).integers(0, 256, (16, 24, 3), dtype=np.uint8) for seed in range(12)]
    enlarge = stream.FrameUpscaler(upscaler, upscaler.plan(16, 24), (48, 32))
    with ThreadPoolExecutor(2) as pool:
        for frame, (larger, _) in zip(frames, pool.map(enlarge, frames), strict=True):
            assert np.array_equal(larger, upscaler(frame))
