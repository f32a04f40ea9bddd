# SPDX-License-Identifier: Apache-2.0
"""Pictures with a label: what photographs go through on their way, and drawings. For `benchmarks.auto` and tests."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from ditn.imaging.resize import crop_to_multiple
from ditn.training.degradation import worn

Pixels = npt.NDArray[np.uint8]
Random = np.random.Generator
# From a clean picture [H, W, 3] to a degraded one.
Degrade = Callable[[Pixels, Random], Pixels]


def encoded(picture: Pixels, form: str, **options: int) -> Pixels:
    """Through a lossy file and back."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, form, **options)
    with Image.open(file) as decoded:
        return np.asarray(decoded.convert("RGB"))


def shifted(picture: Pixels, random: Random) -> Pixels:
    """Without up to 7 rows and columns, so that a grid of blocks may begin anywhere."""
    top, left = random.integers(0, 8, 2)
    return picture[top:, left:]


def resized(picture: Pixels, factor: float) -> Pixels:
    image = Image.fromarray(picture)
    size = (max(round(image.width * factor), 1), max(round(image.height * factor), 1))
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC))


def _jpeg(quality: int, subsampling: int) -> Degrade:
    return lambda p, random: shifted(encoded(p, "jpeg", quality=quality, subsampling=subsampling), random)


def _resized_jpeg(quality: int, factor: float) -> Degrade:
    return lambda p, random: resized(encoded(p, "jpeg", quality=quality), factor)


def _webp(quality: int) -> Degrade:
    return lambda p, random: shifted(encoded(p, "webp", quality=quality), random)


def _noise(sigma: float) -> Degrade:
    return lambda p, random: (p + random.normal(0, sigma, p.shape)).round().clip(0, 255).astype(np.uint8)


def _blur(sigma: float) -> Degrade:
    return lambda p, random: np.asarray(Image.fromarray(p).filter(ImageFilter.GaussianBlur(sigma)))


def _saved(degrade: Degrade) -> Degrade:
    return lambda p, random: _jpeg(75, 2)(degrade(p, random), random)


DEGRADATIONS: dict[str, Degrade] = {
    "clean": lambda p, random: p,
    **{f"JPEG {q} 4:{'20' if s else '44'}": _jpeg(q, s) for q in (30, 50, 65, 75, 80, 85, 90, 95) for s in (2, 0)},
    **{f"JPEG {q}, resized by {f}": _resized_jpeg(q, f) for q in (50, 75) for f in (0.5, 0.75, 1.5, 2)},
    **{f"WebP {q}": _webp(q) for q in (30, 50, 75, 90)},
    **{f"noise of {s} levels": _noise(s) for s in (3, 5, 10, 15, 20)},
    **{f"blur of {s} pixels": _blur(s) for s in (0.5, 1, 2)},
    **{f"noise of {s} levels, JPEG 75": _saved(_noise(s)) for s in (10, 15)},
    **{f"blur of {s} pixels, JPEG 75": _saved(_blur(s)) for s in (0.5, 1, 2)},
    # All of these at random, as Real-ESRGAN does it.
    "blurred, noisy, JPEG": lambda p, random: worn(crop_to_multiple(p, 2), 2, random),
}


def page(size: int, ink: int, larger: int = 1) -> Pixels:
    """A page full of text on white paper, 300x200 and `larger` times as large, of letters `size` pixels high; from one
    four times as large."""
    image = Image.new("L", (1200, 800), 255)
    draw = ImageDraw.Draw(image)
    for line in range(0, 800, 5 * size):
        text = "Pack my box with five dozen liquor jugs, 0123456789"[line % 40 :]
        draw.text((4 * size, line), text, ink, ImageFont.load_default(4 * size))
    return np.asarray(image.resize((300 * larger, 200 * larger), Image.Resampling.BICUBIC).convert("RGB"))


def drawings(random: Random) -> dict[str, Pixels]:
    """Clean drawings [H, W, 3] by name: text, tables, line art, checkers, dithers, pixel art, a window, gradients."""
    made: dict[str, npt.NDArray[Any]] = {
        f"text {size}{'' if antialiased else ' 1 bit'}{' inverted' if ink else ''}": _text(size, antialiased, ink)
        for size in (8, 11, 16, 30)
        for antialiased in (True, False)
        for ink in (0, 255)
    }
    y, x = np.mgrid[:130, :170]
    for period in (1, 2, 3, 4, 7, 8, 16, 24):
        made[f"checker {period}"] = np.where((y // period + x // period) % 2, 230, 40)
        made[f"stripes {period}"] = np.where(x // period % 2, 255, 0)
    for period in (8, 10, 16, 20):
        made[f"table {period}"] = np.where((y % period == 0) | (x % period == 0), 90, 255)
    ramp = np.linspace(0, 255, 256)[None].repeat(128, 0)
    for side in (2, 4, 8):
        threshold = np.tile((_bayer(side) + 0.5) * 256 / side**2, (128 // side, 256 // side))
        made[f"ordered dither {side}"] = np.where(ramp > threshold, 255, 0)
    made["random dither"] = np.where(ramp > random.uniform(0, 255, ramp.shape), 255, 0)
    made["error diffusion"] = np.asarray(Image.fromarray(ramp.astype(np.uint8)).convert("1").convert("L"))
    made["binary noise"] = random.integers(0, 2, (100, 100)) * 255
    made["scan of 1 bit"] = np.where(_text(20) + random.normal(0, 40, (150, 200)) > 127, 255, 0)
    made["gradient"], made["faint gradient"] = ramp, ramp / 5 + 100
    made["waves"] = 127 + 100 * np.sin(np.hypot(y - 60, x - 80) / 2)
    for side in (4, 8):
        made[f"QR of {side} pixels"] = np.kron(random.integers(0, 2, (25, 25)), np.ones((side, side))) * 255
    palette = random.integers(0, 256, (8, 3))
    sprite = palette[random.integers(0, 8, (48, 48))]
    for side in (1, 2, 3, 4, 8, 16):
        made[f"pixel art {side}"] = sprite.repeat(side, 0).repeat(side, 1)[:200, :200]
    made["window"], made["line art"] = _window(random), _lines(random)
    return {name: _as_rgb(picture) for name, picture in made.items()}


def _as_rgb(picture: npt.NDArray[np.generic]) -> Pixels:
    levels = np.asarray(picture, np.float64).round().clip(0, 255).astype(np.uint8)
    return levels if levels.ndim == 3 else levels[..., None].repeat(3, 2)


def _text(size: int, antialiased: bool = True, ink: int = 0) -> Pixels:
    image = Image.new("L", (200, 150), 255 - ink)
    draw = ImageDraw.Draw(image)
    draw.fontmode = "L" if antialiased else "1"
    for line, top in enumerate(range(3, 150, int(size * 1.3) + 1)):
        draw.text((4, top), f"{line}: the quick brown fox {line * 7919}", fill=ink, font=ImageFont.load_default(size))
    return np.asarray(image)


def _bayer(side: int) -> npt.NDArray[np.int64]:
    if side == 1:
        return np.zeros((1, 1), np.int64)
    half = 4 * _bayer(side // 2)
    return np.block([[half, half + 2], [half + 3, half + 1]])


def _window(random: Random) -> Pixels:
    image = Image.new("RGB", (300, 220), (236, 240, 241))
    draw = ImageDraw.Draw(image)
    for _ in range(9):
        left, top, width, height = (int(n) for n in random.integers((0, 0, 30, 20), (220, 150, 120, 80)))
        colour = tuple(int(n) for n in random.integers(0, 256, 3))
        draw.rounded_rectangle((left, top, left + width, top + height), 6, fill=colour, outline=(0, 0, 0))
        draw.text((left + 5, top + 4), "Save as", fill=(255, 255, 255), font=ImageFont.load_default(11))
    return np.asarray(image)


def _lines(random: Random) -> Pixels:
    image = Image.new("RGB", (1200, 880), "white")
    draw = ImageDraw.Draw(image)
    for _ in range(60):
        points = [(int(x), int(y)) for x, y in random.integers(0, (1200, 880), (3, 2))]
        draw.line(points, fill=tuple(int(n) for n in random.integers(0, 256, 3)), width=int(random.integers(3, 14)))
    return np.asarray(image.resize((300, 220), Image.Resampling.LANCZOS))
