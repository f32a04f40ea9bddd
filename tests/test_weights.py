# SPDX-License-Identifier: Apache-2.0
"""The weights that ship: worth their name, and saying where they come from."""

from __future__ import annotations

import csv
import json
import math
import shutil
import tomllib
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import ditn
from ditn import CheckpointError, checkpoint
from ditn.evaluate import evaluate, upscaler
from ditn.recipe import Recipe

WEIGHTS = Path(ditn.__file__).parent / "weights"
RECIPES = Path(ditn.__file__).parents[1] / "recipes"


def _metadata(name: str) -> dict[str, str]:
    with safe_open(WEIGHTS / f"{name}.safetensors", framework="pt") as file:
        facts: dict[str, str] = file.metadata()
    return facts


def _recipe(name: str) -> Recipe:
    values = tomllib.loads(_metadata(name)["recipe"])
    return Recipe(**{**values, "betas": tuple(values.get("betas", Recipe.betas))})


def test_something_ships_in_half_precision() -> None:
    assert "ditn-real-x4" in ditn.models()
    for name in ditn.models():
        with safe_open(WEIGHTS / f"{name}.safetensors", framework="pt") as file:
            assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float16}  # noqa: SIM118


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


@pytest.mark.parametrize("name", ditn.models())
def test_says_how_it_was_made(name: str) -> None:
    facts = _metadata(name)
    assert facts["licence"] == "CC-BY-SA-4.0"
    recipe = _recipe(name)
    assert f"{recipe.model}{'-photo' * (recipe.degradation == 'photo')}-x{recipe.upscale}" == name
    assert int(facts["steps"]) == recipe.steps
    assert recipe.init in ("", *ditn.models())
    if RECIPES.is_dir():
        assert facts["recipe"] == (RECIPES / f"{name}.toml").read_text(encoding="utf-8")
        log = list(csv.DictReader((RECIPES / f"{name}.log.csv").open()))
        assert int(log[-1]["step"]) == recipe.steps
        assert all(math.isfinite(float(row["loss"])) for row in log)
        assert (RECIPES.parent / "benchmarks" / "results" / f"evaluate-{name}.json").is_file()


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
