# SPDX-License-Identifier: Apache-2.0
"""Images of which rectangles are read from the file, so that memory holds no more than one of these."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ditn.imaging import tiff
from ditn.imaging.arrays import Pixels
from ditn.imaging.files import decoding

if TYPE_CHECKING:
    import pyvips

_DTYPES = {"uchar": "uint8", "ushort": "uint16"}


class Regions:
    """Stands for an image's [H, W, bands] samples where these are only indexed: by two slices, or by rows [n, 1] and
    columns [m] as `ditn.inference.tiles.reflected` gives them. Each access decodes what it needs.

    bands   of those of the image, to leave alpha away
    """

    ndim = 3

    def __init__(self, image: pyvips.Image, bands: int | None = None) -> None:
        self._image = image if bands in (None, image.bands) else image.extract_band(0, n=bands)
        self.shape = (int(image.height), int(image.width), int(self._image.bands))
        self.dtype = np.dtype(_DTYPES[image.format])

    @property
    def size(self) -> int:
        height, width, bands = self.shape
        return height * width * bands

    def __getitem__(self, place: tuple[Any, Any]) -> Pixels:
        rows, columns = (
            np.arange(size)[index] if isinstance(index, slice) else np.asarray(index).reshape(-1)
            for index, size in zip(place, self.shape, strict=False)
        )
        top, left = int(rows.min()), int(columns.min())
        window = self._window(top, left, int(rows.max()) + 1 - top, int(columns.max()) + 1 - left)
        samples: Pixels = window[(rows - top)[:, None], columns - left]
        return samples

    def constant(self, band: int) -> int | None:
        """The value that a band has everywhere, if there is one. Looks at all of it."""
        of_band = self._image.extract_band(band)
        with decoding():
            low, high = int(of_band.min()), int(of_band.max())
        return low if low == high else None

    def _window(self, top: int, left: int, height: int, width: int) -> Pixels:
        with decoding():
            samples: npt.NDArray[Any] = self._image.crop(left, top, width, height).numpy()
        return samples.reshape(height, width, -1)


def is_tiled(path: Path, page: int) -> bool:
    """Whether rectangles of a file can be read without what lies above them: a TIFF in tiles."""
    try:
        with path.open("rb") as file:
            return tiff.is_tiled(file, page)
    except ValueError:
        return False


def write_tiled(image: pyvips.Image, path: Path) -> None:
    """An image as a file of which rectangles can be read: once through it, in bounded memory."""
    import pyvips

    descriptor = os.open(path, os.O_RDWR)
    try:
        target = pyvips.Target.new_to_descriptor(descriptor)
        with decoding():
            image.write_to_target(target, ".tif", tile=True, tile_width=256, tile_height=256, bigtiff=True, keep="none")
    finally:
        os.close(descriptor)
