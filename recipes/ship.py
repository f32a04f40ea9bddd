# SPDX-License-Identifier: Apache-2.0
"""From a finished run to weights that ship: bfloat16, with where they come from in the file, scores and attribution.

    python -m recipes.ship RUN --licences train/LICENCES.tsv --evaluate eval/Set5 eval/Set14 eval/BSD100

The name follows from the run: ditn-real-x4, or ditn-real-photo-x4 for one that was trained on degraded photographs.
Written are ditn/weights/<name>.safetensors, ATTRIBUTION.tsv and SHA256SUMS, recipes/<name>.toml and <name>.log.csv, and
benchmarks/results/evaluate-<name>*.json, which the tables of models are made of, with bicubic's scores under the same
conditions beside them; then README and docs/. Models for photographs are scored on images of both degradations that
there are, whichever they were trained on. Files are bfloat16, which costs a thousandth of a dB and compresses better
than float16.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import hashlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import torch

import ditn
from benchmarks.report import pages
from ditn.commands.arguments import BICUBIC
from ditn.commands.evaluate import evaluate, upscaler
from ditn.commands.scores import Report, Result, as_json, table
from ditn.model.variants import weights_name
from ditn.training.recipe import DEGRADATIONS, Recipe
from ditn.training.warm_start import blended

PROJECT = Path(__file__).parents[1]
WEIGHTS = PROJECT / "ditn" / "weights"
START = Path(ditn.__file__).parent / "weights"  # where `init` was found
LICENCE = "CC-BY-SA-4.0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of `ditn train`")
    parser.add_argument("--init", help="the shipped name of the weights that it started from, if the run names a file")
    parser.add_argument("--init-share", type=float, help="the recipe's init_share, decided on after the run")
    parser.add_argument("--hardware", default="CPU", help="what it was trained on, for the table (%(default)s)")
    parser.add_argument("--licences", type=Path, required=True, help="table of the images: file, licence, source")
    parser.add_argument("--evaluate", type=Path, nargs="+", required=True, metavar="FOLDER")
    args = parser.parse_args()

    checkpoint = torch.load(args.run / "checkpoint.pt", map_location="cpu", weights_only=True)
    recipe = _reproducible(Recipe(**checkpoint["recipe"]), checkpoint["step"], args.init)
    model = ditn.load(args.run / "weights.safetensors")
    if args.init_share is not None:
        if recipe.init_share:
            raise SystemExit(f"the run's weights have a share of {recipe.init_share} of {recipe.init} already")
        recipe = dataclasses.replace(recipe, init_share=args.init_share)
        model = blended(model, ditn.load(recipe.init), args.init_share)
    name = weights_name(recipe.model, recipe.upscale, recipe.degradation)
    target = WEIGHTS / f"{name}.safetensors"
    recipe_file = PROJECT / "recipes" / f"{name}.toml"
    recipe_file.write_text(_as_toml(name, recipe), encoding="utf-8")
    shutil.copyfile(args.run / "log.csv", recipe_file.with_suffix(".log.csv"))
    with args.licences.open(encoding="utf-8", newline="") as file:
        images = list(csv.DictReader(file, delimiter="\t"))
    _write_attribution(images)

    facts = {
        "name": name,
        "recipe": recipe_file.read_text(encoding="utf-8"),
        "steps": str(checkpoint["step"]),
        "hardware": args.hardware,
        "data": f"{len(images)} photographs of ATTRIBUTION.tsv, every {recipe.held_out}th held out"
        + (f"; {recipe.drawn:.0%} of the crops drawn by ditn.training.drawn" if recipe.drawn else ""),
        "licence": LICENCE,
    }
    # Twice: the scores are those of the rounded weights.
    ditn.save(model, target, dtype=torch.bfloat16, metadata=facts, overwrite=True)
    results = _evaluate(str(target), name, recipe, args.evaluate)[recipe.degradation]
    scores = {r.dataset: {"psnr_y": round(r.mean.psnr_y, 3), "ssim_y": round(r.mean.ssim_y, 4)} for r in results}
    ditn.save(model, target, dtype=torch.bfloat16, metadata={**facts, "scores": json.dumps(scores)}, overwrite=True)
    write_checksums(WEIGHTS)
    bicubic = weights_name(BICUBIC, recipe.upscale)
    if not all(_scores_file(bicubic, degradation).exists() for degradation in _conditions(recipe)):
        _evaluate(BICUBIC, bicubic, recipe, args.evaluate)
    pages.main([], PROJECT)
    print(table(results))


def _reproducible(recipe: Recipe, steps: int, init: str | None) -> Recipe:
    """The recipe as someone else can follow it: by steps, from weights that ship."""
    init = init or recipe.init
    if init and init not in ditn.models():
        raise SystemExit(f"the run started from {init}, which does not ship; name what ships with --init")
    return dataclasses.replace(recipe, steps=steps, minutes=0.0, init=init)


def _as_toml(name: str, recipe: Recipe) -> str:
    """Every field that is not the default. JSON's numbers, strings, lists and booleans are TOML's."""
    lines = [f"#   ditn train recipes/{name}.toml --data PHOTOS --output RUN"]
    if recipe.init:
        # What ships under a name changes: what it is now tells which this was.
        lines += [
            f"# It went on from the {recipe.init} that shipped when it ended, SHA-256",
            f"# {_sha256(START / f'{recipe.init}.safetensors')}; it is in the history of ditn/weights.",
        ]
    for field in dataclasses.fields(Recipe):
        value = getattr(recipe, field.name)
        if value != field.default or field.name in ("model", "upscale", "steps", "batch", "patch"):
            lines.append(f"{field.name} = {json.dumps(value)}")
    return "\n".join(lines) + "\n"


def _write_attribution(images: list[dict[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerows([["file", "licence", "source"], *([i["file"], i["licence"], i["source"]] for i in images)])
    (WEIGHTS / "ATTRIBUTION.tsv").write_text(text.getvalue(), encoding="utf-8")


def _conditions(recipe: Recipe) -> list[str]:
    """The degradations under which a model of this recipe is scored."""
    return ["bicubic"] if recipe.degradation == "bicubic" else [name for name in DEGRADATIONS if name != "bicubic"]


def _evaluate(model: str, name: str, recipe: Recipe, folders: list[Path]) -> dict[str, list[Result]]:
    upscale, scale = upscaler(model, scale=recipe.upscale)
    label = BICUBIC if model == BICUBIC else name
    found = {}
    for degradation in _conditions(recipe):
        found[degradation] = [evaluate(upscale, folder, scale, degradation=degradation) for folder in folders]
        scored = Report(label, scale, tuple(found[degradation]), degradation)
        _scores_file(name, degradation).write_text(as_json([scored]), encoding="utf-8")
    return found


def _scores_file(name: str, degradation: str) -> Path:
    condition = f"-{degradation}" * (degradation != "bicubic")
    return PROJECT / "benchmarks" / "results" / f"evaluate-{name}{condition}.json"


def write_checksums(folder: Path) -> None:
    """SHA256SUMS, as sha256sum writes it, of every file of weights in the folder."""
    sums = [f"{_sha256(path)}  {path.name}" for path in folder.glob("*.safetensors")]
    (folder / "SHA256SUMS").write_text("\n".join(sorted(sums, key=lambda line: line.split()[1])) + "\n")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
