# SPDX-License-Identifier: Apache-2.0
"""Lanczos resampling of decoded images to any size."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyvips


def resampled(image: pyvips.Image, width: int, height: int) -> pyvips.Image:
    """Gray or RGB of 8 or 16 bits, with or without alpha, as width x height pixels of the same kind.

    Colours count by their alpha, so that those of invisible pixels stay out of visible ones. Alpha is clamped to the
    range of the pixels around (see `_within`), so that Lanczos' ringing leaves no haze.
    """
    if not image.hasalpha():
        return _lanczos(image, width, height).rint().cast(image.format)
    bands = image.bands - 1
    opaque = 255 if image.format == "uchar" else 65535
    colours, alpha = image.extract_band(0, n=bands), image.extract_band(bands)
    weighted = _lanczos((colours * alpha).bandjoin(alpha.cast("float")), width, height)
    weights = weighted.extract_band(bands)
    # Where nothing is visible the colours go on as they are: whoever scales again finds no black there.
    visible = weights >= opaque / 255
    colours = visible.ifthenelse(weighted.extract_band(0, n=bands) / weights, _lanczos(colours, width, height))
    made = colours.bandjoin(_within(weights, alpha)).rint().cast(image.format)
    return made.copy(interpretation=image.interpretation)


def _lanczos(image: pyvips.Image, width: int, height: int) -> pyvips.Image:
    return image.cast("float").resize(width / image.width, vscale=height / image.height, kernel="lanczos3")


def _within(made: pyvips.Image, source: pyvips.Image) -> pyvips.Image:
    """`made`, which is `source` resampled, clamped to the range of the source's 3 x 3 pixels nearest to each pixel; or,
    where it is smaller, of those that 3 x 3 of its own pixels cover."""
    across, down = (
        _odd(3 * max(1, old / new)) for old, new in ((source.width, made.width), (source.height, made.height))
    )
    low = source.rank(across, 1, 0).rank(1, down, 0)
    high = source.rank(across, 1, across - 1).rank(1, down, down - 1)
    low, high = (_nearest(bound, made.width, made.height) for bound in (low, high))
    made = (made < low).ifthenelse(low, made)
    return (made > high).ifthenelse(high, made)


def _nearest(image: pyvips.Image, width: int, height: int) -> pyvips.Image:
    return image.resize(width / image.width, vscale=height / image.height, kernel="nearest")


def _odd(length: float) -> int:
    """The next odd number."""
    return 2 * math.ceil((length - 1) / 2) + 1
