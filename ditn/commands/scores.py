# SPDX-License-Identifier: Apache-2.0
"""Scores of models on data sets, as a table, as JSON and as CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Score:
    """PSNR-Y in dB and SSIM-Y of one image, or their means over a data set."""

    name: str
    psnr_y: float
    ssim_y: float


@dataclass(frozen=True)
class Result:
    """A data set's scores and, for each image that could not be scored, the reason."""

    dataset: str
    scores: tuple[Score, ...]
    errors: tuple[str, ...]

    @property
    def mean(self) -> Score:
        """Not a number if nothing was scored."""
        if not self.scores:
            return Score("mean", math.nan, math.nan)
        psnr, ssim = (
            sum(values) / len(self.scores) for values in zip(*((s.psnr_y, s.ssim_y) for s in self.scores), strict=True)
        )
        return Score("mean", psnr, ssim)


@dataclass(frozen=True)
class Report:
    """A model's scores on data sets, and how their low-resolution images came about."""

    model: str
    scale: int
    results: tuple[Result, ...]
    degradation: str = "bicubic"

    def content(self) -> dict[str, Any]:
        """For JSON. None stands for a PSNR that is infinite, and for the means of no images."""
        sets = {
            r.dataset: {
                "mean": _fields(r.mean),
                "images": {score.name: _fields(score) for score in r.scores},
                "errors": list(r.errors),
            }
            for r in self.results
        }
        return {"model": self.model, "scale": self.scale, "degradation": self.degradation, "datasets": sets}


def _fields(score: Score) -> dict[str, float | None]:
    values = {"psnr_y": score.psnr_y, "ssim_y": score.ssim_y}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def table(results: Sequence[Result]) -> str:
    """Scores per image and their means, for reading."""
    width = max(len(name) for r in results for name in ("mean", *(s.name for s in r.scores)))
    lines = []
    for result in results:
        lines.append(f"{result.dataset}: PSNR-Y (dB), SSIM-Y of {len(result.scores)} images")
        lines += [f"  {s.name:<{width}}  {s.psnr_y:6.2f}  {s.ssim_y:.4f}" for s in (*result.scores, result.mean)]
    return "\n".join(lines)


def overview(contents: Sequence[Mapping[str, Any]], notes: Mapping[str, Sequence[str]] | None = None) -> str:
    """The means of several reports' contents as a Markdown table: a row for each, a column for each data set. `notes`
    are further columns."""
    notes = notes or {}
    sets = list(dict.fromkeys(name for content in contents for name in content["datasets"]))
    lines = [f"| {' | '.join(['model', 'scale', *sets, *notes])} |", "|---" * (2 + len(sets) + len(notes)) + "|"]
    for number, content in enumerate(contents):
        means = [content["datasets"].get(name, {}).get("mean") for name in sets]
        cells = [
            content["model"],
            f"x{content['scale']}",
            *map(_mean, means),
            *(note[number] for note in notes.values()),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean(mean: Mapping[str, float | None] | None) -> str:
    if not mean or mean["psnr_y"] is None or mean["ssim_y"] is None:
        return ""
    return f"{mean['psnr_y']:.2f} / {mean['ssim_y']:.4f}"


def as_json(reports: Sequence[Report]) -> str:
    """An object, or a list of them for several reports."""
    contents = [report.content() for report in reports]
    return json.dumps(contents[0] if len(contents) == 1 else contents, indent=2, allow_nan=False) + "\n"


def as_csv(reports: Sequence[Report]) -> str:
    """One row for each image, and one named "mean" for each data set."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "scale", "degradation", "dataset", "image", "psnr_y", "ssim_y"])
    for report in reports:
        for r in report.results:
            for s in (*r.scores, r.mean):
                about = [report.model, report.scale, report.degradation]
                writer.writerow([*about, r.dataset, s.name, f"{s.psnr_y:.4f}", f"{s.ssim_y:.6f}"])
    return text.getvalue()
