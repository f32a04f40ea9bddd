# SPDX-License-Identifier: Apache-2.0
"""Traces of lossy compression in pixels alone: the grid of the block transform, and how coarsely it was quantised.

JPEG rounds the coefficients of an 8x8 DCT (ITU-T T.81) to multiples of a step, WebP those of a 4x4 one (RFC 6386). On
the encoder's grid most coefficients are therefore nearly zero, and the rest at least a step away; on any other grid
they are not. "Nearly" zero: decoding rounds to whole levels, which leaves about 0.3 of noise in each coefficient. Exact
zeros come from drawn patterns, which have grids of their own, and from blocks that vary in one direction only; they
count for nothing, and a block with many of them is left out.

Tiles are luma [h, w] in 0..255 and lie at multiples of 8 pixels in their image. A NaN is a pixel that says nothing,
and a block with one is left out: where decoding clipped at black or white, quantisation can no longer be seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

Plane = npt.NDArray[np.float32]
Marks = npt.NDArray[np.bool_]

_EXACT, _ZERO = 0.02, 1.0  # levels; a coefficient between them is a zero that went through rounding
_LIVE = 4.0  # levels; a block without any such coefficient says nothing
# Of WebP: the steps that are tried, in levels, on so many coefficients, if a grid stands out at all.
_STEPS, _TRIED, _SUSPECT = np.arange(3, 60, 0.5, np.float32), 1000, 0.04

# Luminance quantisation of T.81, table K.1, first five frequencies of each direction: quality 50 of libjpeg.
_QUALITY_50 = np.array(
    [[16, 11, 10, 16, 24], [12, 12, 14, 19, 26], [14, 13, 16, 24, 40], [14, 17, 22, 29, 51], [18, 22, 37, 56, 68]],
    np.float32,
)


@dataclass(frozen=True)
class Grid:
    """The grid that stands out most among those of all offsets.

    offset  (x, y) of the first whole block, in pixels
    excess  share of coefficients that are nearly zero, less the median over all offsets
    blocks  the number of blocks that this was seen in
    step    what the other coefficients are multiples of (0: unknown), of JPEG in steps of quality 50, of WebP in levels
    """

    offset: tuple[int, int]
    excess: float
    blocks: int
    step: float

    @property
    def quality(self) -> int:
        """libjpeg's quality, 1 to 100, whose luminance table comes nearest to JPEG's step. Above 85 it is too low: few
        coefficients are then as small as a step."""
        scale = 100 * max(self.step, 0.01)
        return round(min(max(100 - scale / 2 if scale <= 100 else 5000 / scale, 1), 100))


def jpeg_grid(tiles: Sequence[Plane]) -> Grid:
    """JPEG's grid of 8x8. In 4:2:0 it is that of luma all the same; chroma's blocks of 16x16 lie on it."""
    grid, sizes = _most_zeros(tiles, 8, np.arange(5))
    ratios = sizes / _QUALITY_50.reshape(-1)[1:, None]
    ratios = ratios[sizes > 1.5 * _ZERO]
    # The smallest that is not zero, but for some that rounding or clipping put there.
    return Grid(*grid, float(np.quantile(ratios, 0.2)) if ratios.size else 0.0)


def webp_grid(tiles: Sequence[Plane]) -> Grid:
    """WebP's grid of 4x4. What it quantises is the difference from a prediction; but the usual predictions are constant
    along rows or columns or sums of such, so that frequencies in both directions are the difference's alone."""
    grid, sizes = _most_zeros(tiles, 4, np.arange(1, 4))
    coefficients = sizes[sizes > _LIVE / 2]
    coefficients = coefficients[:: len(coefficients) // _TRIED + 1, None]
    if len(coefficients) < 16 or grid[1] < _SUSPECT:
        return Grid(*grid, 0.0)
    counted = coefficients >= _STEPS / 2
    # Between the mean, which favours steps that few coefficients reach, and the sum's significance, which favours small
    # ones: what smoothing across blocks leaves behind is small, too.
    fit = (np.cos(coefficients * (2 * np.pi / _STEPS)) * counted).sum(0) / np.maximum(counted.sum(0), 10) ** 0.75
    return Grid(*grid, float(_STEPS[fit.argmax()]))


def mosquito_noise(luma: Plane) -> tuple[float, float]:
    """The speckle that JPEG leaves around drawings on pure white or black, where clipping hides its zeros.

    Returns the number of pixels 4 to 7 away from anything that parts from the ground by over 40 levels, where neither
    antialiasing nor a resampling kernel reaches; and how many of them are speckled, a little off the ground beside a
    pixel of it. On the ground with more speckle of the two, if it covers a third of the tile; else 0.
    """
    return max((_speckled(ground) for ground in (255 - luma, luma)), key=lambda counts: counts[1])


def _speckled(off: Plane) -> tuple[float, float]:
    pure = off <= 0.5
    if pure.mean() < 1 / 3:
        return 0.0, 0.0
    far = off > 40
    near = _spread(far, 3)
    around = _spread(near, 4) & ~near
    speckle = around & _spread(pure, 1) & (off > 2.5) & (off <= 40)
    return float(around.sum()), float(speckle.sum())


def _most_zeros(
    tiles: Sequence[Plane], side: int, frequencies: npt.NDArray[np.intp]
) -> tuple[tuple[tuple[int, int], float, int], Plane]:
    """Offset, excess and blocks of a `Grid`, and the sizes of its coefficients [F, blocks], without the mean."""
    zeros, blocks = np.zeros((side, side)), np.zeros((side, side))
    transformed = []
    for tile in tiles:
        height, width = ((size - side + 1) // side * side for size in tile.shape)
        if min(height, width) <= 0:
            continue
        sizes = np.abs(block_dct(tile[: height + side - 1, : width + side - 1], side, frequencies))
        sizes = sizes[1:] if frequencies[0] == 0 else sizes
        exact = (sizes <= _EXACT).sum(axis=0, dtype=np.int8)
        live = (sizes.max(axis=0) > _LIVE) & (exact <= len(sizes) // 2)
        nearly = ((sizes > _EXACT) & (sizes < _ZERO)).sum(axis=0, dtype=np.int8)
        zeros += _by_offset(nearly * live, side)
        blocks += _by_offset(live, side)
        transformed.append((sizes, live))
    if not transformed:
        return ((0, 0), 0.0, 0), np.zeros((len(frequencies) ** 2 - (frequencies[0] == 0), 0), np.float32)
    share = zeros / np.maximum(blocks, 1) / len(transformed[0][0])
    top, left = divmod(int(share.argmax()), side)
    on_grid = (slice(top, None, side), slice(left, None, side))
    excess = float(share[top, left] - np.median(share))
    sizes = np.concatenate([sizes[:, *on_grid][:, live[on_grid]] for sizes, live in transformed], axis=1)
    return ((left, top), excess, int(blocks[top, left])), sizes


def block_dct(tile: Plane, side: int, frequencies: npt.NDArray[np.intp]) -> Plane:
    """Orthonormal DCT-II of the block at every position: [h, w] -> [F * F, h - side + 1, w - side + 1], vertical
    frequencies first."""
    basis = dct_basis(side)[frequencies]
    height, width = tile.shape[0] - side + 1, tile.shape[1] - side + 1
    windows = np.stack([tile[row : row + height] for row in range(side)])
    rows = (basis @ windows.reshape(side, -1)).reshape(-1, height, tile.shape[1])
    windows = np.stack([rows[:, :, column : column + width] for column in range(side)])
    both = (basis @ windows.reshape(side, -1)).reshape(len(basis), len(basis), height, width)
    return both.swapaxes(0, 1).reshape(-1, height, width)


@cache
def dct_basis(side: int) -> Plane:
    """The orthonormal DCT-II as a matrix [frequency, sample]."""
    frequency, sample = np.mgrid[:side, :side]
    basis = np.cos(np.pi * (2 * sample + 1) * frequency / (2 * side)) * np.sqrt(2 / side)
    basis[0] /= np.sqrt(2)
    return np.asarray(basis, np.float32)


def _by_offset(counts: npt.NDArray[np.generic], side: int) -> npt.NDArray[np.int64]:
    """Sums over the blocks of each offset: [h, w] -> [side, side]."""
    height, width = counts.shape
    return np.asarray(counts.reshape(height // side, side, width // side, side).sum((0, 2), dtype=np.int64))


def _spread(marks: Marks, radius: int) -> Marks:
    """Marks grown by `radius` pixels to all sides."""
    padded = np.pad(marks, radius)
    rows = np.logical_or.reduce([padded[i : i + marks.shape[0]] for i in range(2 * radius + 1)])
    return np.asarray(np.logical_or.reduce([rows[:, i : i + marks.shape[1]] for i in range(2 * radius + 1)]))
