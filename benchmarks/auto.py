# SPDX-License-Identifier: Apache-2.0
"""How often `--model auto` takes which model, on pictures whose degradation is known; what a wrong choice costs, and
how long choosing takes. Writes `results/auto.json`, of which `benchmarks.report` makes docs/auto.md.

    OMP_NUM_THREADS=1 python -m benchmarks.auto [--data FOLDER] [--real FOLDER] [--every N] [--json FILE]
    python -m benchmarks.auto --measurements FOLDER | --limits FOLDER [--every N]

The pictures are the evaluation sets' (`--data`, with Set5, Set14 and BSD100 in it); high and low resolution alike are
taken as what a user might bring. Thresholds were not chosen on them but on photographs for training, of which
`--measurements` prints what `ditn.inference.judge` measures, and `--limits` which model is the better one from which
quality on.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.harness import outputs
from benchmarks.harness.degraded import DEGRADATIONS, Pixels, drawings, encoded, page, resized, shifted
from benchmarks.harness.outputs import PROJECT, RESULTS
from ditn.imaging.files import read
from ditn.imaging.metrics import as_rgb, psnr_y
from ditn.imaging.resize import crop_to_multiple, downscale
from ditn.inference.chooser import of_scale
from ditn.inference.judge import Judgement, Measurements, judge, measure
from ditn.inference.upscaler import Upscaler
from ditn.model.checkpoint import load
from ditn.model.variants import SUITED
from ditn.training.data import list_images
from ditn.training.degradation import worn

SETS = ("Set5", "Set14", "BSD100")
INPUTS = ("HR", "LR_bicubic/X2", "LR_bicubic/X3", "LR_bicubic/X4")
SCALE = 4
SIZES = ("120x80", "320x180", "1000x1000", "4000x3000")
# Labels for `worth`.
WORTH = (
    *("clean", "JPEG 30 4:20", "JPEG 50 4:20", "JPEG 75 4:20", "JPEG 80 4:20", "JPEG 85 4:20", "JPEG 95 4:20"),
    *("WebP 30", "WebP 50", "WebP 75", "noise of 5 levels", "noise of 10 levels", "noise of 15 levels"),
    *("noise of 10 levels, JPEG 75", "noise of 15 levels, JPEG 75", "blur of 1 pixels", "blur of 0.5 pixels, JPEG 75"),
    *("blur of 1 pixels, JPEG 75", "blurred, noisy, JPEG"),
)
WORTH_OF_PAGES = ("clean", "JPEG 30 4:20", "JPEG 50 4:20", "JPEG 75 4:20", "JPEG 85 4:20", "blur of 1 pixels, JPEG 75")
# For `limits`.
QUALITIES = {"jpeg": (75, 78, 80, 82, 85, 90), "webp": (50, 60, 70, 75, 80)}


def wanted(label: str) -> str:
    """The choice that is right, or "either" where opinions may differ."""
    kind, _, rest = label.partition(" ")
    if label == "blurred, noisy, JPEG":
        return "photo"
    if "levels, JPEG" in rest or "pixels, JPEG" in rest:
        return "photo" if label.startswith(("blur of 1", "blur of 2")) else "either"
    if kind in ("clean", "drawing") or label in ("blur of 0.5 pixels", "noise of 3 levels", "WebP 90"):
        return "clean"
    if kind == "JPEG" and "resized" in rest:
        return "clean" if rest.endswith(("0.5", "0.75")) else "either"
    if kind == "JPEG":
        quality = int(rest.split()[0])
        return "photo" if quality <= 80 else "clean" if quality >= 95 else "either"
    if kind == "WebP":
        return "photo" if int(rest) <= 50 else "either"
    return "photo" if label in ("noise of 15 levels", "noise of 20 levels") else "either"


def _sources(data: Path, every: int) -> Iterator[tuple[str, str, Path]]:
    """Set, kind of input and path of each picture."""
    for name in SETS:
        for kind in INPUTS:
            yield from ((name, kind, path) for path in list_images([data / name / kind])[::every])


def _read(path: Path) -> Pixels:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def confusion(data: Path, every: int) -> list[dict[str, Any]]:
    """Of each label: pictures, those that go through each model, and what was seen in how many."""
    seen: dict[str, list[Judgement]] = {label: [] for label in DEGRADATIONS}
    for number, (_, _, path) in enumerate(_sources(data, every)):
        picture = _read(path)
        for label, degrade in DEGRADATIONS.items():
            seen[label].append(judge(degrade(picture, np.random.default_rng(number))))
    for seed in range(4):
        random = np.random.default_rng(seed)
        for picture in drawings(random).values():
            # A drawing may begin anywhere, too.
            drawn = shifted(picture, random)
            seen.setdefault("drawing", []).append(judge(drawn))
            for quality in (50, 75):
                compressed = shifted(encoded(drawn, "jpeg", quality=quality), random)
                seen.setdefault(f"drawing, JPEG {quality}", []).append(judge(compressed))
    return [
        {
            "label": label,
            "wanted": wanted(label) if "drawing," not in label else "either",
            "pictures": len(found),
            **{kind: sum(one.kind == kind for one in found) for kind in SUITED},
            "seen": Counter(_what(one) for one in found if one.kind != "clean"),
        }
        for label, found in seen.items()
    ]


def _what(found: Judgement) -> str:
    return found.reason.split(" on ")[0].split(" of ")[0].split(":")[0].split(",")[0]


def losses(data: Path) -> list[dict[str, Any]]:
    """Of each clean set: how many are taken for something else, and, where the original is known, what that loses."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    models: dict[str, Upscaler] = {}
    for name, kind, path in _sources(data, 1):
        row = rows.setdefault((name, kind), {"set": name, "input": kind, "pictures": 0, "others": [], "loss_db": 0.0})
        row["pictures"] += 1
        low = _read(path)
        found = judge(low)
        if found.kind == "clean":
            continue
        row["others"].append(f"{path.stem}: {found.reason}")
        if kind.endswith(f"X{SCALE}"):
            high = _original(path)
            models = models or _models()
            clean, chosen = (psnr_y(models[k](low), high, shave=SCALE) for k in ("clean", found.kind))
            row["loss_db"] += clean - chosen
    for row in rows.values():
        row["loss_db"] = row["loss_db"] / row["pictures"] if row["input"].endswith(f"X{SCALE}") else None
    return list(rows.values())


def _models(scale: int = SCALE) -> dict[str, Upscaler]:
    return {kind: Upscaler(load(model)) for kind, model in of_scale(scale).items()}


def _original(low: Path) -> Pixels:
    """Of a picture of LR_bicubic/X4."""
    return crop_to_multiple(_read(low.parents[2] / "HR" / f"{low.stem.removesuffix(f'x{SCALE}')}.png"), SCALE)


def worth(data: Path, every: int) -> list[dict[str, Any]]:
    """PSNR-Y at x4 of what each model makes of degraded pictures whose original is known, of what `auto` takes, and of
    bicubic interpolation."""
    pairs = [(_read(path), _original(path)) for _, kind, path in _sources(data, every) if kind.endswith(f"X{SCALE}")]
    pages = [(page(size, ink), page(size, ink, SCALE)) for size, ink in ((8, 0), (11, 90), (20, 40))]
    models, rows = _models(), []
    for label in WORTH:
        rows.append({"label": label, **_scores(models, pairs, label)})
    for label in WORTH_OF_PAGES:
        rows.append({"label": f"page of text, {label}", **_scores(models, pages, label)})
    return rows


def _scores(models: dict[str, Upscaler], pairs: list[tuple[Pixels, Pixels]], label: str) -> dict[str, float]:
    """The means over pairs of low and high resolution."""
    found = []
    for number, (low, high) in enumerate(pairs):
        random = np.random.default_rng(number)
        degraded = worn(high, SCALE, random) if label == "blurred, noisy, JPEG" else DEGRADATIONS[label](low, random)
        # Some begin a few rows and columns later.
        top, left = (SCALE * (whole - part) for whole, part in zip(low.shape[:2], degraded.shape[:2], strict=True))
        large = Image.fromarray(degraded).resize((high.shape[1] - left, high.shape[0] - top), Image.Resampling.BICUBIC)
        outputs = {"bicubic": np.asarray(large), **{kind: model(degraded) for kind, model in models.items()}}
        scores = {kind: psnr_y(output, high[top:, left:], shave=SCALE) for kind, output in outputs.items()}
        found.append({**scores, "auto": scores[judge(degraded).kind]})
    return {kind: float(np.mean([one[kind] for one in found])) for kind in found[0]}


def cost(source: Pixels) -> list[dict[str, Any]]:
    """Processor time of choosing, and its share of the enlargement's by the clean model where that is soon done."""
    rows = []
    upscaler = Upscaler(load(of_scale(SCALE)["clean"]))
    for size in SIZES:
        width, height = map(int, size.split("x"))
        picture = encoded(np.asarray(Image.fromarray(source).resize((width, height))), "jpeg", quality=75)
        row: dict[str, Any] = {"size": size, "judge_s": _median_time(partial(judge, picture), 11), "share": None}
        if width * height < 1e5:
            row["share"] = row["judge_s"] / _median_time(partial(upscaler, picture), 3)
        rows.append(row)
    return rows


def _median_time(call: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds + 1):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return float(np.median(times[1:]))


def real(folder: Path) -> list[dict[str, str]]:
    """What is chosen for pictures of which nothing is known."""
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".png", ".jpg")):
        judged = judge(read(path).pixels)
        found.append({"file": path.relative_to(folder).as_posix(), "kind": judged.kind, "reason": judged.reason})
    return found


def measurements(folder: Path, every: int) -> None:
    """Print quantiles of what is measured on the pictures of a folder, shrunk, for each label."""
    columns: dict[str, Callable[[Measurements], float]] = {
        "JPEG excess": lambda m: m.jpeg.excess,
        "JPEG step": lambda m: m.jpeg.step,
        "WebP excess": lambda m: m.webp.excess,
        "WebP step": lambda m: m.webp.step,
        "speckle": lambda m: m.speckle * (m.around >= 100),
        "noise": lambda m: m.noise,
        "coarse noise": lambda m: m.coarse_noise,
        "sharpness": lambda m: m.sharpness,
    }
    print(f"{'quantiles 0.02, 0.5, 0.98':26}", *(f"{name:>22}" for name in columns))
    for label, degrade in DEGRADATIONS.items():
        found = []
        for number, path in enumerate(list_images([folder])[::every]):
            for shrink in (2, 4, 8):
                found.append(measure(degrade(resized(_read(path), 1 / shrink), np.random.default_rng(number))))
        cells = (np.quantile([get(one) for one in found], [0.02, 0.5, 0.98]) for get in columns.values())
        print(f"{label:26}", *(f"{low:7.2f}{middle:7.2f}{high:8.2f}" for low, middle, high in cells), flush=True)


def limits(folder: Path, every: int) -> None:
    """Print by how many dB of PSNR-Y the model for photographs is better than the clean one on pictures of a folder,
    made smaller and saved, for each scale and quality."""
    pictures = [_read(path) for path in list_images([folder])[::every]]
    for scale in (2, 3, 4):
        models = _models(scale)
        pairs = [(downscale(high, scale), high) for high in (crop_to_multiple(one, scale) for one in pictures)]
        for form, qualities in QUALITIES.items():
            for quality in qualities:
                gains = []
                for low, high in pairs:
                    saved = encoded(low, form, quality=quality)
                    clean, photo = (psnr_y(models[kind](saved), high, shave=scale) for kind in ("clean", "photo"))
                    gains.append(photo - clean)
                print(f"x{scale} {form} {quality}: {np.mean(gains):+.2f} dB, {len(gains)} pictures", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = PROJECT.parent / "shared" / "data"
    parser.add_argument("--data", type=Path, default=shared / "eval", help="(%(default)s)")
    parser.add_argument("--real", type=Path, default=shared / "real", help="(%(default)s)")
    parser.add_argument(
        "--every", type=int, default=3, metavar="N", help="degrade only every Nth picture (%(default)s)"
    )
    parser.add_argument("--measurements", type=Path, metavar="FOLDER", help="print what is measured there, no more")
    parser.add_argument("--limits", type=Path, metavar="FOLDER", help="print which model is better there, no more")
    parser.add_argument("--json", type=outputs.file, default=RESULTS / "auto.json")
    args = parser.parse_args()
    if args.measurements:
        measurements(args.measurements, args.every)
        return 0
    if args.limits:
        limits(args.limits, args.every)
        return 0
    result = {
        "threads": torch.get_num_threads(),
        "confusion": confusion(args.data, args.every),
        "clean": losses(args.data),
        "worth": worth(args.data, args.every),
        "cost": cost(as_rgb(_read(next(_sources(args.data, 1))[2]))),
        "real": real(args.real) if args.real.is_dir() else [],
    }
    args.json.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{args.json}: its tables are docs/auto.md's after `python -m benchmarks.report`")
    return 0


if __name__ == "__main__":
    sys.exit(main())
