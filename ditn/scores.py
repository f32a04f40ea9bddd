# SPDX-License-Identifier: Apache-2.0
"""Scores of a model on data sets, as a table, as JSON and as CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass


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


def table(results: Sequence[Result]) -> str:
    """Scores per image and their means, for reading."""
    width = max(len(name) for r in results for name in ("mean", *(s.name for s in r.scores)))
    lines = []
    for result in results:
        lines.append(f"{result.dataset}: PSNR-Y (dB), SSIM-Y of {len(result.scores)} images")
        lines += [f"  {s.name:<{width}}  {s.psnr_y:6.2f}  {s.ssim_y:.4f}" for s in (*result.scores, result.mean)]
    return "\n".join(lines)


def as_json(model: str, scale: int, results: Sequence[Result], *, degradation: str = "bicubic") -> str:
    """Null stands for a PSNR that is infinite, and for the means of no images."""

    def fields(score: Score) -> dict[str, float | None]:
        values = {"psnr_y": score.psnr_y, "ssim_y": score.ssim_y}
        return {name: value if math.isfinite(value) else None for name, value in values.items()}

    sets = {
        r.dataset: {
            "mean": fields(r.mean),
            "images": {score.name: fields(score) for score in r.scores},
            "errors": list(r.errors),
        }
        for r in results
    }
    content = {"model": model, "scale": scale, "degradation": degradation, "datasets": sets}
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def as_csv(model: str, scale: int, results: Sequence[Result], *, degradation: str = "bicubic") -> str:
    """One row for each image, and one named "mean" for each data set."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "scale", "degradation", "dataset", "image", "psnr_y", "ssim_y"])
    for r in results:
        for s in (*r.scores, r.mean):
            writer.writerow([model, scale, degradation, r.dataset, s.name, f"{s.psnr_y:.4f}", f"{s.ssim_y:.6f}"])
    return text.getvalue()
