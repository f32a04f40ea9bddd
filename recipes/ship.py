# SPDX-License-Identifier: Apache-2.0
"""From a finished run to weights that ship: float16, with where they come from in the file, scores and attribution.

    python recipes/ship.py RUN ditn-real-x4 --licences train/LICENCES.tsv --evaluate eval/Set5 eval/Set14 eval/BSD100

writes ditn/weights/<name>.safetensors and ATTRIBUTION.tsv, recipes/<name>.log.csv (the run's log) and
benchmarks/results/evaluate-<name>.json, from which README's table is made.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import shutil
from pathlib import Path

import torch

import ditn
from ditn.evaluate import evaluate, upscaler
from ditn.scores import as_json, table

PROJECT = Path(__file__).parents[1]
LICENCE = "CC-BY-SA-4.0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of `ditn train`")
    parser.add_argument("name", help="what `ditn.load` will call the weights; recipes/<name>.toml made them")
    parser.add_argument("--licences", type=Path, required=True, help="table of the images: file, licence, source")
    parser.add_argument("--evaluate", type=Path, nargs="+", required=True, metavar="FOLDER")
    args = parser.parse_args()

    recipe, log = PROJECT / "recipes" / f"{args.name}.toml", args.run / "log.csv"
    with args.licences.open(encoding="utf-8", newline="") as file:
        images = list(csv.DictReader(file, delimiter="\t"))
    checkpoint = torch.load(args.run / "checkpoint.pt", map_location="cpu", weights_only=True)
    model = ditn.load(args.run / "weights.safetensors")

    target = PROJECT / "ditn" / "weights" / f"{args.name}.safetensors"
    facts = {
        "name": args.name,
        "recipe": recipe.read_text(encoding="utf-8"),
        "steps": str(checkpoint["step"]),
        "data": f"{len(images)} photographs of ATTRIBUTION.tsv, every {checkpoint['recipe']['held_out']}th held out",
        "licence": LICENCE,
    }
    # Twice: the scores are those of the rounded weights.
    ditn.save(model, target, dtype=torch.float16, metadata=facts, overwrite=True)
    upscale, scale = upscaler(str(target))
    results = [evaluate(upscale, folder, scale) for folder in args.evaluate]
    scores = {r.dataset: {"psnr_y": round(r.mean.psnr_y, 3), "ssim_y": round(r.mean.ssim_y, 4)} for r in results}
    ditn.save(model, target, dtype=torch.float16, metadata={**facts, "scores": json.dumps(scores)}, overwrite=True)

    attribution = io.StringIO()
    writer = csv.writer(attribution, delimiter="\t", lineterminator="\n")
    writer.writerows([["file", "licence", "source"], *([i["file"], i["licence"], i["source"]] for i in images)])
    target.with_name("ATTRIBUTION.tsv").write_text(attribution.getvalue(), encoding="utf-8")
    scores_file = PROJECT / "benchmarks" / "results" / f"evaluate-{args.name}.json"
    scores_file.write_text(as_json(args.name, scale, results), encoding="utf-8")
    shutil.copyfile(log, recipe.with_suffix(".log.csv"))
    print(table(results))


if __name__ == "__main__":
    main()
