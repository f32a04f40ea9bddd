# SPDX-License-Identifier: Apache-2.0
"""Images from and to files, keeping what they are: depth, gray, alpha, colour profile, EXIF, resolution.

libvips reads and writes PNG, JPEG, WebP and TIFF, as a stream where the image is larger than memory; BMP, which it
lacks, goes through Pillow.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ditn.imaging.arrays import Pixels

if TYPE_CHECKING:
    import pyvips


SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
MAX_PIXELS = 2**28  # 268 megapixels: beyond any camera, below what a forged header claims
_NO_ALPHA = (".jpg", ".jpeg", ".bmp")
_EIGHT_BIT = (".jpg", ".jpeg", ".webp", ".bmp")
_MAX_SIDE = {".jpg": 65535, ".jpeg": 65535, ".webp": 16383}
_KEPT = ("icc-profile-data", "xmp-data", "iptc-data", "resolution-unit")
_VIPS_FORMAT = {"uint8": "uchar", "uint16": "ushort"}


class ImageError(ValueError):
    """An image that cannot be read or written as asked. The message says what it is and what would do."""


@dataclass
class Page:
    """One page: pixels [H, W, bands], uint8 or uint16; bands are gray, gray and alpha, RGB, or RGB and alpha.

    `metadata` is an empty libvips image that carries the profile, EXIF and resolution. `notes` says what was changed on
    the way in or out, for the report.
    """

    pixels: Pixels
    metadata: pyvips.Image
    notes: list[str] = field(default_factory=list)


def page_count(path: Path) -> int:
    """Pages of a multi-page TIFF, else 1. Raises ImageError for what cannot be read and for animations."""
    if path.suffix.lower() == ".bmp":
        return 1
    header = _open(path)
    pages = int(header.get("n-pages")) if header.get_typeof("n-pages") else 1
    if pages > 1 and "tiff" not in header.get("vips-loader"):
        raise ImageError(f"is an animation of {pages} frames; upscale its frames one by one")
    if path.suffix.lower() == ".png" and _is_animated_png(path):
        raise ImageError("is an animated PNG; upscale its frames one by one")
    return pages


def read(path: Path, *, page: int = 0, max_pixels: int = MAX_PIXELS) -> Page:
    """One page of an image, upright: EXIF's orientation is applied and removed.

    Palettes become colours, 1-bit images 8-bit gray, CMYK and Lab become sRGB (noted). Raises ImageError, before
    anything is decoded, for more than `max_pixels`, float samples, more than four channels; and for damaged files.
    """
    import pyvips

    image = _open(path, page, max_pixels)
    _check_size(image.width, image.height, max_pixels)
    notes: list[str] = []
    if image.format not in ("uchar", "ushort"):
        raise ImageError(f"has {image.format} samples; convert it to 8 or 16 bits per channel first")
    try:
        image = _to_srgb_or_gray(image, notes).autorot()
        if image.bands > 4:
            raise ImageError(f"has {image.bands} channels; up to 4 (RGB and alpha) are understood")
        pixels = image.numpy()
    except pyvips.Error as error:
        raise ImageError(f"cannot be decoded: {_reason(error)}") from error
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    return Page(pixels, image, notes)


def target_notes(suffix: str, *, depth: int, alpha: bool, width: int, height: int) -> list[str]:
    """What a format cannot keep, in words. Raises ImageError if it cannot hold the image at all."""
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
    if suffix in (".tif", ".tiff"):
        notes.append("EXIF beyond resolution is not written to TIFF")
    return notes


def write_raw(
    raw: Path,
    shape: tuple[int, int, int],
    dtype: str,
    path: Path,
    page: Page,
    *,
    size: tuple[int, int],
    quality: int,
) -> None:
    """Encode a file of raw samples [H, W, bands] as the image at `path`, resampled to `size` (width, height) if that
    differs, with the metadata of `page`.

    Streams from disk to disk, and renames the finished file into place. Raises ImageError with libvips' reason.
    """
    import pyvips

    suffix = path.suffix.lower()
    options: dict[str, Any] = {"Q": quality} if suffix in (".jpg", ".jpeg", ".webp") else {}
    try:
        image = _with_metadata(_encodable(raw, shape, dtype, suffix, size), page.metadata)
        if suffix in (".tif", ".tiff"):
            big = image.width * image.height * image.bands * np.dtype(dtype).itemsize > 3 * 2**30
            options = {"compression": "lzw", "predictor": "horizontal", "bigtiff": big}
        with _renamed_into_place(path) as partial:
            if suffix == ".bmp":
                from PIL import Image

                Image.fromarray(image.numpy()).save(partial)
            else:
                image.write_to_file(str(partial), **options)
    except pyvips.Error as error:
        raise ImageError(f"cannot be written as {suffix[1:]}: {_reason(error)}") from error


def _encodable(raw: Path, shape: tuple[int, int, int], dtype: str, suffix: str, size: tuple[int, int]) -> pyvips.Image:
    """Raw samples, resampled to `size` and with the depth and the bands that a format of that suffix holds."""
    import pyvips

    height, width, bands = shape
    image = pyvips.Image.rawload(str(raw), width, height, bands, format=_VIPS_FORMAT[dtype])
    image = image.copy(interpretation=_interpretation(bands, dtype))
    if size != (width, height):
        image = image.resize(size[0] / width, vscale=size[1] / height, kernel="lanczos3")
        image = image.rint().cast(_VIPS_FORMAT[dtype])
    if image.hasalpha() and suffix in _NO_ALPHA:
        image = image.flatten(background=255 if dtype == "uint8" else 65535)
    if dtype == "uint16" and suffix in _EIGHT_BIT:
        image = (image / 257).rint().cast("uchar").copy(interpretation=_interpretation(image.bands, "uint8"))
    return image


@contextmanager
def _renamed_into_place(path: Path) -> Iterator[Path]:
    """A name to write to, in the same folder and with the same suffix, that becomes `path` once all is well."""
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _open(path: Path, page: int = 0, max_pixels: int = MAX_PIXELS) -> pyvips.Image:
    """The header of an image, its pixels to be decoded later; but a BMP of at most `max_pixels` whole."""
    import pyvips

    if path.stat().st_size == 0:
        raise ImageError("is empty")
    if path.suffix.lower() == ".bmp":
        return _open_bmp(path, max_pixels)
    try:
        options = {"page": page} if page else {}
        return pyvips.Image.new_from_file(str(path), fail_on="truncated", **options)
    except pyvips.Error as error:
        raise ImageError(f"is no image that can be read: {_reason(error)}") from error


def _open_bmp(path: Path, max_pixels: int) -> pyvips.Image:
    import pyvips
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            _check_size(image.width, image.height, max_pixels)
            mode = "L" if image.mode in ("1", "L") else "RGBA" if image.mode == "RGBA" else "RGB"
            pixels = np.asarray(image.convert(mode))
            dpi = image.info.get("dpi", (96.0, 96.0))
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"is no BMP that can be read: {error}") from error
    image = pyvips.Image.new_from_array(pixels)
    interpretation = "b-w" if pixels.ndim == 2 else "srgb"
    return image.copy(interpretation=interpretation, xres=dpi[0] / 25.4, yres=dpi[1] / 25.4)


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageError(
            f"claims {width}x{height} = {width * height:,} pixels, more than the limit of {max_pixels:,}; "
            "raise --max-pixels if that is meant"
        )


def _is_animated_png(path: Path) -> bool:
    """Whether an animation control chunk comes before the first image data; libvips would read one frame of it."""
    with path.open("rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind in (b"acTL", b"IDAT"):
                return bool(kind == b"acTL")
            file.seek(length + 4, os.SEEK_CUR)
    return False


def _to_srgb_or_gray(image: pyvips.Image, notes: list[str]) -> pyvips.Image:
    """Leave gray and RGB of 8 or 16 bits as they are, profile and all; convert the rest."""
    kind = image.interpretation
    if kind in ("b-w", "grey16", "srgb", "rgb16", "rgb"):
        return image
    if kind == "multiband" and image.bands <= 4:
        return image.copy(interpretation=_interpretation(image.bands, "uint8" if image.format == "uchar" else "uint16"))
    if kind == "multiband":
        return image
    depth = 16 if image.format == "ushort" else 8
    notes.append(f"{kind} converted to sRGB")
    if kind == "cmyk":
        embedded = bool(image.get_typeof("icc-profile-data"))
        return image.icc_transform("srgb", embedded=embedded, input_profile="cmyk", depth=depth)
    return image.colourspace("srgb" if depth == 8 else "rgb16")


def _with_metadata(image: pyvips.Image, source: pyvips.Image) -> pyvips.Image:
    """The image with the source's profile, EXIF and resolution; EXIF's size tags mended, its orientation upright."""
    import pyvips

    image = image.copy(xres=source.xres, yres=source.yres)
    for name in source.get_fields():
        if name.startswith("exif-") or name in _KEPT:
            image.set_type(source.get_typeof(name), name, source.get(name))
    for name in image.get_fields():
        if name.startswith("exif-ifd") and name.endswith(("-ImageWidth", "-PixelXDimension")):
            image.set_type(pyvips.GValue.gstr_type, name, str(image.width))
        if name.startswith("exif-ifd") and name.endswith(("-ImageLength", "-PixelYDimension")):
            image.set_type(pyvips.GValue.gstr_type, name, str(image.height))
    image.set_type(pyvips.GValue.gint_type, "orientation", 1)
    return image


def _interpretation(bands: int, dtype: str) -> str:
    gray, colour = ("b-w", "srgb") if dtype == "uint8" else ("grey16", "rgb16")
    return gray if bands <= 2 else colour


def _reason(error: Exception) -> str:
    """libvips' own words, without the name of the operation and on one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("unable to call")]
    return "; ".join(dict.fromkeys(lines)) or "unknown reason"
