# SPDX-License-Identifier: Apache-2.0
"""Between the planes of a film's frame and RGB, exactly: by the film's matrix, range, depth and place of its chroma.

The equations of ITU-R BT.601-7, BT.709-6 and BT.2020-2 for non-constant luminance, with the code points of ITU-T H.273,
which FFmpeg uses as well. In float32: no step but the last is rounded, while FFmpeg's swscale rounds several. Colours
outside RGB's range, which compression makes, are clamped. In numpy, on one core: the others are the network's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ditn.imaging.arrays import Pixels
from ditn.video.layout import FilmError, Layout

RGB, BT709, UNSPECIFIED, BT470BG, SMPTE170M, BT2020 = 0, 1, 2, 5, 6, 9
# The shares of red and blue in luma, by matrix.
_LUMA = {
    BT709: (0.2126, 0.0722),
    4: (0.30, 0.11),  # FCC
    BT470BG: (0.299, 0.114),
    SMPTE170M: (0.299, 0.114),
    7: (0.212, 0.087),  # SMPTE 240M
    BT2020: (0.2627, 0.0593),
}
LIMITED, FULL = 1, 2
_HDR = {16: "HDR10 (PQ)", 18: "HLG"}

Planes = Sequence[npt.NDArray[Any]]
Plane = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Colour:
    """What a frame's numbers mean, as code points of H.273: `matrix` (0 for RGB), `range` (1 limited, 2 full),
    `primaries` and `transfer`. `centred`: a chroma sample lies in the middle of the pixels that share it, as in JPEG
    and MPEG-1, not on the first of each row."""

    matrix: int = BT709
    range: int = LIMITED
    primaries: int = BT709
    transfer: int = BT709
    centred: bool = False


def understood(colour: Colour, layout: Layout, width: int, height: int) -> Colour:
    """The colour with what the film leaves open filled in by the custom: BT.709 from 1280x720 on, BT.601 below, limited
    range. Said in the output, whose size would suggest another.

    Raises FilmError for HDR, whose pictures are unlike any that the models were trained on, and for other matrices."""
    if colour.transfer in _HDR:
        raise FilmError(
            f"is {_HDR[colour.transfer]}, and the models were trained on pictures of standard range; "
            "map it to BT.709 first"
        )
    small = BT470BG if height in (288, 576) else SMPTE170M
    guess = BT709 if layout.rgb or width >= 1280 or height >= 720 else small
    matrix = RGB if layout.rgb else guess if colour.matrix in (RGB, UNSPECIFIED) else colour.matrix
    if matrix not in (RGB, *_LUMA):
        raise FilmError(f"has colours by matrix {matrix} of H.273, which is not understood")
    full = colour.range == FULL or layout.rgb or layout.name.startswith("yuvj")
    return Colour(
        matrix,
        FULL if full else LIMITED,
        primaries=guess if colour.primaries in (0, UNSPECIFIED) else colour.primaries,
        transfer=BT709 if colour.transfer in (0, UNSPECIFIED) else colour.transfer,
        centred=colour.centred,
    )


def encoded(colour: Colour, layout: Layout) -> Colour:
    """The colour of an output of that layout, whose pixels have this one. Chroma lies where decoders expect it."""
    if layout.rgb:
        return replace(colour, matrix=RGB, range=FULL, centred=False)
    if colour.matrix == RGB:
        return replace(colour, matrix=BT709, range=LIMITED, centred=False)
    return replace(colour, centred=False)


def to_rgb(planes: Planes, layout: Layout, colour: Colour) -> Pixels:
    """uint16 [H, W, bands] of a frame's planes, each [h, w]: Y, U, V; or G, B, R; or gray; and alpha."""
    values = [plane.astype(np.float32) for plane in planes]
    unit = np.float32(2**layout.depth - 1)
    alpha = [values.pop() / unit] if layout.alpha else []
    if layout.rgb:
        green, blue, red = (value / unit for value in values)
        return _to_16_bits([red, green, blue, *alpha])
    black, light, chroma = _levels(layout, colour)
    luma = (values[0] - black) / light
    if layout.gray:
        return _to_16_bits([luma, *alpha])
    height, width = luma.shape
    middle = np.float32(2 ** (layout.depth - 1))
    u, v = (_upsampled((value - middle) / chroma, layout, colour.centred)[:height, :width] for value in values[1:])
    kr, kb = map(np.float32, _LUMA[colour.matrix])
    red, blue = luma + 2 * (1 - kr) * v, luma + 2 * (1 - kb) * u
    green = (luma - kr * red - kb * blue) / (1 - kr - kb)
    return _to_16_bits([red, green, blue, *alpha])


def from_rgb(pixels: Pixels, layout: Layout, colour: Colour) -> list[npt.NDArray[Any]]:
    """The planes of a frame of that layout, Y, U, V or G, B, R and alpha, of uint8 or uint16 [H, W, bands]."""
    unit, whole = np.float32(2**layout.depth - 1), np.float32(np.iinfo(pixels.dtype).max)
    bands = [pixels[..., band].astype(np.float32) / whole for band in range(pixels.shape[-1])]
    alpha = bands.pop() if len(bands) in (2, 4) else np.ones_like(bands[0])
    red, green, blue = bands if len(bands) == 3 else bands * 3
    ending = [alpha * unit] if layout.alpha else []
    if layout.rgb:
        return [_rounded(plane, layout) for plane in (green * unit, blue * unit, red * unit, *ending)]
    kr, kb = map(np.float32, _LUMA[colour.matrix])
    black, light, chroma = _levels(layout, colour)
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    planes = [luma * light + black]
    if not layout.gray:
        for other, share in ((blue, kb), (red, kr)):
            difference = _downsampled(other - luma, layout, colour.centred) * (chroma / (2 * (1 - share)))
            planes.append(difference + np.float32(2 ** (layout.depth - 1)))
    return [_rounded(plane, layout) for plane in planes + ending]


def _levels(layout: Layout, colour: Colour) -> tuple[np.float32, np.float32, np.float32]:
    """The number for black, and how many lie between black and white and between the ends of chroma."""
    if colour.range == FULL:
        levels = (0, 2**layout.depth - 1, 2**layout.depth - 1)
    else:
        levels = (16 * 2 ** (layout.depth - 8), 219 * 2 ** (layout.depth - 8), 224 * 2 ** (layout.depth - 8))
    black, light, chroma = map(np.float32, levels)
    return black, light, chroma


def _upsampled(chroma: Plane, layout: Layout, centred: bool) -> Plane:
    """Bilinear. Down, samples lie in the middle of their rows everywhere."""
    return _along(_along(chroma, layout.down, 0, True), layout.across, 1, centred)


def _along(values: Plane, factor: int, axis: int, centred: bool) -> Plane:
    """[h, w] with one side `factor` times as long, by linear interpolation."""
    if factor == 1:
        return values
    count = values.shape[axis]
    place = (np.arange(factor * count, dtype=np.float32) - np.float32((factor - 1) / 2 if centred else 0)) / factor
    first = np.floor(place)
    share = np.expand_dims((place - first).astype(np.float32), 1 - axis)
    below, above = (values.take(index.astype(np.intp).clip(0, count - 1), axis=axis) for index in (first, first + 1))
    between: Plane = below + share * (above - below)
    return between


def _downsampled(chroma: Plane, layout: Layout, centred: bool) -> Plane:
    return _halved(_halved(chroma.T, layout.across, centred).T, layout.down, True)


def _halved(values: Plane, factor: int, centred: bool) -> Plane:
    """Rows [n, m] to [n / factor, m], rounded up: the mean of two, or 1 2 1 around each second one. Factor 1 or 2."""
    if factor == 1:
        return values
    last = values[-1:]
    here, after = values[::2], values[1::2] if len(values) % 2 == 0 else np.concatenate([values[1::2], last])
    if centred:
        return (here + after) * np.float32(0.5)
    before = np.concatenate([values[:1], after[:-1]])
    weighted: Plane = (before + 2 * here + after) * np.float32(0.25)
    return weighted


def _to_16_bits(bands: list[Plane]) -> Pixels:
    pixels = np.empty((*bands[0].shape, len(bands)), np.uint16)
    for band, values in enumerate(bands):
        pixels[..., band] = np.rint(values.clip(0, 1) * np.float32(65535))
    return pixels


def _rounded(plane: Plane, layout: Layout) -> npt.NDArray[Any]:
    whole = np.rint(plane).clip(0, 2**layout.depth - 1)
    return whole.astype(np.uint8 if layout.depth <= 8 else np.uint16)
