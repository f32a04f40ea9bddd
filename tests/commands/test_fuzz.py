# SPDX-License-Identifier: Apache-2.0
"""Damaged images of every kind: each ends as done or as failed with a reason, and nothing is lost or left over."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import PROJECT
from networks import small
from PIL import Image, ImageCms, PngImagePlugin

import ditn
from ditn.commands.cli import main

Mutation = tuple[str, bytes]


def originals() -> Iterator[tuple[str, Image.Image, dict[str, object]]]:
    """A small image of each kind, with what Pillow's `save` is to be told: profiles, EXIF, text, pages, palettes."""
    random = np.random.default_rng(0)
    colour = Image.fromarray(random.integers(0, 256, (9, 11, 3), dtype=np.uint8))
    alpha = Image.fromarray(random.integers(0, 256, (9, 11, 4), dtype=np.uint8))
    deep = Image.fromarray(random.integers(0, 65536, (9, 11), dtype=np.uint16))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif.update({0x0112: 6, 0x010E: "an image", 0x0132: "2026:01:01 00:00:00"})
    text = PngImagePlugin.PngInfo()
    text.add_text("prompt", "a small image", zip=True)
    yield "png", alpha, {"pnginfo": text, "icc_profile": profile, "exif": exif}
    yield "png", deep, {}
    yield "png", colour.quantize(16), {}
    yield "jpg", colour, {"exif": exif, "icc_profile": profile, "comment": b"small"}
    yield "jfif", colour.convert("CMYK"), {"format": "jpeg"}
    yield "webp", alpha, {"exif": exif, "icc_profile": profile}
    yield "webp", colour, {"lossless": True}
    yield "tif", colour, {"compression": "tiff_lzw", "icc_profile": profile, "tiffinfo": exif}
    yield "tif", deep, {"save_all": True, "append_images": [colour]}
    yield "tiff", colour.convert("LAB"), {}
    yield "bmp", colour, {}
    yield "bmp", colour.quantize(16), {}
    yield "gif", colour.quantize(64), {"transparency": 3}
    yield "avif", alpha, {"exif": exif}


def mutated(data: bytes, random: np.random.Generator) -> bytes:
    """The file with one damage: bits turned, a piece lost, doubled, put in or set to one value, or its end cut off."""
    place, other = sorted(int(random.integers(len(data) + 1)) for _ in range(2))
    piece = min(other, place + int(random.integers(1, 9)))
    match int(random.integers(7)):
        case 0 | 1:
            damaged = bytearray(data)
            for _ in range(int(random.integers(1, 9))):
                damaged[int(random.integers(len(data)))] ^= 1 << int(random.integers(8))
            return bytes(damaged)
        case 2:
            return data[:place]
        case 3:
            return data[:place] + data[piece:]
        case 4:
            return data[:other] + data[place:]
        case 5:
            return data[:place] + random.bytes(5) + data[place:]
        case _:
            value = bytes([int(random.choice([0, 0x7F, 0x80, 0xFF]))])
            return data[:place] + value * (piece - place) + data[piece:]


@pytest.fixture
def prepared(tmp_path) -> Path:
    """A folder with a model."""
    ditn.save(small(), tmp_path / "small.safetensors")
    return tmp_path


def fill(folder: Path, count: int, seed: int) -> dict[str, bytes]:
    """`count` damaged files, in turn of each kind, some under another kind's suffix or a name that is no UTF-8."""
    random = np.random.default_rng(seed)
    made: list[Mutation] = []
    for number, (kind, image, options) in enumerate(originals()):
        path = folder.parent / f"{number}.{kind}"
        image.save(path, **options)
        made.append((kind, path.read_bytes()))
        path.unlink()
    folder.mkdir()
    contents = {}
    for number in range(count):
        kind, data = made[number % len(made)]
        suffix = kind if number % 9 else made[int(random.integers(len(made)))][0]
        name = os.fsdecode(b"%03d\xe9." % number) + suffix
        contents[name] = mutated(data, random)
        (folder / name).write_bytes(contents[name])
    return contents


def check(folder: Path, contents: dict[str, bytes], code: int) -> None:
    """Every file is accounted for: the report, the outputs and the inputs agree."""
    pictures = json.loads((folder / "report.json").read_text(encoding="utf-8"))["pictures"]
    assert {Path(entry["input"]).name for entry in pictures} == contents.keys()
    outputs = set()
    for entry in pictures:
        assert entry["status"] in ("done", "failed"), entry
        if entry["status"] == "failed":
            assert entry["reason"], entry
            continue
        outputs.add(Path(entry["output"]).name)
        with Image.open(os.fsencode(folder / entry["output"])) as result:
            result.load()
            assert result.size == tuple(2 * side for side in entry["input_size"]), entry
    statuses = [entry["status"] for entry in pictures]
    assert code == int("failed" in statuses)
    assert statuses.count("done") > len(statuses) / 5, "most files are damaged beyond reading; the test shows little"
    assert statuses.count("failed") > len(statuses) / 5, "most files are read; the test shows little"
    assert set(os.listdir(folder / "out")) == outputs
    assert {path.name: path.read_bytes() for path in (folder / "in").iterdir()} == contents
    assert sorted(os.listdir(folder)) == ["in", "out", "report.json", "small.safetensors"]


ARGUMENTS = ("in", "-o", "out", "--model", "small.safetensors", "--json", "report.json", "--max-pixels", "65536")


def test_damaged_files(prepared, monkeypatch, capsysbinary) -> None:
    contents = fill(prepared / "in", 56, seed=0)
    monkeypatch.chdir(prepared)
    code = main(["upscale", *ARGUMENTS])
    capsysbinary.readouterr()  # names that are no UTF-8 are more than pytest-xdist can send
    check(prepared, contents, code)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_many_damaged_files(prepared, seed: int) -> None:
    """In a process of its own, which a decoder could bring down."""
    contents = fill(prepared / "in", 200, seed=seed)
    done = subprocess.run(
        [sys.executable, "-m", "ditn", "upscale", *ARGUMENTS],
        cwd=prepared,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        timeout=600,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr[-2000:]
    check(prepared, contents, done.returncode)
