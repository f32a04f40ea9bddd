# SPDX-License-Identifier: Apache-2.0
"""The weights that ship: worth their name, and saying where they come from."""

from __future__ import annotations

import csv
import json
import math
import shutil
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path

import hard_images
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from torch import Tensor

import ditn
from ditn import CheckpointError
from ditn.commands.evaluate import evaluate, upscaler
from ditn.model import checkpoint
from ditn.training.recipe import Recipe

WEIGHTS = Path(ditn.__file__).parent / "weights"
RECIPES = Path(ditn.__file__).parents[1] / "recipes"


def _metadata(name: str) -> dict[str, str]:
    with safe_open(WEIGHTS / f"{name}.safetensors", framework="pt") as file:
        facts: dict[str, str] = file.metadata()
    return facts


def _recipe(name: str) -> Recipe:
    values = tomllib.loads(_metadata(name)["recipe"])
    return Recipe(**{**values, "betas": tuple(values.get("betas", Recipe.betas))})


def test_all_ship_in_sixteen_bits() -> None:
    assert "ditn-real-x4" in ditn.models()
    for name in ditn.models():
        with safe_open(WEIGHTS / f"{name}.safetensors", framework="pt") as file:
            assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.bfloat16}  # noqa: SIM118


@pytest.mark.parametrize("name", ditn.models())
def test_beats_bicubic_by_two_decibels_and_scores_as_stated(shared: Path, name: str) -> None:
    stated = json.loads(_metadata(name)["scores"])["Set5"]
    upscale, scale = upscaler(name)
    folder = shared / "data" / "eval" / "Set5"
    degradation = _recipe(name).degradation
    mean, plain = (
        evaluate(enlarge, folder, scale, degradation=degradation).mean
        for enlarge in (upscale, upscaler("bicubic", scale=scale)[0])
    )
    # Noise and compression cannot be undone as a blur can: there, better is enough.
    assert mean.psnr_y > plain.psnr_y + (2 if degradation == "bicubic" else 0)
    assert mean.psnr_y == pytest.approx(stated["psnr_y"], abs=0.01)
    assert mean.ssim_y == pytest.approx(stated["ssim_y"], abs=0.0002)


@pytest.fixture(scope="module", params=ditn.models())
def model(request: pytest.FixtureRequest) -> ditn.DITN:
    return ditn.load(request.param)


def _enlarged(model: ditn.DITN, images: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    low = torch.stack(list(images))
    with torch.inference_mode():
        return low, torch.cat([model(part) for part in low.split(16)])


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [
        (hard_images.step_edges, -0.5, 1.5),
        (hard_images.text, -1.5, 2.5),
        (hard_images.line_art, -1.5, 2.5),
        (hard_images.pixel_art, -1.5, 2.5),
        (hard_images.patterns, -1.5, 2.5),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_stays_in_range_on_what_no_photograph_shows(
    model: ditn.DITN, kind: Callable[[], Iterable[Tensor]], low: float, high: float
) -> None:
    images, output = _enlarged(model, kind())
    assert low <= output.min().item()
    assert output.max().item() <= high
    if kind in (hard_images.text, hard_images.line_art, hard_images.pixel_art):
        scale = model.config.upscale
        interpolated = F.interpolate(images, scale_factor=scale, mode="bicubic").clamp(0, 1)
        errors = [F.avg_pool2d(o, scale).sub(images).square().mean() for o in (output.clamp(0, 1), interpolated)]
        assert errors[0] <= errors[1], "averaged back, bicubic interpolation is nearer to the image"


def test_hard_masks_stay_masks(model: ditn.DITN) -> None:
    """Alpha of 0 and 255 alone: lines, letters and single pixels."""
    masks = [next(iter(hard_images.line_art())), list(hard_images.text())[-8], list(hard_images.pixel_art())[1]]
    scale = model.config.upscale
    for mask in masks:
        alpha = (mask[0].numpy() > 0.5).astype(np.uint8) * 255
        height, width = alpha.shape
        result = ditn.Upscaler(model)(np.dstack([np.full((height, width, 3), 90, np.uint8), alpha]))[..., 3]
        interpolated = Image.fromarray(alpha).resize((width * scale, height * scale), Image.Resampling.BICUBIC)
        errors = [
            np.asarray(large).reshape(height, scale, width, scale).mean((1, 3)) - alpha
            for large in (result, interpolated)
        ]
        assert np.square(errors[0]).mean() <= np.square(errors[1]).mean()
        # The networks that exploded were 0.8 away.
        assert np.abs(errors[0]).max() <= 0.5 * 255


@pytest.mark.parametrize("name", ditn.models())
def test_says_how_it_was_made(name: str) -> None:
    facts = _metadata(name)
    assert facts["licence"] == "CC-BY-SA-4.0"
    recipe = _recipe(name)
    assert f"{recipe.model}{'-photo' * (recipe.degradation != 'bicubic')}-x{recipe.upscale}" == name
    assert int(facts["steps"]) == recipe.steps
    assert recipe.init in ("", *ditn.models())
    if RECIPES.is_dir():
        assert facts["recipe"] == (RECIPES / f"{name}.toml").read_text(encoding="utf-8")
        log = list(csv.DictReader((RECIPES / f"{name}.log.csv").open()))
        assert int(log[-1]["step"]) == recipe.steps
        assert all(math.isfinite(float(row["loss"])) for row in log)
        conditions = [""] if recipe.degradation == "bicubic" else ["-jpeg", "-photo"]
        results = RECIPES.parent / "benchmarks" / "results"
        assert all((results / f"evaluate-{name}{condition}.json").is_file() for condition in conditions)


def test_all_are_small() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) < 15e6


def test_a_changed_file_is_not_loaded_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(WEIGHTS, tmp_path / "weights")
    monkeypatch.setattr(checkpoint, "_weights", lambda: tmp_path / "weights")
    assert ditn.load("ditn-real-x4").config == ditn.DITN_Real.defaults
    path = tmp_path / "weights" / "ditn-real-x4.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"SHA-256 [0-9a-f]{64}, expected [0-9a-f]{64}: install"):
        ditn.load("ditn-real-x4")


def test_attribution_names_every_image(shared: Path) -> None:
    with (WEIGHTS / "ATTRIBUTION.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert all(row["licence"] and row["source"] for row in rows)
    images = {path.name for path in (shared / "data" / "train").rglob("*") if path.suffix in (".jpg", ".png")}
    assert images == {row["file"] for row in rows}
