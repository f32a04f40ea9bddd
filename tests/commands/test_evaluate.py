# SPDX-License-Identifier: Apache-2.0
"""Evaluation: published figures, folders with and without low-resolution images, reports."""

from __future__ import annotations

import argparse
import csv
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import ditn
from ditn.commands import arguments, cli
from ditn.commands.evaluate import evaluate, run, upscaler
from ditn.imaging.resize import downscale
from ditn.inference.ensemble import self_ensemble


def _run(*flags: str | Path) -> int:
    parser = argparse.ArgumentParser()
    arguments.evaluate(parser)
    return run(parser.parse_args(list(map(str, flags))))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A data set of two colour pictures and a gray one: HR and LR_bicubic/X4."""
    folder = tmp_path / "photos"
    (folder / "HR").mkdir(parents=True)
    (folder / "LR_bicubic" / "X4").mkdir(parents=True)
    for name, shape in (("one", (66, 71, 3)), ("two", (64, 80, 3)), ("gray", (72, 64))):
        high = np.random.default_rng(len(name)).integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(high).save(folder / "HR" / f"{name}.png")
        Image.fromarray(downscale(high, 4)).save(folder / "LR_bicubic" / "X4" / f"{name}x4.png")
    return folder


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "random.safetensors"
    ditn.save(ditn.DITN_Real(itls=1, sals=1), path)
    return path


# data/README.md beside the images: mean PSNR-Y of bicubic interpolation.
@pytest.mark.parametrize(
    ("dataset", "figures"),
    [
        ("Set5", {2: 33.67, 3: 30.40, 4: 28.43}),
        ("Set14", {2: 30.23, 3: 27.54, 4: 25.99}),
        pytest.param("BSD100", {2: 29.56, 3: 27.21, 4: 25.96}, marks=pytest.mark.slow),
    ],
)
def test_bicubic_scores_as_published(shared: Path, dataset: str, figures: dict[int, float]) -> None:
    for scale, psnr in figures.items():
        upscale, _ = upscaler("bicubic", scale=scale)
        assert evaluate(upscale, shared / "data" / "eval" / dataset, scale).mean.psnr_y == pytest.approx(psnr, abs=0.01)


# The published x4 network: 32.10 / .8940, 28.59 / .7813, 27.58 dB on BSD100.
@pytest.mark.parametrize(
    ("dataset", "psnr", "ssim"),
    [
        ("Set5", 32.10, 0.8940),
        ("Set14", 28.59, 0.7813),
        pytest.param("BSD100", 27.58, 0.7363, marks=pytest.mark.slow),
    ],
)
def test_official_weights_score_as_published(shared: Path, dataset: str, psnr: float, ssim: float) -> None:
    upscale, scale = upscaler(str(shared / "golden" / "DITN_Real_x4.pth"))
    result = evaluate(upscale, shared / "data" / "eval" / dataset, scale)
    assert not result.errors
    assert result.mean.psnr_y == pytest.approx(psnr, abs=0.01)
    assert result.mean.ssim_y == pytest.approx(ssim, abs=0.0002)


def test_low_resolution_images_are_used_or_made(photos: Path, tmp_path: Path) -> None:
    upscale, scale = upscaler("bicubic")
    published = evaluate(upscale, photos, scale)
    assert {score.name for score in published.scores} == {"one", "two", "gray"}
    shutil.copytree(photos / "HR", tmp_path / "plain")
    assert evaluate(upscale, tmp_path / "plain", scale).scores == published.scores
    # Other low-resolution images, other scores: the published ones were indeed read.
    for path in (photos / "LR_bicubic" / "X4").iterdir():
        Image.eval(Image.open(path), lambda value: value // 2).save(path)
    assert evaluate(upscale, photos, scale).mean.psnr_y < published.mean.psnr_y - 1


def test_gray_goes_through_a_model_as_colours(photos: Path, weights: Path) -> None:
    upscale, _ = upscaler(str(weights))
    gray = np.asarray(Image.open(photos / "LR_bicubic" / "X4" / "grayx4.png"))
    output = upscale(gray)
    assert output.shape == (gray.shape[0] * 4, gray.shape[1] * 4, 3)
    np.testing.assert_array_equal(output, upscale(np.stack([gray] * 3, axis=2)))


def test_reports(photos: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    as_json, as_csv = tmp_path / "scores.json", tmp_path / "scores.csv"
    flags = ("--model", weights, "--data", photos, "--device", "cpu", "--json", as_json, "--csv", as_csv)
    assert _run(*flags) == 0
    printed = capsys.readouterr().out
    scores = json.loads(as_json.read_text())
    rows = {row["image"]: row for row in csv.DictReader(as_csv.open())}
    assert (scores["model"], scores["scale"]) == (str(weights), 4)
    images = scores["datasets"]["photos"]["images"]
    assert set(images) == {"one", "two", "gray"}
    mean = scores["datasets"]["photos"]["mean"]
    assert mean["psnr_y"] == pytest.approx(np.mean([image["psnr_y"] for image in images.values()]))
    assert mean["ssim_y"] == pytest.approx(np.mean([image["ssim_y"] for image in images.values()]))
    for name, score in {**images, "mean": mean}.items():
        assert float(rows[name]["psnr_y"]) == pytest.approx(score["psnr_y"], abs=5e-5)
        assert f"{score['psnr_y']:.2f}  {score['ssim_y']:.4f}" in printed
    before = as_csv.read_text()
    with pytest.raises(FileExistsError, match="--overwrite"):
        _run(*flags)
    assert _run(*flags, "--overwrite") == 0
    assert as_csv.read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "photos",
        "random.safetensors",
        "scores.csv",
        "scores.json",
    ]


def test_several_models_make_a_table(
    photos: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    as_json, as_csv = tmp_path / "scores.json", tmp_path / "scores.csv"
    files = ("--json", as_json, "--csv", as_csv)
    assert _run("--model", weights, "--model", "bicubic", "--data", photos, "--device", "cpu", *files) == 0
    heads, _, *rows = (
        [cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()
    )
    assert heads == ["model", "scale", "photos"]
    reports = json.loads(as_json.read_text())
    assert [row[:2] for row in rows] == [[str(weights), "x4"], ["bicubic", "x4"]]
    for row, report in zip(rows, reports, strict=True):
        images = report["datasets"]["photos"]["images"].values()
        psnr, ssim = (np.mean([image[name] for image in images]) for name in ("psnr_y", "ssim_y"))
        assert row[2] == f"{psnr:.2f} / {ssim:.4f}"
    assert [row["model"] for row in csv.DictReader(as_csv.open()) if row["image"] == "mean"] == [
        str(weights),
        "bicubic",
    ]


def test_a_wrong_name_is_said_before_anything_is_evaluated(photos: Path, weights: Path, monkeypatch) -> None:
    monkeypatch.setattr("ditn.commands.evaluate.evaluate", lambda *_, **__: pytest.fail("evaluated"))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        _run("--model", weights, "--model", "nowhere", "--data", photos, "--device", "cpu")


@pytest.mark.parametrize("command", ["evaluate", "train", "export"])
def test_a_device_that_is_not_here_is_refused_before_any_work(
    command: str, photos: Path, weights: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    for work in ("evaluate.load", "train.PairedImages", "export.export"):
        monkeypatch.setattr(f"ditn.commands.{work}", lambda *_, **__: pytest.fail("began"))
    flags = {
        "evaluate": ("--model", weights, "--data", photos),
        "train": ("--data", photos, "--output", tmp_path / "run"),
        "export": (weights, "-o", tmp_path / "model.pt2"),
    }
    assert cli.main([command, *map(str, flags[command]), "--device", "cuda:99"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"ditn {command}: device 'cuda:99' cannot be used: ")
    assert not (tmp_path / "run").exists()


def test_scores_outlive_a_sheet_that_cannot_be_written(photos: Path, weights: Path, tmp_path: Path) -> None:
    report = tmp_path / "scores.json"
    flags = ("--model", weights, "--data", photos, "--device", "cpu", "--json", report)
    with pytest.raises(FileNotFoundError):
        _run(*flags, "--sheet", tmp_path / "no folder" / "sheet.png")
    assert len(json.loads(report.read_text())["datasets"]["photos"]["images"]) == 3


def test_all_shipped_models_of_a_scale(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("--model", "all", "--scale", "2", "--data", photos / "HR", "--device", "cpu", "--self-ensemble") == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == [
        *(name for name in ditn.models() if name.endswith("-x2")),
        "bicubic",
    ]


def test_sheet_shows_the_detail_pixel_by_pixel(photos: Path, weights: Path, tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    flags = ("--model", weights, "--data", photos, "--data", photos, "--sheet-images", "2", "--device", "cpu")
    assert _run(*flags, "--sheet", path) == 0
    with Image.open(path) as sheet:
        # Two rows of each of two data sets; the whole, bicubic, the model, the original, 240 pixels each.
        assert sheet.size == (4 * 246 - 6, 4 * 266 - 6)
        original = np.asarray(sheet)[20:260, 3 * 246 :]
    # The first picture by name is the gray one, 64 pixels wide, of which the detail shows all but 8 rows.
    with Image.open(photos / "HR" / "gray.png") as gray:
        pixels = np.asarray(gray)[:64]
    centres = ((np.arange(64) + 0.5) * 240 / 64).astype(int)
    np.testing.assert_array_equal(original[centres][:, centres, 1], pixels)
    with pytest.raises(FileExistsError, match=r"sheet\.png exists"):
        _run(*flags, "--sheet", path)


@pytest.mark.parametrize("degradation", ["jpeg", "photo"])
def test_a_degradation_replaces_the_published_images(
    photos: Path, capsys: pytest.CaptureFixture[str], degradation: str
) -> None:
    upscale, scale = upscaler("bicubic")
    results = [evaluate(upscale, photos, scale, degradation=degradation) for _ in range(2)]
    assert results[0] == results[1]
    assert not results[0].errors
    published = evaluate(upscale, photos, scale).mean.psnr_y
    # These pictures are noise, of which the filters that come before JPEG may leave more than the published one.
    assert results[0].mean.psnr_y < published if degradation == "photo" else results[0].mean.psnr_y != published
    assert _run("--model", "bicubic", "--data", photos, "--degradation", degradation) == 0
    assert f"mean  {results[0].mean.psnr_y:6.2f}" in capsys.readouterr().out


def test_a_bad_image_does_not_stop_the_others(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    low = photos / "LR_bicubic" / "X4"
    (low / "onex4.png").unlink()
    Image.new("RGB", (5, 5)).save(low / "twox4.png")
    report = tmp_path / "scores.json"
    assert _run("--model", "bicubic", "--data", photos, "--json", report) == 1
    errors = capsys.readouterr().err
    assert "onex4.png" in errors
    assert "twox4.png has 5x5 pixels, expected 20x16" in errors
    scores = json.loads(report.read_text())["datasets"]["photos"]
    assert list(scores["images"]) == ["gray"]
    assert len(scores["errors"]) == 2
    (photos / "HR" / "gray.png").write_bytes(b"")
    assert _run("--model", "bicubic", "--data", photos, "--json", report, "--overwrite") == 1
    assert json.loads(report.read_text())["datasets"]["photos"]["mean"] == {"psnr_y": None, "ssim_y": None}


def test_equal_images_score_infinity(tmp_path: Path) -> None:
    folder = tmp_path / "flat"
    folder.mkdir()
    Image.new("RGB", (32, 32), (9, 80, 200)).save(folder / "flat.png")
    upscale, scale = upscaler("bicubic", scale=2)
    assert evaluate(upscale, folder, scale).mean.psnr_y == math.inf
    report = tmp_path / "scores.json"
    assert _run("--model", "bicubic", "--data", folder, "--json", report) == 0
    assert json.loads(report.read_text())["datasets"]["flat"]["mean"] == {"psnr_y": None, "ssim_y": pytest.approx(1)}


def test_self_ensemble_is_the_mean_over_the_orientations() -> None:
    weight = torch.rand(4, 6, dtype=torch.float64)

    def upscale(image: Tensor) -> Tensor:
        # Not symmetric: the left is weighted otherwise than the right, the top than the bottom.
        height, width = image.shape[-2:]
        ramp = weight if (height, width) == (4, 6) else weight.t() ** 2
        return (image * ramp).repeat_interleave(2, -1).repeat_interleave(2, -2)

    image = torch.rand(1, 3, 4, 6, dtype=torch.float64)
    pixels, outputs = image[0].permute(1, 2, 0).numpy(), []
    for turns in range(4):
        for mirrored in (False, True):
            view = np.rot90(pixels.transpose(1, 0, 2) if mirrored else pixels, turns)
            output = upscale(torch.tensor(view.copy()).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
            back = np.rot90(output, -turns)
            outputs.append(back.transpose(1, 0, 2) if mirrored else back)
    expected = np.mean(outputs, axis=0)
    np.testing.assert_allclose(self_ensemble(upscale, image)[0].permute(1, 2, 0).numpy(), expected, atol=1e-12)


def test_self_ensemble_is_an_option(photos: Path, weights: Path) -> None:
    # On the patch grid: padding goes to the right and the bottom, however the image is turned.
    low = np.asarray(Image.open(photos / "LR_bicubic" / "X4" / "onex4.png"))[:16, :16]
    plain, _ = upscaler(str(weights))
    averaged, _ = upscaler(str(weights), ensemble=True)
    assert (plain(low) != averaged(low)).any()
    turned = np.rot90(low).copy()
    # Averaged over the orientations, the order of turning and enlarging matters to rounding only: one level.
    assert np.abs(averaged(turned).astype(int) - np.rot90(averaged(low))).max() <= 1
    assert np.abs(plain(turned).astype(int) - np.rot90(plain(low))).max() > 1


def test_refuses(photos: Path, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="enlarges 4 times, not 2 times"):
        _run("--model", weights, "--data", photos, "--scale", "2")
    with pytest.raises(ValueError, match="self-ensemble"):
        _run("--model", "bicubic", "--data", photos, "--self-ensemble")
    with pytest.raises(ValueError, match="2 are to be evaluated"):
        _run("--model", weights, "--model", "bicubic", "--data", photos, "--sheet", tmp_path / "sheet.png")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        _run("--model", "bicubic", "--data", tmp_path / "nowhere")
