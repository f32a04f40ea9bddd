# SPDX-License-Identifier: Apache-2.0
"""What libvips cannot open, by Pillow: BMP, and TIFF in L*a*b* of 8 bits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyvips
    from PIL.Image import Image as PILImage


def opened(path: Path, page: int, max_pixels: int) -> pyvips.Image:
    """A file's page, decoded if it has at most `max_pixels` and else without its pixels. Raises ValueError for what
    cannot be read."""
    import pyvips
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.seek(page)
            if image.width * image.height > max_pixels:
                return pyvips.Image.black(image.width, image.height)
            if image.mode == "LAB":
                found = lab(image)
                orientation = image.getexif().get(0x0112, 1)
                found.set_type(pyvips.GValue.gint_type, "orientation", orientation)
                return found
            mode = "L" if image.mode in ("1", "L") else "RGBA" if image.mode == "RGBA" else "RGB"
            pixels = np.asarray(image.convert(mode))
    except Exception as error:  # of a damaged file Pillow's readers raise whatever comes up
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return pyvips.Image.new_from_array(pixels).copy(interpretation="b-w" if pixels.ndim == 2 else "srgb")


def lab(image: PILImage) -> pyvips.Image:
    """An image of Pillow's mode LAB, whose a* and b* are signed, as L*, a*, b*."""
    import pyvips

    pixels = np.asarray(image)
    values = np.concatenate([pixels[..., :1] * np.float32(100 / 255), pixels[..., 1:].view(np.int8)], axis=2)
    made = pyvips.Image.new_from_array(values).copy(interpretation="lab")
    made.set_type(pyvips.GValue.gint_type, "bits-per-sample", 8)
    return made
