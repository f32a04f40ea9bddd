# SPDX-License-Identifier: Apache-2.0
"""Between the planes of a film's frame and RGB, exactly: by the film's matrix, range, depth and place of its chroma.

The equations of ITU-R BT.601-7, BT.709-6 and BT.2020-2 for non-constant luminance, with the code points of ITU-T H.273,
which FFmpeg uses as well. In float32 throughout: no step but the last is rounded, which FFmpeg's swscale does several
times. Colours outside RGB's range, which compression makes, are clamped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

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
    unit = 2**layout.depth - 1
    values = [torch.from_numpy(np.ascontiguousarray(plane)).float() for plane in planes]
    alpha = [values.pop() / unit] if layout.alpha else []
    if layout.rgb:
        green, blue, red = (value / unit for value in values)
        return _to_16_bits([red, green, blue, *alpha])
    black, light, chroma = _levels(layout, colour)
    luma = (values[0] - black) / light
    if layout.gray:
        return _to_16_bits([luma, *alpha])
    height, width = luma.shape
    u, v = (_upsampled((value - 2 ** (layout.depth - 1)) / chroma, layout, colour.centred) for value in values[1:])
    kr, kb = _LUMA[colour.matrix]
    red = luma + 2 * (1 - kr) * v[:height, :width]
    blue = luma + 2 * (1 - kb) * u[:height, :width]
    green = (luma - kr * red - kb * blue) / (1 - kr - kb)
    return _to_16_bits([red, green, blue, *alpha])


def from_rgb(pixels: Pixels, layout: Layout, colour: Colour) -> list[npt.NDArray[Any]]:
    """The planes of a frame of that layout, Y, U, V or G, B, R and alpha, of uint8 or uint16 [H, W, bands]."""
    unit = 2**layout.depth - 1
    values = torch.from_numpy(pixels).float() / np.iinfo(pixels.dtype).max
    bands = list(values.unbind(-1))
    alpha = bands.pop() if len(bands) in (2, 4) else torch.ones_like(bands[0])
    red, green, blue = bands if len(bands) == 3 else bands * 3
    ending = [alpha * unit] if layout.alpha else []
    if layout.rgb:
        return [_rounded(plane, layout) for plane in (green * unit, blue * unit, red * unit, *ending)]
    kr, kb = _LUMA[colour.matrix]
    black, light, chroma = _levels(layout, colour)
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    planes = [luma * light + black]
    if not layout.gray:
        for other, share in ((blue, kb), (red, kr)):
            difference = _downsampled((other - luma) / (2 * (1 - share)), layout, colour.centred)
            planes.append(difference * chroma + 2 ** (layout.depth - 1))
    return [_rounded(plane, layout) for plane in planes + ending]


def _levels(layout: Layout, colour: Colour) -> tuple[int, int, int]:
    """The number for black, and how many lie between black and white and between the ends of chroma."""
    if colour.range == FULL:
        return 0, 2**layout.depth - 1, 2**layout.depth - 1
    step = 2 ** (layout.depth - 8)
    return 16 * step, 219 * step, 224 * step


def _upsampled(chroma: Tensor, layout: Layout, centred: bool) -> Tensor:
    """Bilinear. Down, samples lie in the middle of their rows everywhere."""
    return _along(_along(chroma, layout.down, True).T, layout.across, centred).T


def _along(values: Tensor, factor: int, centred: bool) -> Tensor:
    """Rows [n, m] to [factor * n, m], by linear interpolation."""
    if factor == 1:
        return values
    count = len(values)
    place = (torch.arange(factor * count) - ((factor - 1) / 2 if centred else 0)) / factor
    first = place.floor()
    share = (place - first)[:, None]
    below, above = (index.long().clamp(0, count - 1) for index in (first, first + 1))
    return torch.lerp(values[below], values[above], share)


def _downsampled(chroma: Tensor, layout: Layout, centred: bool) -> Tensor:
    return _halved(_halved(chroma, layout.down, True).T, layout.across, centred).T


def _halved(values: Tensor, factor: int, centred: bool) -> Tensor:
    """Rows [n, m] to [n / factor, m], rounded up: the mean of two, or 1 2 1 around each second one. Factor 1 or 2."""
    if factor == 1:
        return values
    index = torch.arange(0, len(values), 2)
    here, after = values[index], values[(index + 1).clamp(max=len(values) - 1)]
    return (here + after) / 2 if centred else (values[(index - 1).clamp(min=0)] + 2 * here + after) / 4


def _to_16_bits(bands: list[Tensor]) -> Pixels:
    stacked = torch.stack(bands, -1).clamp_(0, 1).mul_(65535).round_()
    return stacked.to(torch.int32).numpy().astype(np.uint16)


def _rounded(plane: Tensor, layout: Layout) -> npt.NDArray[Any]:
    whole = plane.round().clamp(0, 2**layout.depth - 1).to(torch.int32).numpy()
    return whole.astype(np.uint8 if layout.depth <= 8 else np.uint16)
