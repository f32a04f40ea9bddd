# SPDX-License-Identifier: Apache-2.0
"""Names of files: bytes that are not UTF-8, the longest there can be, and several for one file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import PROJECT
from PIL import Image

from ditn.commands import pictures as command
from ditn.commands.cli import main
from ditn.commands.names import utf8

LATIN = os.fsdecode(b"caf\xe9")


def picture(path: Path, *, width: int = 8) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.fromarray(np.full((6, width, 3), 99, np.uint8)).save(path)
    return path


def upscale(weights: str, *arguments: object) -> int:
    return main(["upscale", "--model", weights, "--guard", "off", *map(str, arguments)])


def test_a_name_that_is_not_utf8_is_done_under_its_own_bytes(weights, tmp_path, capfdbinary) -> None:
    for suffix in ("png", "jpg", "webp", "tif", "bmp"):
        picture(tmp_path / LATIN / f"{LATIN}.{suffix}")
    picture(tmp_path / LATIN / "größe.png")
    report = tmp_path / "report.json"
    options = ("--suffix", LATIN, "--json", report)
    inside = tmp_path / LATIN
    assert upscale(weights, inside, "-o", tmp_path / LATIN / "out", "--format", "png", "--dry-run", *options) == 1
    assert (os.fsencode(inside) + b"/caf\xe9.bmp -> ") in capfdbinary.readouterr().out
    assert upscale(weights, inside, "-o", tmp_path / LATIN / "out", *options) == 0
    made = sorted(os.listdir(os.fsencode(tmp_path / LATIN / "out")))
    assert made == sorted(
        [b"caf\xe9caf\xe9." + suffix for suffix in (b"png", b"jpg", b"webp", b"tif", b"bmp")]
        + [os.fsencode("größe") + b"caf\xe9.png"]
    )
    for name in made:
        with Image.open(os.path.join(os.fsencode(tmp_path / LATIN / "out"), name)) as result:
            assert result.size == (16, 12)
    pictures = json.loads(report.read_text(encoding="utf-8"))["pictures"]
    assert {os.fsencode(Path(entry["output"]).name) for entry in pictures} == set(made)


def test_an_undecodable_locale(weights, tmp_path) -> None:
    """In the C locale Python takes every byte beyond ASCII for undecodable; the report has UTF-8 all the same."""
    picture(tmp_path / "in" / "größe.png")
    picture(tmp_path / "in" / f"{LATIN}.png")
    arguments = ["upscale", "in", "-o", "out", "--model", weights, "--guard", "off", "--json", "report.json"]
    done = subprocess.run(
        [sys.executable, "-m", "ditn", *arguments],
        cwd=tmp_path,
        env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"2 done, 0 skipped, 0 failed\n")
    assert sorted(os.listdir(bytes(tmp_path / "out"))) == sorted([b"caf\xe9.png", "größe.png".encode()])
    text = (tmp_path / "report.json").read_text(encoding="utf-8")
    assert '"input": "in/größe.png"' in text
    assert '"input": "in/caf\\udce9.png"' in text


def test_text_with_names() -> None:
    assert utf8("größe") == "größe".encode()
    assert utf8("gr\udcc3\udcb6\udce9") == "grö".encode() + rb"\udce9"


@pytest.mark.parametrize("name", ["a" * 251 + ".png", "写" * 83 + ".webp", "a" * 251 + ".bmp", "a" * 251 + ".tif"])
def test_the_longest_names(weights, tmp_path, name: str) -> None:
    picture(tmp_path / "in" / name)
    report = tmp_path / ("r" * 250 + ".json")
    assert upscale(weights, tmp_path / "in", "-o", tmp_path / "out", "--json", report) == 0
    assert os.listdir(tmp_path / "out") == [name]
    assert report.is_file()


def test_a_name_that_becomes_too_long_fails_alone(weights, tmp_path, capsys) -> None:
    picture(tmp_path / "in" / ("a" * 251 + ".png"))
    picture(tmp_path / "in" / "b.png")
    assert upscale(weights, tmp_path / "in", "-o", tmp_path / "out", "--suffix", "-x4") == 1
    assert "File name too long" in capsys.readouterr().err
    assert os.listdir(tmp_path / "out") == ["b-x4.png"]


@pytest.mark.parametrize("flag", ["--overwrite", "--skip-existing", None])
@pytest.mark.parametrize("way", ["name", "symlink", "hard link", "linked folder"])
def test_no_input_is_overwritten(weights, tmp_path, way: str, flag: str | None) -> None:
    """The output of a.jpg would be a.png, which is an input, too."""
    source, output = tmp_path / "in", tmp_path / "out"
    picture(source / "a.jpg")
    before = picture(source / "a.png", width=10).read_bytes()
    output.mkdir()
    if way == "name":
        output = source
    elif way == "symlink":
        (output / "a.png").symlink_to(source / "a.png")
    elif way == "hard link":
        (output / "a.png").hardlink_to(source / "a.png")
    else:
        output.rmdir()
        output.symlink_to(source)
    for inputs in ([source], [source / "a.jpg", source / "a.png"]):
        assert upscale(weights, *inputs, "-o", output, "--format", "png", *[flag] * bool(flag)) == 1
        assert (source / "a.png").read_bytes() == before
        assert sorted(os.listdir(source)) == ["a.jpg", "a.png"]


def test_the_model_and_the_report_are_files_of_the_run_too(weights, tmp_path, capsys) -> None:
    source = picture(tmp_path / "a.png")
    before = source.read_bytes()
    model = tmp_path / "model.png"
    model.write_bytes(Path(weights).read_bytes())
    assert upscale(weights, source, "-o", model, "--model", model, "--overwrite") == 1
    for report in (source, model, tmp_path / "b.png"):
        assert upscale(weights, source, "-o", tmp_path / "b.png", "--model", model, "--json", report) == 2
        assert "is an image or the model of this run" in capsys.readouterr().err
    assert (source.read_bytes(), model.read_bytes()) == (before, Path(weights).read_bytes())
    assert sorted(os.listdir(tmp_path)) == ["a.png", "model.png"]


def test_outputs_that_a_folder_takes_for_one(weights, tmp_path, monkeypatch, capsys) -> None:
    """As on a disk that takes no notice of case: a file's identity there does not depend on it."""
    picture(tmp_path / "in" / "a.png")
    picture(tmp_path / "in" / "A.png", width=10)
    real = command.identity

    def of_any_case(path: Path) -> tuple[int, int] | None:
        return real(path) or real(path.with_name(path.name.swapcase().replace(".PNG", ".png")))

    monkeypatch.setattr(command, "identity", of_any_case)
    assert upscale(weights, tmp_path / "in", "-o", tmp_path / "out", "--overwrite") == 1
    assert f"would overwrite the output of {tmp_path / 'in' / 'A.png'}" in capsys.readouterr().err
    assert os.listdir(tmp_path / "out") == ["A.png"]


def test_what_has_appeared_meanwhile_stays(weights, tmp_path, monkeypatch, capsys) -> None:
    source, output = picture(tmp_path / "a.png"), tmp_path / "b.png"
    real = command.read

    def read(*arguments: object, **options: object):
        output.write_text("mine")
        return real(*arguments, **options)

    monkeypatch.setattr(command, "read", read)
    assert upscale(weights, source, "-o", output) == 1
    assert "has appeared meanwhile" in capsys.readouterr().err
    assert output.read_text() == "mine"
