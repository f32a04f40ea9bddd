# SPDX-License-Identifier: Apache-2.0
"""`ditn evaluate`: PSNR and SSIM of models, or of bicubic interpolation, on folders of images.

A data set is a folder with `HR/<name>.png` and, if its low-resolution images are published,
`LR_bicubic/X<s>/<name>x<s>.png`; or simply a folder of images in high resolution, of which the low ones are then made
(see `ditn.imaging.resize` and `ditn.training.degradation`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ditn.commands.arguments import ALL, BICUBIC
from ditn.commands.device import choose_device
from ditn.commands.names import identity, place_of, utf8
from ditn.commands.scores import Report, Result, Score, as_csv, as_json, overview, table
from ditn.imaging import contact_sheet
from ditn.imaging.arrays import Pixels8
from ditn.imaging.atomic import atomic_write
from ditn.imaging.files import READABLE, read_8_bit
from ditn.imaging.metrics import as_rgb, psnr_y, ssim_y
from ditn.imaging.resize import bicubic, crop_to_multiple, downscale
from ditn.inference.upscaler import Upscaler
from ditn.model.checkpoint import load, models
from ditn.training.data import list_images
from ditn.training.degradation import DEGRADE
from ditn_kernels import use_backend

Upscale = Callable[[Pixels8], Pixels8]
# Called with an image's name, its low and high resolution and the output.
Observe = Callable[[str, Pixels8, Pixels8, Pixels8], None]


def upscaler(
    model: str,
    *,
    scale: int | None = None,
    ensemble: bool = False,
    device: torch.device | str = "cpu",
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
    # What is scored is the network, whatever it does.
    enlarge = Upscaler(network, self_ensemble=ensemble, guard="off")
    return lambda low: enlarge(as_rgb(low)), factor


def evaluate(
    upscale: Upscale, folder: Path, scale: int, *, degradation: str = "bicubic", observe: Observe | None = None
) -> Result:
    """Score every image of a data set's folder and show each to `observe`. An image that cannot be scored does not stop
    the others. With one of DEGRADE all low-resolution images are made, each always the same.

    Raises FileNotFoundError or ValueError if there are no images.
    """
    high_folder, low_folder = folder / "HR", folder / "LR_bicubic" / f"X{scale}"
    scores, errors = [], []
    for number, path in enumerate(list_images([high_folder if high_folder.is_dir() else folder])):
        try:
            high = crop_to_multiple(read_8_bit(path), scale)
            if degrade := DEGRADE.get(degradation):
                low = degrade(as_rgb(high), scale, np.random.default_rng(number))
            elif low_folder.is_dir():
                low = _read_low(low_folder / f"{path.stem}x{scale}.png", high, scale)
            else:
                low = downscale(high, scale)
            output = upscale(low)
            scores.append(Score(path.stem, psnr_y(output, high, shave=scale), ssim_y(output, high, shave=scale)))
            if observe:
                observe(path.stem, low, high, output)
        except (OSError, ValueError) as error:
            errors.append(f"{path.stem}: {error}")
    return Result(folder.resolve().name, tuple(scores), tuple(errors))


def _read_low(path: Path, high: Pixels8, scale: int) -> Pixels8:
    low = read_8_bit(path)
    if (low.shape[0] * scale, low.shape[1] * scale) != high.shape[:2]:
        expected = f"{high.shape[1] // scale}x{high.shape[0] // scale}"
        raise ValueError(f"{path} has {low.shape[1]}x{low.shape[0]} pixels, expected {expected} at x{scale}")
    return low


class _Sheet:
    """Rows of the comparison sheet: the first images of each data set."""

    def __init__(self, model: str, scale: int, images: int) -> None:
        self._caption, self._scale, self._images = Path(model).name, scale, images
        self._rows: list[Image.Image] = []

    def of_dataset(self) -> Observe:
        end = len(self._rows) + self._images

        def observe(name: str, low: Pixels8, high: Pixels8, output: Pixels8) -> None:
            if len(self._rows) < end:
                panels = {}
                for who, what in ((BICUBIC, bicubic(low, *high.shape[:2])), (self._caption, output)):
                    panels[f"{who}, {psnr_y(what, high, shave=self._scale):.2f} dB"] = as_rgb(what)
                self._rows.append(contact_sheet.row(name, as_rgb(high), panels))

        return observe

    def save(self, path: Path) -> None:
        contact_sheet.save(contact_sheet.stack(self._rows), path)


def run(args: argparse.Namespace) -> int:
    """`ditn evaluate`. 0, or 1 if an image could not be scored."""
    device = choose_device(args.device)
    _check_outputs([path for path in (args.json, args.csv, args.sheet) if path], args)
    named = [one for model in args.model for one in (_shipped(args.scale) if model == ALL else [(model, args.scale)])]
    if args.sheet and len(named) != 1:
        raise ValueError(f"a sheet shows one model, {len(named)} are to be evaluated; leave --sheet out or name one")
    with use_backend(args.backend) if args.backend else nullcontext():
        # All are loaded before the first is evaluated, so that a wrong name costs no scores.
        ready = [(model, *_upscaler(model, scale, device, args)) for model, scale in named]
        compared = _Sheet(named[0][0], ready[0][2], args.sheet_images) if args.sheet else None
        reports = [
            Report(model, scale, tuple(_evaluate(upscale, scale, compared, args)), args.degradation)
            for model, upscale, scale in ready
        ]
    print(table(reports[0].results) if len(reports) == 1 else overview([report.content() for report in reports]))
    errors = [f"{r.dataset}: not scored: {error}" for report in reports for r in report.results for error in r.errors]
    print(*dict.fromkeys(errors), sep="\n", end="\n" * bool(errors), file=sys.stderr)
    for path, write in ((args.json, as_json), (args.csv, as_csv)):
        if path:
            with atomic_write(path) as temporary:
                temporary.write_bytes(utf8(write(reports)))
    if compared:
        compared.save(args.sheet)
    return int(bool(errors))


def _check_outputs(outputs: list[Path], args: argparse.Namespace) -> None:
    if len({place_of(path) for path in outputs}) < len(outputs):
        raise ValueError(f"--json, --csv and --sheet are to be different files, not {', '.join(map(str, outputs))}")
    for path in filter(Path.exists, outputs):
        if not args.overwrite:
            raise FileExistsError(f"{path} exists; replace it with --overwrite")
        images = {identity(one) for data in args.data for one in data.rglob("*") if one.suffix.lower() in READABLE}
        if identity(path) in images:
            raise ValueError(f"{path} is one of the images of --data; choose another name")


def _shipped(scale: int | None) -> list[tuple[str, int]]:
    """Every shipped model, and bicubic interpolation behind those of its scale; of one scale if that is named."""
    found = {name: load(name).config.upscale for name in models()}
    scales = [factor for factor in sorted(set(found.values())) if scale in (None, factor)]
    return [
        one for factor in scales for one in (*(pair for pair in found.items() if pair[1] == factor), (BICUBIC, factor))
    ]


def _upscaler(model: str, scale: int | None, device: torch.device, args: argparse.Namespace) -> tuple[Upscale, int]:
    return upscaler(
        model,
        scale=scale,
        ensemble=args.self_ensemble and not (model == BICUBIC and ALL in args.model),
        device=device,
        dtype=getattr(torch, args.dtype),
    )


def _evaluate(upscale: Upscale, scale: int, compared: _Sheet | None, args: argparse.Namespace) -> list[Result]:
    return [
        evaluate(
            upscale, folder, scale, degradation=args.degradation, observe=compared.of_dataset() if compared else None
        )
        for folder in args.data
    ]
