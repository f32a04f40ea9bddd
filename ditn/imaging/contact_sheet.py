# SPDX-License-Identifier: Apache-2.0
"""A contact sheet to judge models by: of each image the whole, and one detail of every enlargement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ditn.imaging.arrays import Pixels8
from ditn.imaging.atomic import atomic_write

_PANEL, _CAPTION, _GAP, _FONT = 240, 20, 6, 13
_FRAME = (230, 40, 40)


def most_telling(target: Pixels8, plain: Pixels8, side: int) -> tuple[int, int]:
    """Top and left of the square, on a grid of half its side, in which `plain` is furthest from `target` (squared
    error): where there is something to win."""
    error = ((target.astype(np.float64) - plain) ** 2).sum(axis=2)
    total = np.pad(error.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    tops, lefts = (np.arange(0, max(length - side, 0) + 1, max(side // 2, 1)) for length in error.shape)
    bottoms, rights = (np.minimum(starts + side, n) for starts, n in zip((tops, lefts), error.shape, strict=True))
    sums = (
        total[np.ix_(bottoms, rights)]
        - total[np.ix_(tops, rights)]
        - total[np.ix_(bottoms, lefts)]
        + total[np.ix_(tops, lefts)]
    )
    row, column = np.unravel_index(int(sums.argmax()), sums.shape)
    return int(tops[row]), int(lefts[column])


def row(name: str, target: Pixels8, enlargements: Mapping[str, Pixels8], *, side: int = 80) -> Image.Image:
    """One image: the target, then the detail of `side` pixels in each enlargement and in the target, pixels magnified.

    All are uint8 RGB of the same size; the first enlargement decides on the detail (see `most_telling`). Captions are
    the mapping's keys.
    """
    side = min(side, *target.shape[:2])
    top, left = most_telling(target, next(iter(enlargements.values())), side)
    whole = Image.fromarray(target)
    factor = _PANEL / max(whole.size)
    whole = whole.resize((round(whole.width * factor), round(whole.height * factor)), Image.Resampling.LANCZOS)
    corners = [round(value * factor) for value in (left, top, left + side - 1, top + side - 1)]
    ImageDraw.Draw(whole).rectangle(corners, outline=_FRAME, width=2)
    panels = [(name, whole)]
    for caption, pixels in {**enlargements, "original": target}.items():
        detail = Image.fromarray(pixels[top : top + side, left : left + side])
        panels.append((caption, detail.resize((_PANEL, _PANEL), Image.Resampling.NEAREST)))
    sheet = Image.new("RGB", (len(panels) * (_PANEL + _GAP) - _GAP, _PANEL + _CAPTION), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT)
    for number, (caption, panel) in enumerate(panels):
        x = number * (_PANEL + _GAP)
        draw.text((x + 2, 2), caption, fill="black", font=font)
        sheet.paste(panel, (x, _CAPTION))
    return sheet


def stack(rows: Sequence[Image.Image]) -> Image.Image:
    """Rows one below the other. Raises ValueError if there are none."""
    if not rows:
        raise ValueError("a sheet needs at least one image")
    sheet = Image.new("RGB", (max(r.width for r in rows), sum(r.height + _GAP for r in rows) - _GAP), "white")
    y = 0
    for part in rows:
        sheet.paste(part, (0, y))
        y += part.height + _GAP
    return sheet


def save(sheet: Image.Image, path: Path) -> None:
    """Write the sheet as a PNG, whole or not at all."""
    with atomic_write(path) as temporary:
        sheet.save(temporary, "png")
