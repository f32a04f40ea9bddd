# SPDX-License-Identifier: Apache-2.0
"""One command makes a finished run into weights that ship."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

import ditn
from benchmarks.report import pages, quality
from ditn.commands import cli
from ditn.training.recipe import load_recipe
from recipes import ship


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project, whose README has the table of qualities and nothing else."""
    project = tmp_path / "project"
    for folder in ("ditn/weights", "recipes", "benchmarks/results"):
        (project / folder).mkdir(parents=True)
    (project / "README.md").write_text("<!-- quality -->\n<!-- /quality -->\n")
    monkeypatch.setattr(pages, "PAGES", {"README.md": {"quality": quality.quality}})
    monkeypatch.setattr(ship, "PROJECT", project)
    monkeypatch.setattr(ship, "WEIGHTS", project / "ditn" / "weights")
    return project


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed in range(3):
        coarse = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((96, 64), Image.Resampling.BICUBIC).save(folder / f"{seed}.png")
    rows = ["file\tlicence\tsource", *(f"{seed}.png\tCC0-1.0\tdrawn\t" for seed in range(3))]
    (folder / "LICENCES.tsv").write_text("\n".join(rows))
    return folder


def _ship(monkeypatch: pytest.MonkeyPatch, pictures: Path, run: Path, *flags: str) -> None:
    arguments = [str(run), "--licences", str(pictures / "LICENCES.tsv"), "--evaluate", str(pictures), *flags]
    monkeypatch.setattr(sys, "argv", ["ship", *arguments])
    ship.main()


@pytest.mark.parametrize("degradation", ["bicubic", "jpeg"])
def test_everything_is_written(
    project: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, degradation: str
) -> None:
    flags = ["--upscale", "2", "--batch", "1", "--patch", "8", "--held-out", "3", "--minutes", "0.001", "--lr", "3e-4"]
    flags += ["--init", "ditn-real-x4", "--degradation", degradation, "--device", "cpu"]
    assert cli.main(["train", "--data", str(pictures), "--output", str(tmp_path / "run"), *flags]) == 0
    _ship(monkeypatch, pictures, tmp_path / "run", "--hardware", "an abacus")

    name = "ditn-real-x2" if degradation == "bicubic" else "ditn-real-photo-x2"
    weights = project / "ditn" / "weights" / f"{name}.safetensors"
    with safe_open(weights, framework="pt") as file:
        facts = file.metadata()
    recipe = load_recipe(project / "recipes" / f"{name}.toml")
    assert (recipe.upscale, recipe.lr, recipe.init, recipe.minutes) == (2, 3e-4, "ditn-real-x4", 0)
    assert recipe.steps == int(facts["steps"]) >= 1
    assert facts["recipe"] == (project / "recipes" / f"{name}.toml").read_text()
    start = hashlib.sha256(
        (Path(ditn.__file__).parent / "weights" / "ditn-real-x4.safetensors").read_bytes()
    ).hexdigest()
    assert f"# {start};" in facts["recipe"]
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert (weights.parent / "SHA256SUMS").read_text() == f"{digest}  {name}.safetensors\n"
    assert (weights.parent / "ATTRIBUTION.tsv").read_text().splitlines()[1] == "0.png\tCC0-1.0\tdrawn"

    # The run's own weights, rounded as they ship, by the command line.
    scores, rounded = tmp_path / "scores.json", tmp_path / "rounded.safetensors"
    ditn.save(ditn.load(tmp_path / "run" / "weights.safetensors"), rounded, dtype=torch.bfloat16)
    arguments = ["--model", str(rounded), "--data", str(pictures)]
    assert cli.main(["evaluate", *arguments, "--json", str(scores), "--degradation", degradation]) == 0
    expected = json.loads(scores.read_text())["datasets"]["pictures"]["mean"]["psnr_y"]
    stated = json.loads(facts["scores"])["pictures"]["psnr_y"]
    assert stated == pytest.approx(expected, abs=0.0006)
    rows = (project / "README.md").read_text()
    shown = float(re.search(rf"\| {name} \| x2 \| ([\d.]+) / ", rows)[1])
    assert shown == pytest.approx(stated, abs=0.0051)
    assert f"{recipe.steps} steps of 1 x 8x8 from ditn-real-x4, 0 min on an abacus |" in rows
    assert "| bicubic | x2 |" in rows
    assert re.findall("--degradation ([a-z]+)", rows) == ([] if degradation == "bicubic" else ["jpeg", "photo"])


def test_a_start_that_does_not_ship_is_refused(
    project: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ditn.save(ditn.load("ditn-real-x4"), tmp_path / "mine.safetensors")
    flags = ["--batch", "1", "--patch", "8", "--steps", "1", "--init", str(tmp_path / "mine.safetensors")]
    assert cli.main(["train", "--data", str(pictures), "--output", str(tmp_path / "run"), *flags]) == 0
    with pytest.raises(SystemExit, match=r"mine\.safetensors, which does not ship; name what ships with --init"):
        _ship(monkeypatch, pictures, tmp_path / "run")
    assert not list((project / "ditn" / "weights").iterdir())
    _ship(monkeypatch, pictures, tmp_path / "run", "--init", "ditn-real-x4")
    assert load_recipe(project / "recipes" / "ditn-real-x4.toml").init == "ditn-real-x4"
