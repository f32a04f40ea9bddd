# SPDX-License-Identifier: Apache-2.0
"""The models that ship: their scores, and how they were trained."""

from __future__ import annotations

import csv
from pathlib import Path

from safetensors import safe_open

from benchmarks.report.results import Content, folder, load
from ditn.commands.scores import overview
from ditn.training.recipe import load_recipe

_HEADINGS = {
    "bicubic": "",
    "jpeg": "The low-resolution images saved as JPEG or WebP, some of them twice (`--degradation jpeg`):",
    "photo": "The low-resolution images saved as JPEG, half of them blurred and noisy, too (`--degradation photo`):",
}


def at_x4(project: Path) -> str:
    """The scores alone, at x4, of clean images."""
    return overview([row for row in _rows(project) if row["scale"] == 4 and row["degradation"] == "bicubic"])


def quality(project: Path) -> str:
    """PSNR-Y and SSIM-Y of the shipped weights and of bicubic interpolation, and how they came about; of degraded
    images in tables of their own."""
    rows = _rows(project)
    blocks = []
    for degradation, heading in _HEADINGS.items():
        some = [row for row in rows if row["degradation"] == degradation]
        blocks += [heading, _scores(project, some)] if some else []
    return "\n\n".join(filter(None, blocks))


def _rows(project: Path) -> list[Content]:
    rows = [load(path) for path in sorted(folder(project).glob("evaluate-*.json"))]
    rows.sort(key=lambda row: (row["scale"], row["model"] == "bicubic", row["model"]))
    return rows


def _scores(project: Path, rows: list[Content]) -> str:
    return overview(rows, {"trained": [_training(project, row["model"]) for row in rows]})


def _training(project: Path, name: str) -> str:
    """How weights came about, from their recipe, its log and the file's metadata."""
    recipe_file = project / "recipes" / f"{name}.toml"
    if not recipe_file.exists():
        return ""
    recipe = load_recipe(recipe_file)
    with recipe_file.with_suffix(".log.csv").open(newline="") as file:
        minutes = float(list(csv.DictReader(file))[-1]["seconds"]) / 60
    with safe_open(project / "ditn" / "weights" / f"{name}.safetensors", framework="pt") as weights:
        hardware = weights.metadata().get("hardware", "CPU")
    start = f"from {recipe.init}" if recipe.init else "from an interpolation" if recipe.interpolation_start else ""
    what = f"{recipe.steps:,} steps of {recipe.batch} x {recipe.patch}x{recipe.patch}"
    return f"{what} {start}, {minutes:.0f} min on {hardware}"
