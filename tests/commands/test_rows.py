# SPDX-License-Identifier: Apache-2.0
"""`ditn upscale` of images too large for memory: by rows of tiles, the same bits, resumable."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import pyvips
from PIL import Image

import ditn
from ditn.commands import rows
from ditn.commands.cli import main

# 4 x 5 tiles of the network, each of one tile of the TIFF.
SIZE = (300, 200)


def noise(bands: int = 3, dtype: str = "uint8") -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, (*SIZE, bands)).astype(dtype)


def upscale(source: Path, target: Path | str, weights: str, *options: object) -> int:
    arguments = [source, "-o", target, "--model", weights, "--rows-above", 1000, "--tile", 64, "--guard", "off"]
    return main(["upscale", *map(str, [*arguments, *options])])


def save(samples: np.ndarray, path: Path, **options: object) -> Path:
    interpretation = "grey16" if samples.dtype == np.uint16 else "srgb"
    pyvips.Image.new_from_array(samples, interpretation=interpretation).write_to_file(str(path), **options)
    return path


def pixels(path: Path) -> np.ndarray:
    """By libvips from memory: it keeps what it has read of a name."""
    image = pyvips.Image.new_from_buffer(path.read_bytes(), "")
    return image.numpy().reshape(image.height, image.width, image.bands)


def whole(samples: np.ndarray, weights: str) -> np.ndarray:
    """By the network in one piece: one tile, one row."""
    return ditn.Upscaler(ditn.load(weights), tile=0, guard="off")(samples)


def slow(*values: object) -> object:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("bands", "dtype", "name", "options"),
    [
        (3, "uint8", "in.png", {}),
        slow(3, "uint8", "in.tif", {"tile": True, "tile_width": 48, "tile_height": 16, "bigtiff": True}),
        slow(1, "uint16", "in.tif", {"tile": True}),
        slow(1, "uint16", "in.png", {}),
    ],
)
def test_the_rows_are_the_whole_image(tmp_path, weights, bands: int, dtype: str, name: str, options) -> None:
    samples = noise(bands, dtype)
    assert upscale(save(samples, tmp_path / name, **options), tmp_path / "out.tif", weights) == 0
    # Tiles are the whole to float32 rounding, which moves a sample of 16 bits by one at most and hardly any of 8 bits.
    error = np.abs(pixels(tmp_path / "out.tif").astype(int) - whole(samples, weights))
    assert error.max() <= 1
    assert (error > 0).mean() < (1e-4 if dtype == "uint8" else 0.05)
    assert sorted(os.listdir(tmp_path)) == sorted([name, "out.tif"])


@pytest.mark.slow
def test_constant_alpha_is_kept_and_any_other_refused(tmp_path, weights, capsys) -> None:
    samples = noise(4)
    samples[..., 3] = 200
    assert upscale(save(samples, tmp_path / "in.png"), tmp_path / "out.tif", weights) == 0
    made = pixels(tmp_path / "out.tif")
    assert (made[..., 3] == 200).all()
    assert np.abs(made[..., :3].astype(int) - whole(samples, weights)[..., :3]).max() <= 1
    samples[0, 0, 3] = 0
    assert upscale(save(samples, tmp_path / "in.png"), tmp_path / "other.tif", weights) == 1
    assert "of one transparency only" in capsys.readouterr().err


@pytest.mark.slow
def test_what_the_file_tells_is_kept(tmp_path, weights) -> None:
    source = tmp_path / "in.png"
    Image.fromarray(noise()).save(source, dpi=(300, 300))
    report = tmp_path / "report.json"
    assert upscale(source, tmp_path / "out.tif", weights, "--json", report) == 0
    with Image.open(tmp_path / "out.tif") as image:
        assert image.info["dpi"] == pytest.approx((300, 300), rel=1e-3)  # said of prints: kept
    (entry,) = json.loads(report.read_text())["pictures"]
    assert (entry["status"], entry["tiles"], entry["output_size"]) == ("done", 20, [400, 600])


@pytest.fixture
def interrupted(tmp_path, weights, monkeypatch, capsys) -> Path:
    """A scan of which two rows are done, and something went wrong with the third."""
    source = save(noise(), tmp_path / "in.png")
    real = rows.part

    def row(job, args, planned, number, worker) -> None:
        if number == 2:
            raise OSError("No space left on device")
        real(job, args, planned, number, worker)

    row.__module__ = "ditn.commands.rows"
    with monkeypatch.context() as patched:
        patched.setattr(rows, "part", row)
        assert upscale(source, tmp_path / "out.tif", weights) == 1
    assert "No space left on device (the parts that are done stay for the next run)" in capsys.readouterr().err
    assert not (tmp_path / "out.tif").exists()
    return source


def test_another_run_does_the_rows_that_are_missing(tmp_path, weights, interrupted, monkeypatch) -> None:
    parts = tmp_path / "out.tif.parts"
    assert sorted(os.listdir(parts)) == [
        "000000.part",
        "000001.part",
        "000003.part",
        "000004.part",
        "input",
        "plan.json",
    ]
    done: list[int] = []
    real = rows.part
    monkeypatch.setattr(
        rows,
        "part",
        lambda job, args, planned, number, worker: (done.append(number), real(job, args, planned, number, worker)),
    )
    assert upscale(interrupted, tmp_path / "out.tif", weights, "--skip-existing") == 0
    assert done == [2]
    assert not parts.exists()
    assert upscale(interrupted, tmp_path / "unbroken.tif", weights) == 0
    assert (tmp_path / "out.tif").read_bytes() == (tmp_path / "unbroken.tif").read_bytes()


def test_to_standard_output(tmp_path, weights, capfdbinary) -> None:
    source = save(noise()[:70], tmp_path / "in.png")
    assert upscale(source, tmp_path / "out.tif", weights) == 0
    capfdbinary.readouterr()
    assert upscale(source, "-", weights, "--format", "tif") == 0
    assert capfdbinary.readouterr().out == (tmp_path / "out.tif").read_bytes()


def test_an_interruption_is_told_with_what_stays(tmp_path, weights, monkeypatch) -> None:
    source, report = save(noise(), tmp_path / "in.png"), tmp_path / "report.json"
    real = rows.part

    def row(job, args, planned, number, worker) -> None:
        if number == 2:
            raise KeyboardInterrupt
        real(job, args, planned, number, worker)

    monkeypatch.setattr(rows, "part", row)
    assert upscale(source, tmp_path / "out.tif", weights, "--json", report) == 130
    (told,) = json.loads(report.read_text())["pictures"]
    assert told["status"] == "failed"
    assert told["reason"] == "interrupted (the parts that are done stay for the next run)"


@pytest.mark.slow
def test_rows_of_other_arguments_are_not_mixed(tmp_path, weights, interrupted, capsys) -> None:
    for options in (["--guard", "warn"], ["--tile", "128"], ["--dtype", "bfloat16"]):
        assert upscale(interrupted, tmp_path / "out.tif", weights, *options) == 1
        assert f"holds rows of a run with another {options[0][2:]}" in capsys.readouterr().err
    save(noise()[::-1], interrupted)
    assert upscale(interrupted, tmp_path / "out.tif", weights) == 1
    assert "holds rows of a run with another input" in capsys.readouterr().err
    assert upscale(interrupted, tmp_path / "out.tif", weights, "--overwrite") == 0
    np.testing.assert_allclose(pixels(tmp_path / "out.tif"), whole(noise()[::-1], weights), atol=1)


@pytest.mark.slow
def test_what_cannot_be_done_by_rows_is_said(tmp_path, weights, capsys) -> None:
    source = save(noise(), tmp_path / "in.png")
    assert upscale(source, tmp_path / "out.tif", weights, "--scale", "3") == 1
    assert "which are not resampled: --scale is 3, the model's 2" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["in.png"]
    source.write_bytes(source.read_bytes()[:5000])
    assert upscale(source, tmp_path / "out.tif", weights) == 1
    assert not (tmp_path / "out.tif").exists()
