# SPDX-License-Identifier: Apache-2.0
"""Images to files, by libvips, as a stream where the image is larger than memory; BMP, which it lacks, by Pillow.
Metadata are `containers`' to write."""

from __future__ import annotations

import io
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from ditn.imaging import containers
from ditn.imaging.arrays import ImageError
from ditn.imaging.atomic import atomic_write
from ditn.imaging.colour import interpretation
from ditn.imaging.files import QUALITY, Page, reason
from ditn.imaging.resample import resampled

if TYPE_CHECKING:
    import pyvips

_NO_ALPHA = (".jpg", ".jpeg", ".bmp")
_EIGHT_BIT = (".jpg", ".jpeg", ".webp", ".bmp")
_MAX_SIDE = {".jpg": 65535, ".jpeg": 65535, ".webp": 16383}
_MAX_SIDE_OF_ALL = 10_000_000  # libvips' VIPS_MAX_COORD
_VIPS_FORMAT = {"uint8": "uchar", "uint16": "ushort"}


def target_notes(suffix: str, *, depth: int, alpha: bool, width: int, height: int) -> list[str]:
    """What a format cannot keep, in words. Raises ImageError if it cannot hold the image at all."""
    if max(width, height) > _MAX_SIDE_OF_ALL:
        raise ImageError(f"{width}x{height} pixels are too many; {_MAX_SIDE_OF_ALL:,} a side can be written")
    limit = _MAX_SIDE.get(suffix)
    if limit and max(width, height) > limit:
        raise ImageError(
            f"{width}x{height} pixels do not fit {suffix[1:]}, which ends at {limit} a side; use png or tif"
        )
    notes = []
    if depth == 16 and suffix in _EIGHT_BIT:
        notes.append(f"16 bits rounded to 8: {suffix[1:]} has no more")
    if alpha and suffix in _NO_ALPHA:
        notes.append(f"transparency flattened onto white: {suffix[1:]} has none")
    return notes


def write_raw(
    raw: Path | IO[bytes],
    shape: tuple[int, int, int],
    dtype: str,
    path: Path,
    page: Page,
    *,
    size: tuple[int, int],
    quality: int | None,
) -> list[str]:
    """Encode a file of raw samples [H, W, bands] as the image at `path`, resampled to `size` (width, height) if that
    differs, with the metadata of `page`. Returns what of these is not in the file, in words. `quality` is JPEG's and
    WebP's, 1 to 100; None for QUALITY, or for a WebP that loses nothing where `page` is of such a one.

    Streams from disk to disk, and `path` is whole or not there. Raises ImageError with libvips' reason.
    """
    import pyvips

    suffix = path.suffix.lower()
    options: dict[str, Any] = {"Q": quality or QUALITY} if suffix in (".jpg", ".jpeg", ".webp") else {}
    if suffix == ".webp" and quality is None and page.described.lossless:
        # `exact`: what is transparent has its colours, too.
        options = {"lossless": True, "exact": True}
    height, width = page.pixels.shape[:2]
    metadata = page.described.enlarged((width, height), size, gray=shape[2] <= 2, suffix=suffix)
    try:
        image = _encodable(raw, shape, dtype, suffix, size)
        if suffix in (".tif", ".tiff"):
            big = image.width * image.height * image.bands * np.dtype(dtype).itemsize > 3 * 2**30
            options = {"compression": "lzw", "predictor": "horizontal", "bigtiff": big}
        with atomic_write(path) as temporary:
            if suffix == ".bmp":
                from PIL import Image

                # Not to the file: Pillow takes a BMP for written of which a full disk took a part.
                encoded = io.BytesIO()
                Image.fromarray(image.numpy()).save(encoded, "bmp")
                temporary.write_bytes(encoded.getbuffer())
            else:
                # Not by name: libvips takes names in UTF-8 only, and a folder's may be of other bytes.
                with temporary.open("r+b") as file:
                    target = pyvips.Target.new_to_descriptor(file.fileno())
                    image.write_to_target(target, suffix, keep="none", **options)
            lost = containers.write(temporary, metadata, size)
    except pyvips.Error as error:
        raise ImageError(f"cannot be written as {suffix[1:]}: {reason(error)}") from error
    return [f"not in the {suffix[1:]}: {name}" for name in lost]


def _encodable(
    raw: Path | IO[bytes], shape: tuple[int, int, int], dtype: str, suffix: str, size: tuple[int, int]
) -> pyvips.Image:
    """Raw samples, resampled to `size` and with the depth and the bands that a format of that suffix holds."""
    import pyvips

    height, width, bands = shape
    samples = np.memmap(raw, dtype, "r", shape=shape)
    image = pyvips.Image.new_from_memory(samples.data, width, height, bands, _VIPS_FORMAT[dtype])
    image = image.copy(interpretation=interpretation(bands, 8 * np.dtype(dtype).itemsize))
    if size != (width, height):
        image = resampled(image, *size)
    if image.hasalpha() and suffix in _NO_ALPHA:
        image = image.flatten(background=255 if dtype == "uint8" else 65535)
    if dtype == "uint16" and suffix in _EIGHT_BIT:
        image = (image / 257).rint().cast("uchar").copy(interpretation=interpretation(image.bands, 8))
    return image
