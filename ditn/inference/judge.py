# SPDX-License-Identifier: Apache-2.0
"""Whether an image is clean or carries what photographs pick up on their way: compression, noise, blur.

A no-reference estimate from the pixels alone, whatever the file says: a PNG may have been a JPEG. It is made of a few
measurements with a threshold each, so that it can say what it saw. Thresholds were chosen on photographs and drawings
that are no evaluation images (`python -m benchmarks.auto --measurements FOLDER` prints what they part).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ditn.imaging.arrays import Pixels, Samples
from ditn.inference.compression import Grid, Marks, Plane, dct_basis, jpeg_grid, mosquito_noise, webp_grid
from ditn.inference.recompression import Resaved, resaved
from ditn.model.variants import Kind

# Of an image with more pixels than the tiles hold, at most so many tiles are looked at; a multiple of 8 to a side.
_SIDE, _LOOKED_AT, _BUSIEST = 72, 24, 4
_RANGE = {"uint8": 1.0, "uint16": 257.0}

_MIN_BLOCKS = 6  # to see a grid in
_FEW_BLOCKS = 16  # with fewer, clipped ones are better than none
_JPEG_QUALITY = 82  # above which undoing compression takes more than it gives
_RESAVED = 0.8  # of the change at a finer quality; 1.0 where nothing shows
_WEBP_STEP = 24.0  # levels: about quality 60
_SPECKLE, _MIN_AROUND = 0.08, 100  # share of the pixels around drawn edges; pixels to see it on
# Levels of luma; 6.5 come from 9 to 10 in each colour, from where on denoising gains more than it takes.
_NOISE, _MOST_NOISE = 6.5, 40.0
# Noise that was blurred, enlarged or compressed (then texture looks more like it, too) is left in middle frequencies.
_COARSE, _SMOOTHED = {False: 5.0, True: 8.0}, 0.2
_SPECTRUM = 1.25  # of noise, between middle and high frequencies: texture falls off faster
_MIN_PHOTO = 1024  # pixels, to take anything for noise or blur
_LEVELS = 0.5  # share of the levels in use: drawings have few
_BLUR = -13.0  # dB; what is blurred by a Gaussian of a pixel or more, or was enlarged three times
_CONTRASTS = 10.0  # drawn waves and gradients are as smooth, but the same everywhere

_FREQUENCY = np.add.outer(np.arange(8), np.arange(8)).reshape(-1)
_EXTENT = np.maximum.outer(np.arange(8), np.arange(8)).reshape(-1)
_BLOCK_DCT = np.kron(dct_basis(8), dct_basis(8))


@dataclass(frozen=True)
class Measurements:
    """What was seen, before anything is made of it.

    jpeg, webp    the most likely grids of each
    resaved       what saving it as JPEG changes, on the likely grid or on that of the image's corner
    around, speckle  pixels near drawn edges on pure black or white, and the share that is mosquito noise
    noise         standard deviation of luma's high frequencies in the quietest blocks, in levels
    coarse_noise  that of the middle frequencies there: the same for white noise, more for texture and for noise that
                  was compressed
    levels        share of luma's levels that occur, between the 5th and the 95th percentile
    sharpness     middle over low frequencies in blocks of much contrast, in dB; compression takes the high ones
    contrasts     energy of low frequencies, 90th over 10th percentile of the blocks
    pixels        visible pixels looked at
    """

    jpeg: Grid
    resaved: Resaved
    webp: Grid
    around: float
    speckle: float
    noise: float
    coarse_noise: float
    levels: float
    sharpness: float
    contrasts: float
    pixels: int


@dataclass(frozen=True)
class Judgement:
    """ "clean" or "photo", and why, in words for the user."""

    kind: Kind
    reason: str
    measurements: Measurements


@dataclass(frozen=True)
class _Tile:
    """Luma in 0..255, NaN where transparent or not finite; and where a colour is at the end of its range."""

    luma: Plane
    clipped: Marks


def judge(pixels: Samples) -> Judgement:
    """Judge [H, W] or [H, W, 1 to 4] samples, uint8, uint16 or float in 0..1: gray, gray and alpha, RGB, RGB and alpha.
    The same for the same pixels; images too small to tell are clean. Looks at no more than 125,000 pixels.

    Raises ValueError for another shape or no pixels, TypeError for other samples.
    """
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 2, 3, 4):
        raise ValueError(f"expected [H, W] or [H, W, 1 to 4], got shape {list(pixels.shape)}")
    if pixels.size == 0:
        raise ValueError(f"expected at least one pixel, got an image of {pixels.shape[0]}x{pixels.shape[1]}")
    if pixels.dtype.name not in _RANGE and pixels.dtype.kind != "f":
        raise TypeError(f"expected uint8, uint16 or float samples, got {pixels.dtype}")
    measured = measure(pixels)
    kind, reason = _verdict(measured)
    return Judgement(kind, reason, measured)


class _Saved(NamedTuple):
    """As what an image was saved, how that shows, and whether so coarsely that it should be undone."""

    form: str
    how: str
    coarse: bool


def _verdict(seen: Measurements) -> tuple[Kind, str]:
    saved = _saved(seen)
    if saved and saved.coarse:
        return "photo", f"{saved.form}: {saved.how}"
    if seen.around >= _MIN_AROUND and seen.speckle >= _SPECKLE:
        return "photo", f"mosquito noise on {seen.speckle:.0%} of the pixels around edges, as JPEG leaves"
    worn = _worn(seen, compressed=saved is not None)
    if worn:
        return "photo", worn
    return "clean", f"clean: {saved.form}, which is fine enough" if saved else "clean"


def _saved(seen: Measurements) -> _Saved | None:
    """Of JPEG the lowest quality that shows: an image may have been saved twice, on different grids."""
    found = []
    if _is_seen(seen.jpeg):
        found.append((seen.jpeg.quality, f"blocks of 8x8 at offset {seen.jpeg.offset}"))
    if seen.resaved.ratio <= _RESAVED:
        found.append((seen.resaved.quality, "saved at that again, it hardly changes"))
    if found:
        quality, how = min(found)
        return _Saved(f"JPEG of quality {quality} or so", how, quality <= _JPEG_QUALITY)
    webp = seen.webp
    if _is_seen(webp) and webp.step >= _WEBP_STEP / 4:
        how = f"blocks of 4x4 at offset {webp.offset}"
        return _Saved(f"WebP in steps of {webp.step:.0f} levels", how, webp.step >= _WEBP_STEP)
    return None


def _worn(seen: Measurements, *, compressed: bool) -> str:
    """The noise or blur of a photograph, in words; "" without."""
    if seen.pixels < _MIN_PHOTO or seen.levels < _LEVELS:
        return ""
    noise, coarse = seen.noise, seen.coarse_noise
    if _NOISE <= noise <= _MOST_NOISE and coarse <= _SPECTRUM * noise:
        return f"noise of about {noise:.0f} levels"
    if _COARSE[compressed] <= coarse <= _MOST_NOISE and noise <= _SMOOTHED * coarse:
        return f"noise of about {coarse:.0f} levels that was {'compressed' if compressed else 'smoothed'}"
    if seen.sharpness <= _BLUR and seen.contrasts >= _CONTRASTS:
        return f"blurred, or enlarged before: edges hold {-seen.sharpness:.0f} dB less of middle frequencies"
    return ""


def _is_seen(grid: Grid) -> bool:
    """Whether a grid stands out by more than grids do by chance, which is the more the fewer blocks there are."""
    return grid.blocks >= _MIN_BLOCKS and grid.excess >= 0.05 + 0.4 / grid.blocks**0.5


def measure(pixels: Samples) -> Measurements:
    """Measurements of [H, W, 1 to 4] samples."""
    tiles = _tiles(pixels)
    energies = np.concatenate([_block_energies(tile) for tile in tiles], axis=1)
    busy = _busiest(tiles)
    coded = [np.where(tile.clipped, np.float32(np.nan), tile.luma) for tile in busy]
    jpeg = jpeg_grid(coded)
    if jpeg.blocks < _FEW_BLOCKS:
        coded = [tile.luma for tile in busy]
        jpeg = jpeg_grid(coded)
    whole = [tile.luma for tile in busy]
    again = min((resaved(whole, offset) for offset in {jpeg.offset, (0, 0)}), key=lambda one: one.ratio)
    counts = np.array([mosquito_noise(tile.luma) for tile in busy]).reshape(-1, 2).sum(0)
    noise, coarse_noise = _noise(energies)
    sharpness, contrasts = _sharpness(energies)
    luma = np.concatenate([tile.luma[np.isfinite(tile.luma)] for tile in tiles])
    return Measurements(
        jpeg,
        again,
        webp_grid(coded),
        float(counts[0]),
        float(counts[1] / max(counts[0], 1)),
        noise,
        coarse_noise,
        _levels(luma),
        sharpness,
        contrasts,
        luma.size,
    )


def _tiles(pixels: Samples) -> list[_Tile]:
    """The image as one tile; or, of a large one, tiles spread evenly over it."""
    height, width = pixels.shape[:2]
    if height * width <= _BUSIEST * _SIDE**2:
        return [_tile(pixels[:, :])]
    rows, columns = (max(size // _SIDE, 1) for size in (height, width))
    chosen = np.unique(np.linspace(0, rows * columns - 1, _LOOKED_AT).round().astype(int))
    corners = [(place // columns * _SIDE, place % columns * _SIDE) for place in chosen]
    return [_tile(pixels[top : top + _SIDE, left : left + _SIDE]) for top, left in corners]


def _tile(pixels: Pixels) -> _Tile:
    colours, alpha = (pixels[..., :-1], pixels[..., -1]) if pixels.shape[2] in (2, 4) else (pixels, None)
    scaled = colours.astype(np.float32)
    scaled = scaled / _RANGE[pixels.dtype.name] if pixels.dtype.name in _RANGE else scaled * 255
    luma = scaled @ np.array([0.299, 0.587, 0.114] if scaled.shape[2] == 3 else [1], np.float32)
    hidden = ~np.isfinite(luma) if alpha is None else ~np.isfinite(luma) | ~(alpha > 0)
    luma[hidden] = np.nan
    return _Tile(luma, np.any((scaled <= 0) | (scaled >= 255), axis=-1))


def _busiest(tiles: Sequence[_Tile]) -> Sequence[_Tile]:
    """Tiles with edges in them, evenly from the calmer half to the busiest."""
    if len(tiles) <= _BUSIEST:
        return tiles
    across = int(tiles[0].luma.shape[1] > 1)  # along the only axis that there is
    activity = np.array([np.mean(np.abs(np.diff(tile.luma, axis=across)) > 2) for tile in tiles])
    order = np.argsort(activity, kind="stable")
    ranks = np.linspace(len(order) // 2, len(order) - 1, _BUSIEST).round().astype(int)
    return [tiles[order[rank]] for rank in ranks]


def _block_energies(tile: _Tile) -> Plane:
    """Squared coefficients [64, blocks] of the 8x8 blocks that are visible and hardly clipped."""
    height, width = (size // 8 * 8 for size in tile.luma.shape)

    def blocks(plane: npt.NDArray[Any]) -> npt.NDArray[Any]:
        parts = plane[:height, :width].reshape(height // 8, 8, width // 8, 8)
        return parts.transpose(1, 3, 0, 2).reshape(64, -1)

    samples = blocks(tile.luma)
    whole = np.isfinite(samples).all(0) & (blocks(tile.clipped).mean(0) < 1 / 8)
    return np.asarray((_BLOCK_DCT @ samples[:, whole]) ** 2)


def _noise(energies: Plane) -> tuple[float, float]:
    """Noise in high and in middle frequencies of the quietest tenth of the blocks, as N. Ponomarenko et al. estimate it
    ("An automatic approach to lossy compression of AVIRIS images", 2007)."""
    if energies.shape[1] < 16:
        return 0.0, 0.0
    low, middle, high = _bands(energies)
    quiet = np.argsort(low, kind="stable")[: max(energies.shape[1] // 10, 8)]
    return float(np.sqrt(np.median(high[quiet]))), float(np.sqrt(np.median(middle[quiet])))


def _sharpness(energies: Plane) -> tuple[float, float]:
    low, _, _ = _bands(energies)
    edges = low > 400
    if edges.sum() < 16:
        return 0.0, 0.0
    # Of the sharpest tenth: an image is blurred only if nothing in it is sharp. Along the axes, too, where edges are.
    low_extent, middle_extent = (_EXTENT >= 1) & (_EXTENT <= 2), (_EXTENT >= 4) & (_EXTENT <= 5)
    ratio = energies[middle_extent].mean(0)[edges] / energies[low_extent].mean(0)[edges]
    spread = np.quantile(low, [0.1, 0.9])
    return 10 * float(np.log10(np.quantile(ratio, 0.9) + 1e-9)), float(spread[1] / max(spread[0], 1e-3))


def _bands(energies: Plane) -> tuple[Plane, Plane, Plane]:
    low, middle, high = (_FREQUENCY >= 1) & (_FREQUENCY <= 4), (_FREQUENCY >= 5) & (_FREQUENCY <= 8), _FREQUENCY >= 9
    return energies[low].mean(0), energies[middle].mean(0), energies[high].mean(0)


def _levels(luma: Plane) -> float:
    if not luma.size:
        return 0.0
    counts = np.bincount(luma.clip(0, 255).round().astype(np.intp), minlength=256)
    low, high = np.searchsorted(np.cumsum(counts), np.array([0.05, 0.95]) * luma.size)
    return float((counts[low : high + 1] > 0).mean())
