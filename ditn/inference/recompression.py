# SPDX-License-Identifier: Apache-2.0
"""The quality that an image was saved at as JPEG, from how little saving it once more changes.

Coefficients that are multiples of a step stay as they are when they are rounded to that step again; a finer step, which
does not divide it, moves them more (H. Farid, "Exposing digital forgeries from JPEG ghosts", IEEE Transactions on
Information Forensics and Security 4, 2009). Of any other image a finer step moves less. Unlike the zeros that
`compression` counts, this survives clipping, which hides the quantisation of text on white paper.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from ditn.inference.compression import Plane

_QUALITIES = range(24, 93, 4)
_ACROSS, _ROWS = 16, 8  # blocks of the picture that is saved
_CONTRAST = 16  # levels; smooth gradients are rounded to much or to little by chance
# Squared levels: less than that is rounding. And a difference that is no chance either.
_ROUNDING, _CLEAR = 0.02, 0.7


class Resaved(NamedTuple):
    """`quality`: libjpeg's, of those tried the one that saving changes least at, compared with all finer ones; `ratio`:
    the mean squared change there over the largest at a finer quality, below 1. NOTHING, whose ratio is 1, where nothing
    says that it was a JPEG."""

    quality: int
    ratio: float


NOTHING = Resaved(100, 1.0)


def resaved(tiles: Sequence[Plane], offset: tuple[int, int]) -> Resaved:
    """Of blocks on the grid at `offset` (x, y), of luma [h, w] in 0..255. Up to 128 blocks are saved, which all differ
    and have some contrast; none that holds a NaN."""
    blocks = _blocks(tiles, offset)
    rows = min(len(blocks) // _ACROSS, _ROWS)
    if not rows:
        return NOTHING
    chosen = blocks[np.linspace(0, len(blocks) - 1, rows * _ACROSS).round().astype(int)].reshape(rows, _ACROSS, 8, 8)
    picture = np.ascontiguousarray(chosen.transpose(0, 2, 1, 3)).reshape(rows * 8, _ACROSS * 8)
    changes = [_change(picture, quality) for quality in _QUALITIES]
    best = NOTHING
    for number, quality in enumerate(_QUALITIES[:-1]):
        finer = max(changes[number + 1 :])
        ratio = (changes[number] + _ROUNDING) / (finer + _ROUNDING)
        if ratio < best.ratio and finer - changes[number] >= _CLEAR:
            best = Resaved(quality, ratio)
    return best


def _blocks(tiles: Sequence[Plane], offset: tuple[int, int]) -> npt.NDArray[np.uint8]:
    left, top = offset
    found = [np.empty((0, 64), np.float32)]
    for tile in tiles:
        height, width = ((size - start) // 8 for size, start in zip(tile.shape, (top, left), strict=True))
        if min(height, width) > 0:
            whole = tile[top : top + 8 * height, left : left + 8 * width]
            found.append(whole.reshape(height, 8, width, 8).transpose(0, 2, 1, 3).reshape(-1, 64))
    samples = np.concatenate(found)
    samples = samples[np.isfinite(samples).all(axis=1)].round().clip(0, 255)
    samples = samples[np.ptp(samples, axis=1) >= _CONTRAST]
    # What a drawing repeats is rounded by the same amount each time, which at some quality is nothing.
    return np.unique(samples.astype(np.uint8), axis=0)


def _change(picture: npt.NDArray[np.uint8], quality: int) -> float:
    """Mean squared difference, but for the blocks' means: a flat block says nothing."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "jpeg", quality=quality)
    with Image.open(file) as decoded:
        moved = np.asarray(decoded, np.float32) - picture
    moved = moved.reshape(picture.shape[0] // 8, 8, _ACROSS, 8)
    return float(np.square(moved - moved.mean((1, 3), keepdims=True)).mean())
