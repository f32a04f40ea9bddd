# SPDX-License-Identifier: Apache-2.0
"""Numbered pictures and animations, in and out."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import films
import numpy as np
import pytest
from films import run
from networks import small, without_guard
from PIL import Image

from ditn.commands.arguments import _rate, _span
from ditn.video.layout import FilmError
from ditn.video.pictures import animation, is_animated, name_of, numbered, pictures

DURATIONS = [40, 100, 30, 40, 200]


# A random network's output is no enlargement; that of alpha is repaired all the same, which is warned about.
pytestmark = pytest.mark.filterwarnings("ignore:in places the network:RuntimeWarning")


def frame(number: int, *, alpha: bool = False) -> np.ndarray:
    pixels = np.random.default_rng(number).integers(0, 255, (8, 12, 4)).astype(np.uint8)
    pixels[..., 3] = np.where(np.arange(12) < 6, 0, 255) if alpha else 255
    return pixels if alpha else pixels[..., :3]


def animated(path: Path, *, alpha: bool = False, loop: int = 3) -> Path:
    images = [Image.fromarray(frame(number, alpha=alpha)) for number in range(len(DURATIONS))]
    options = {"lossless": True} if path.suffix == ".webp" else {}
    images[0].save(path, save_all=True, append_images=images[1:], duration=DURATIONS, loop=loop, **options)
    return path


def read(path: Path) -> tuple[list[np.ndarray], list[int], int | None]:
    """Frames as RGBA, how long each is shown, loops."""
    with Image.open(path) as image:
        found, times = [], []
        for number in range(image.n_frames):
            image.seek(number)
            found.append(np.asarray(image.convert("RGBA")))
            times.append(round(image.info["duration"]))
        return found, times, image.info.get("loop")


@pytest.mark.parametrize("alpha", [False, True], ids=["opaque", "alpha"])
def test_an_animated_png_is_enlarged_frame_by_frame(tmp_path, weights, alpha: bool) -> None:
    """Exactly what the Upscaler makes of each frame, with its time, and as often."""
    source = animated(tmp_path / "a.png", alpha=alpha)
    assert run(source, tmp_path / "large.png", weights) == 0
    upscaler = without_guard(small())
    found, times, loop = read(tmp_path / "large.png")
    assert (times, loop) == (DURATIONS, 3)
    for number, pixels in enumerate(found):
        expected = upscaler(frame(number, alpha=alpha))
        visible = pixels[..., 3] > 0
        assert np.array_equal(pixels[visible][:, : expected.shape[2]], expected[visible])


@pytest.mark.parametrize("target", ["large.webp", "%d.webp"])
def test_an_animated_webp_that_loses_nothing_stays_so(tmp_path, weights, target: str) -> None:
    source = animated(tmp_path / "a.webp", alpha=True)
    assert run(source, tmp_path / target, weights) == 0
    first = tmp_path / target.replace("%d", "1")
    pixels = read(first)[0][0]
    expected = without_guard(small())(frame(0, alpha=True))
    visible = expected[..., 3] > 0
    np.testing.assert_array_equal(pixels[visible], expected[visible])
    # Asked for, it loses.
    assert run(source, tmp_path / target, weights, "--quality", "80", "--overwrite") == 0
    assert not np.array_equal(read(first)[0][0][visible], expected[visible])


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
@pytest.mark.parametrize("given", [".gif", ".webp"])
def test_gif_and_webp_keep_frames_times_and_loops(tmp_path, given: str, suffix: str) -> None:
    bars = [Image.fromarray(films.bars(number)) for number in range(5)]
    source = tmp_path / f"a{given}"
    bars[0].save(source, save_all=True, append_images=bars[1:], duration=DURATIONS, loop=0)
    assert run(source, tmp_path / f"large{suffix}", "ditn-tiny-x2") == 0
    found, times, loop = read(tmp_path / f"large{suffix}")
    assert (times, loop) == (DURATIONS, 0)
    for number, pixels in enumerate(found):
        assert pixels.shape == (48, 128, 4)
        middles = np.roll(films.BARS, number, 0)
        # Palettes of 256 colours and lossy WebP stay this near in the middle of a bar.
        assert np.abs(pixels[24, 8::16, :3].astype(int) - middles).max() <= 24


def test_soft_edges_are_halved_in_gif(tmp_path, weights) -> None:
    """GIF has visible pixels and others: those that cover less than half are not seen, instead of seen in full."""
    source = animated(tmp_path / "a.png", alpha=True)
    assert run(source, tmp_path / "large.gif", weights) == 0
    found, *_ = read(tmp_path / "large.gif")
    assert len(found) == len(DURATIONS)
    for number, pixels in enumerate(found):
        covered = without_guard(small())(frame(number, alpha=True))[..., 3] / 255
        assert ((covered > 0) & (covered < 0.5)).any()
        np.testing.assert_array_equal(pixels[..., 3], np.where(covered > 0.5, 255, 0))


@pytest.mark.parametrize("blend", [0, 1], ids=["source", "over"])
def test_a_picture_for_those_who_show_no_animations_is_no_frame(tmp_path, weights, blend: int) -> None:
    """The default image of an APNG without a frame of its own, of which nothing shines through the first frame."""
    images = [Image.fromarray(frame(number, alpha=number > 0)) for number in range(3)]
    images[0].convert("RGBA").save(
        tmp_path / "a.png", save_all=True, append_images=images[1:], duration=[40, 70], default_image=True, blend=blend
    )
    assert run(tmp_path / "a.png", tmp_path / "large.webp", weights, "--quality", "100") == 0
    assert read(tmp_path / "large.webp")[1] == [40, 70]
    shown = [pixels for _, pixels in animation(tmp_path / "a.png").frames(0, 2)]
    for number, pixels in enumerate(shown):
        np.testing.assert_array_equal(pixels[:, 6:], frame(number + 1, alpha=True)[:, 6:])
        assert not pixels[:, :6, 3].any()


def test_an_animation_becomes_a_film_in_its_own_times(tmp_path, weights) -> None:
    pytest.importorskip("av", reason="PyAV is not installed")
    assert run(animated(tmp_path / "a.gif"), tmp_path / "large.mp4", weights) == 0
    starts = np.cumsum([0, *DURATIONS[:-1]])
    assert films.seconds(tmp_path / "large.mp4") == [Fraction(int(start), 1000) for start in starts]


def test_a_film_to_pictures_and_back(tmp_path, weights) -> None:
    """To the bit: PNG and FFV1 in RGB lose nothing."""
    pytest.importorskip("av", reason="PyAV is not installed")
    folder = tmp_path / "in"
    folder.mkdir()
    for number in (3, 5, 10, 11):
        Image.fromarray(frame(number)).save(folder / f"f{number}.png")
    (folder / "notes.txt").write_text("no picture")
    pattern = folder / "f%d.png"
    film = tmp_path / "film.mkv"
    assert run(pattern, film, weights) == 1  # without a rate
    assert run(pattern, film, weights, "--rate", "23.976", "--codec", "ffv1") == 0
    assert films.seconds(film) == [round(number * Fraction(1001, 24), 0) / 1000 for number in range(4)]
    (tmp_path / "out").mkdir()
    assert run(film, tmp_path / "out" / "%04d.png", weights) == 0
    upscaler = without_guard(small())
    for index, number in enumerate((3, 5, 10, 11)):
        with Image.open(tmp_path / "out" / f"{index + 1:04}.png") as picture:
            # From a film on all is of 16 bits, until it is written.
            larger = upscaler(upscaler(frame(number)).astype(np.uint16) * 257)
            assert picture.mode == "RGB"
            assert np.array_equal(np.asarray(picture), np.rint(larger / 257))
    assert len(list((tmp_path / "out").iterdir())) == 4
    assert run(film, tmp_path / "out" / "%04d.png", weights) == 1
    assert run(film, tmp_path / "out" / "%04d.png", weights, "--overwrite") == 0


def test_longer_runs_before_are_not_mixed_with_this_one(tmp_path, weights, capsys) -> None:
    """Their pictures would be taken for its last frames: nothing is begun, removed or overwritten."""
    source, out = tmp_path / "in", tmp_path / "out" / "%03d.png"
    source.mkdir()
    for number in range(5):
        Image.fromarray(frame(number)).save(source / f"{number}.png")
    assert run(source, out, weights, "--rate", "25") == 0
    before = {path.name: path.read_bytes() for path in out.parent.iterdir()}
    (source / "0.png").unlink()
    (source / "1.png").unlink()
    assert run(source, out, weights, "--rate", "25", "--overwrite") == 1
    assert "has 2 more such pictures, 004.png to 005.png, than the 3 that are to be written" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.parent.iterdir()} == before
    for name in ("004.png", "005.png"):
        (out.parent / name).unlink()
    assert run(source, out, weights, "--rate", "25", "--overwrite") == 0
    assert [(out.parent / f"{number:03}.png").read_bytes() for number in (1, 2, 3)] == [
        before[f"{number:03}.png"] for number in (3, 4, 5)
    ]


@pytest.mark.parametrize("given", ["", "%06d.png"])
def test_pictures_never_overwrite_themselves(tmp_path, weights, capsys, given: str) -> None:
    for number in range(1, 4):
        Image.fromarray(frame(number)).save(tmp_path / f"{number:06}.png")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for options in ([], ["--overwrite"], ["--resume"]):
        assert run(tmp_path / given, tmp_path / "%06d.png", weights, "--rate", "25", *options) == 1
        assert "would overwrite its own pictures; choose another --output" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_run_that_was_ended_while_it_named_its_pictures_goes_on(tmp_path, weights, monkeypatch, capsys) -> None:
    source, out = tmp_path / "in", tmp_path / "out" / "%03d.png"
    for folder in (source, out.parent):
        folder.mkdir()
    for number in range(5):
        Image.fromarray(frame(number)).save(source / f"{number}.png")
    assert run(source, tmp_path / "whole" / "%03d.png", weights, "--rate", "25") == 0
    real, named = os.replace, []

    def dying(old, new) -> None:
        if Path(new).parent == out.parent and Path(new).suffix == ".png":
            if len(named) == 2:
                raise KeyboardInterrupt
            named.append(new)
        real(old, new)

    with monkeypatch.context() as patched:
        patched.setattr("ditn.video.work.os.replace", dying)
        assert run(source, out, weights, "--rate", "25") == 130
    assert len(list(out.parent.glob("*.png"))) == 2
    assert run(source, out, weights, "--rate", "25", "--resume") == 0
    assert sorted(path.name for path in out.parent.iterdir()) == [f"{number:03}.png" for number in range(1, 6)]
    for path in out.parent.iterdir():
        assert path.read_bytes() == (tmp_path / "whole" / path.name).read_bytes()


def test_pictures_of_other_sizes_are_refused(tmp_path, weights, capsys) -> None:
    pytest.importorskip("av", reason="PyAV is not installed")
    for number in range(3):
        Image.fromarray(frame(number)[: 8 - number // 2]).save(tmp_path / f"{number}.png")
    assert run(tmp_path / "%d.png", tmp_path / "film.mkv", weights, "--rate", "24") == 1
    assert "2.png has 12x7 pixels, the first has 12x8" in capsys.readouterr().err
    with pytest.raises(FilmError, match="has no images"):
        pictures(tmp_path / "none%d.png", Fraction(24))


def test_numbers_in_names() -> None:
    assert name_of(Path("a/f%06d.png"), 12) == Path("a/f000012.png")
    assert name_of(Path("100%-%d.png"), 7) == Path("100%-7.png")
    with pytest.raises(FilmError, match="no place for a number"):
        numbered(Path("frame.png"))


def test_names_that_only_look_like_patterns(tmp_path, weights) -> None:
    """%20d, as names have it that a web address was made of; a folder whose name has a dot."""
    pytest.importorskip("av", reason="PyAV is not installed")
    Image.fromarray(frame(1)).save(tmp_path / "hot%20dog.png")
    assert run(tmp_path / "hot%20dog.png", tmp_path / "hot%20dog-x2.png", weights) == 0
    with Image.open(tmp_path / "hot%20dog-x2.png") as picture:
        assert picture.size == (24, 16)
    film = films.make(tmp_path / "my%20dance.mkv", 2)
    assert run(film, tmp_path / "my%20dance-x2.mkv", weights) == 0
    assert len(films.frames(tmp_path / "my%20dance-x2.mkv")) == 2
    (tmp_path / "there.2024").mkdir()
    for folder in ("there.2024", "new.2024/"):
        assert run(film, f"{tmp_path}/{folder}", weights) == 0
        assert len(films.frames(tmp_path / folder / film.name)) == 2


def test_still_images_are_no_animations(tmp_path) -> None:
    for suffix in (".gif", ".png", ".webp"):
        Image.fromarray(frame(1)).save(tmp_path / f"still{suffix}")
        assert not is_animated(tmp_path / f"still{suffix}")
    assert not is_animated(tmp_path / "none.gif")


def test_options_of_films_are_refused_for_images(tmp_path, weights, capsys) -> None:
    Image.fromarray(frame(1)).save(tmp_path / "still.png")
    assert run(tmp_path / "still.png", tmp_path / "large.png", weights, "--codec", "h264") == 2
    assert "--codec is for films" in capsys.readouterr().err
    assert run(tmp_path / "film.mp4", tmp_path / "large.jpg", weights) == 2
    assert "film.mp4 is a film, and --output" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "span"),
    [("10:00-12:30", (600, 750)), ("1:02:03.5-", (3723.5, np.inf)), ("-90", (0, 90)), ("0.25-1", (0.25, 1))],
)
def test_spans_of_time(text: str, span: tuple[float, float]) -> None:
    assert _span(text) == span


@pytest.mark.parametrize("text", ["-", "5", "2-1", "1:2:3:4-", "a-b"])
def test_no_spans_of_time(text: str) -> None:
    with pytest.raises(Exception, match=r"is no span|ends before"):
        _span(text)


def test_rates() -> None:
    assert _rate("25") == 25
    assert _rate("24000/1001") == _rate("23.976") == Fraction(24000, 1001)
    assert _rate("29.97") == Fraction(30000, 1001)
    assert _rate("12.5") == Fraction(25, 2)
    assert _rate("14.285714285714286") == Fraction(100, 7)
    for nothing in ("0", "0.0000001"):
        with pytest.raises(Exception, match="above 0"):
            _rate(nothing)


def test_a_rate_of_many_digits_makes_a_film(tmp_path, weights) -> None:
    pytest.importorskip("av", reason="PyAV is not installed")
    for number in range(3):
        Image.fromarray(frame(number)).save(tmp_path / f"{number}.png")
    for rate in ("14.285714285714286", "333.33333333333331"):
        film = tmp_path / f"{rate}.mp4"
        assert run(tmp_path / "%d.png", film, weights, "--rate", rate) == 0
        np.testing.assert_allclose([float(second) for second in films.seconds(film)], np.arange(3) / float(rate), 1e-9)
