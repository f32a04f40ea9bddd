# SPDX-License-Identifier: Apache-2.0
"""Standard input and output as images, and arguments that contradict each other."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import PROJECT
from PIL import Image

import ditn
from ditn.commands.cli import main

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


@pytest.fixture
def source(tmp_path) -> Path:
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def upscale(weights: str, *arguments: object) -> int:
    return main(["upscale", "--model", weights, "--guard", "off", *map(str, arguments)])


def encoded(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, kind)
    return stream.getvalue()


@pytest.fixture
def standard_input(monkeypatch):
    def give(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    return give


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "tiff", "bmp", "gif"])
def test_through_a_pipe(weights, standard_input, capfdbinary, kind: str) -> None:
    standard_input(encoded(kind))
    assert upscale(weights, "-", "-o", "-") == 0
    said = capfdbinary.readouterr()
    assert said.err == b"1 done, 0 skipped, 0 failed\n"
    with Image.open(io.BytesIO(encoded(kind))) as given, Image.open(io.BytesIO(said.out)) as result:
        assert result.format == "PNG"
        want = ditn.Upscaler(ditn.load(weights), guard="off")(np.asarray(given.convert("RGB")))
        np.testing.assert_array_equal(np.asarray(result), want)


def test_from_a_file_and_to_a_file(weights, source, standard_input, capfdbinary) -> None:
    assert upscale(weights, source, "-o", "-", "--format", "jpg", "--guard", "warn") == 0
    said = capfdbinary.readouterr()
    with Image.open(io.BytesIO(said.out)) as result:
        assert (result.format, result.size) == ("JPEG", (16, 12))
    assert b"had nothing to do with the image" in said.err
    standard_input(source.read_bytes())
    assert upscale(weights, "-", "-o", source.with_name("b.webp")) == 0
    with Image.open(source.with_name("b.webp")) as result:
        assert result.size == (16, 12)


def test_a_file_of_that_name_is_a_file(weights, source, monkeypatch) -> None:
    monkeypatch.chdir(source.parent)
    source.rename("-")
    assert upscale(weights, "./-", "-o", "b.png") == 0
    assert upscale(weights, "./-", "-o", "./-/") == 2
    assert sorted(os.listdir()) == ["-", "b.png"]


def test_what_standard_input_may_not_be(weights, source, standard_input, capsys, tmp_path) -> None:
    standard_input(b"")
    assert upscale(weights, "-", "-o", tmp_path / "b.png") == 1
    assert "-: is empty" in capsys.readouterr().err
    assert upscale(weights, "-", source, "-o", tmp_path / "b") == 2
    assert "standard input, goes alone" in capsys.readouterr().err
    assert upscale(weights, "-", "-o", tmp_path) == 2
    assert "is a folder; name the image" in capsys.readouterr().err
    pages = [Image.fromarray(PIXELS)] * 2
    pages[0].save(tmp_path / "two.tif", save_all=True, append_images=pages[1:])
    assert upscale(weights, tmp_path / "two.tif", "-o", "-") == 1
    assert "has 2 pages, standard output takes one" in capsys.readouterr().err


@pytest.mark.slow
def test_whoever_reads_may_leave(weights, source) -> None:
    arguments = ["upscale", source, "-o", "-", "--model", weights, "--guard", "off"]
    read, write = os.pipe()
    os.close(read)
    process = subprocess.run(
        [sys.executable, "-m", "ditn", *arguments], cwd=PROJECT, stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    assert b"Traceback" not in process.stderr
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-o", "b.gif"], "b.gif: .gif cannot be written, only .png"),
        (["-o", "b.png.part"], ".part cannot be written"),
        (["-o", "b.jpg", "--format", "png"], "--output b.jpg and --format png contradict each other"),
        (["-o", "b.jpg", "--suffix", "_x4"], "--suffix _x4 is for names in a folder"),
        (["-o", "-", "--suffix", "_x4"], "--suffix _x4 is for names in a folder"),
        (["-o", "out", "--suffix", "/../b"], "--suffix is '/../b', must be part of a file's name"),
        (["a.png", "-o", "b.jpg"], "b.jpg takes one image, but there are several inputs"),
        (["a.png", "-o", "-"], "- takes one image, but there are several inputs"),
        ([".", "-o", "-"], "- takes one image, but there are several inputs"),
        (["-o", "file"], "file is a file without a suffix"),
    ],
)
def test_contradictions(weights, source, monkeypatch, capsys, options: list[str], message: str) -> None:
    monkeypatch.chdir(source.parent)
    Path("file").touch()
    assert upscale(weights, source, *options) == 2
    assert message in capsys.readouterr().err
    assert sorted(os.listdir()) == ["a.png", "file"]


def test_what_looks_like_a_contradiction_and_is_none(weights, source, monkeypatch) -> None:
    monkeypatch.chdir(source.parent)
    Path("there.gif").mkdir()
    assert upscale(weights, source, "-o", "there.gif") == 0
    assert upscale(weights, source, "-o", "new.v2/") == 0
    assert upscale(weights, source, "-o", "b.jpeg", "--format", "jpg") == 0
    assert sorted(map(str, Path().rglob("*.*"))) == [
        *("a.png", "b.jpeg", "new.v2", "new.v2/a.png", "there.gif", "there.gif/a.png")
    ]


def test_a_suffix_may_begin_with_a_dash(weights, source, monkeypatch, capsys) -> None:
    monkeypatch.chdir(source.parent)
    assert upscale(weights, source, "-o", "out", "--suffix", "-x4") == 0
    assert os.listdir("out") == ["a-x4.png"]
    with pytest.raises(SystemExit):
        upscale(weights, source, "--suffix", "-o", "out")
    assert "argument --suffix: expected one argument" in capsys.readouterr().err
