# SPDX-License-Identifier: Apache-2.0
"""`ditn evaluate`: PSNR and SSIM of a model, or of bicubic interpolation, on folders of images.

A data set is a folder with `HR/<name>.png` and, if its low-resolution images are published,
`LR_bicubic/X<s>/<name>x<s>.png`; or simply a folder of images in high resolution, of which the low ones are then made
(see `ditn.resize`).
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ditn.checkpoint import load
from ditn.data import Pixels, list_images
from ditn.metrics import as_rgb, psnr_y, ssim_y
from ditn.resize import bicubic, crop_to_multiple, downscale
from ditn.upscale import Upscaler
from ditn_kernels import use_backend

BICUBIC = "bicubic"
Upscale = Callable[[Pixels], Pixels]


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


def upscaler(
    model: str,
    *,
    scale: int | None = None,
    ensemble: bool = False,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[Upscale, int]:
    """A function from low to high resolution, and its scale. `model` is a name or path for `ditn.load`, or "bicubic",
    which takes any scale (4 if none is named). Images are uint8 RGB [H, W, 3] or gray [H, W]; a model's output is RGB.

    Raises ValueError if `scale` is not the model's, or for an ensemble of bicubic, and what `ditn.load` raises.
    """
    if model == BICUBIC:
        if ensemble:
            raise ValueError("bicubic interpolation gains nothing from a self-ensemble; leave it out")
        factor = scale or 4
        return lambda low: bicubic(low, low.shape[0] * factor, low.shape[1] * factor), factor
    network = load(model, device=device, dtype=dtype)
    factor = network.config.upscale
    if scale not in (None, factor):
        raise ValueError(f"{model} enlarges {factor} times, not {scale} times")
    enlarge = Upscaler(network, self_ensemble=ensemble)
    return lambda low: enlarge(as_rgb(low)), factor


def evaluate(upscale: Upscale, folder: Path, scale: int) -> Result:
    """Score every image of a data set's folder. An image that cannot be scored does not stop the others.

    Raises FileNotFoundError or ValueError if there are no images.
    """
    high_folder, low_folder = folder / "HR", folder / "LR_bicubic" / f"X{scale}"
    scores, errors = [], []
    for path in list_images([high_folder if high_folder.is_dir() else folder]):
        try:
            high = crop_to_multiple(_read(path), scale)
            published = low_folder / f"{path.stem}x{scale}.png"
            low = _read_low(published, high, scale) if low_folder.is_dir() else downscale(high, scale)
            output = upscale(low)
            scores.append(Score(path.stem, psnr_y(output, high, shave=scale), ssim_y(output, high, shave=scale)))
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            errors.append(f"{path.stem}: {error}")
    return Result(folder.resolve().name, tuple(scores), tuple(errors))


def _read_low(path: Path, high: Pixels, scale: int) -> Pixels:
    low = _read(path)
    if (low.shape[0] * scale, low.shape[1] * scale) != high.shape[:2]:
        expected = f"{high.shape[1] // scale}x{high.shape[0] // scale}"
        raise ValueError(f"{path} has {low.shape[1]}x{low.shape[0]} pixels, expected {expected} at x{scale}")
    return low


def _read(path: Path) -> Pixels:
    """uint8 RGB, or gray if the file is."""
    with Image.open(path) as image:
        return np.asarray(image if image.mode == "L" else image.convert("RGB"))


def table(results: Sequence[Result]) -> str:
    """Scores per image and their means, for reading."""
    width = max(len(name) for r in results for name in ("mean", *(s.name for s in r.scores)))
    lines = []
    for result in results:
        lines.append(f"{result.dataset}: PSNR-Y (dB), SSIM-Y of {len(result.scores)} images")
        lines += [f"  {s.name:<{width}}  {s.psnr_y:6.2f}  {s.ssim_y:.4f}" for s in (*result.scores, result.mean)]
    return "\n".join(lines)


def as_json(model: str, scale: int, results: Sequence[Result]) -> str:
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
    return json.dumps({"model": model, "scale": scale, "datasets": sets}, indent=2, allow_nan=False) + "\n"


def as_csv(model: str, scale: int, results: Sequence[Result]) -> str:
    """One row for each image, and one named "mean" for each data set."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "scale", "dataset", "image", "psnr_y", "ssim_y"])
    for r in results:
        for s in (*r.scores, r.mean):
            writer.writerow([model, scale, r.dataset, s.name, f"{s.psnr_y:.4f}", f"{s.ssim_y:.6f}"])
    return text.getvalue()


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help=f'a shipped model\'s name, a file, or "{BICUBIC}"')
    parser.add_argument("--data", action="append", required=True, type=Path, metavar="FOLDER", help="may be repeated")
    parser.add_argument("--scale", type=int, choices=(2, 3, 4), help="default: the model's; 4 for bicubic")
    parser.add_argument("--self-ensemble", action="store_true", help="mean over 8 flips and rotations")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the scores there")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the scores there")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    parser.add_argument("--device", help="default: cuda if there is one, else cpu")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16", "float64"), default="float32")
    parser.add_argument("--backend", help="force one backend of ditn_kernels")


def run(args: argparse.Namespace) -> int:
    """`ditn evaluate`. 0, or 1 if an image could not be scored."""
    for path in filter(None, (args.json, args.csv)):
        if path.exists() and not args.overwrite:
            raise FileExistsError(f"{path} exists; replace it with --overwrite")
    upscale, scale = upscaler(
        args.model,
        scale=args.scale,
        ensemble=args.self_ensemble,
        device=args.device or ("cuda" if torch.cuda.is_available() else "cpu"),
        dtype=getattr(torch, args.dtype),
    )
    with use_backend(args.backend) if args.backend else nullcontext():
        results = [evaluate(upscale, folder, scale) for folder in args.data]
    print(table(results))
    for result in results:
        for error in result.errors:
            print(f"{result.dataset}: not scored: {error}", file=sys.stderr)
    for path, write in ((args.json, as_json), (args.csv, as_csv)):
        if path:
            _write(path, write(args.model, scale, results))
    return int(any(result.errors for result in results))
