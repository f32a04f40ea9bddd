# SPDX-License-Identifier: Apache-2.0
"""Images from and to files, keeping what they are: depth, gray, alpha, and what the file tells beside the pixels.

libvips reads and writes PNG, JPEG, WebP and TIFF, as a stream where the image is larger than memory; BMP, which it
lacks, goes through Pillow. Metadata, of which libvips keeps some and changes some, are `containers`' to read and write.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from ditn.imaging import by_pillow, containers, png, tiff
from ditn.imaging.arrays import ImageError, Pixels, Pixels8
from ditn.imaging.atomic import atomic_write
from ditn.imaging.colour import interpretation, to_8_bit, to_srgb_or_gray
from ditn.imaging.metadata import Metadata, fitting_profile
from ditn.imaging.resample import resampled

if TYPE_CHECKING:
    import pyvips


SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
# Written, or read only. HEIC as libvips has been built: the wheel's has no decoder and says so.
READABLE = (
    *SUFFIXES,
    *(".jpe", ".jfif", ".jif", ".pjpeg", ".pjp", ".dib"),
    *(".gif", ".avif", ".heic", ".heif", ".hif"),
)
MAX_PIXELS = 2**28  # 268 megapixels: beyond any camera, below what a forged header claims
_NO_ALPHA = (".jpg", ".jpeg", ".bmp")
_EIGHT_BIT = (".jpg", ".jpeg", ".webp", ".bmp")
_MAX_SIDE = {".jpg": 65535, ".jpeg": 65535, ".webp": 16383}
_VIPS_FORMAT = {"uint8": "uchar", "uint16": "ushort"}


@dataclass
class Described:
    """What a file tells beside a page's pixels, and `turned`, whether these lay on their side or mirrored in it.
    `notes` says what was changed on the way in, for the report."""

    metadata: Metadata
    turned: bool = False
    notes: list[str] = field(default_factory=list)

    def enlarged(self, before: tuple[int, int], after: tuple[int, int], *, gray: bool, suffix: str) -> Metadata:
        """The metadata of an enlargement, (width, height) before and after, in a format of that suffix."""
        metadata = self.metadata.adapted(before, after, turned=self.turned)
        unfit = metadata.profile and fitting_profile(metadata.profile, gray=gray, suffix=suffix)
        return replace(metadata, profile=b"", dropped=(*metadata.dropped, unfit)) if unfit else metadata


@dataclass
class Page:
    """One page: pixels [H, W, bands], uint8 or uint16; bands are gray, gray and alpha, RGB, or RGB and alpha; and what
    the file tells beside them."""

    pixels: Pixels
    described: Described


def page_count(path: Path) -> int:
    """Pages of a multi-page TIFF, else 1. Raises ImageError for what cannot be read and for animations."""
    kind = containers.kind(path)
    if kind == "bmp":
        return 1
    header = _open(path)
    pages = int(header.get("n-pages")) if header.get_typeof("n-pages") else 1
    if pages > 1 and kind != "tiff":
        raise ImageError(f"is an animation of {pages} frames; upscale its frames one by one")
    if kind == "png":
        with path.open("rb") as file:
            if png.is_animated(file):
                raise ImageError("is an animated PNG; upscale its frames one by one")
    return pages


def pixel_count(path: Path, page: int = 0) -> int:
    """The pixels that an image's header claims; 0 for what cannot be read."""
    try:
        image = _open(path, page)
    except (ImageError, OSError):
        return 0
    return int(image.width) * int(image.height)


def read(path: Path, *, page: int = 0, max_pixels: int = MAX_PIXELS) -> Page:
    """One page of an image, upright: EXIF's orientation is applied and removed.

    Palettes become colours, 1-bit images 8-bit gray, CMYK and L*a*b* (8 and 16 bits, float) become sRGB (noted).
    Raises ImageError, before anything is decoded, for more than `max_pixels`, other float samples, more than four
    channels; and for damaged files.
    """
    image, described = open_page(path, page=page, max_pixels=max_pixels)
    with decoding():
        pixels = image.numpy()
    return Page(pixels if pixels.ndim == 3 else pixels[..., None], described)


def open_page(
    path: Path, *, page: int = 0, max_pixels: int = MAX_PIXELS, once_through: bool = False
) -> tuple[pyvips.Image, Described]:
    """One page of an image as `read` gives it, its pixels to be decoded when they are asked for, and what the file
    tells beside them. `once_through`: they will be, from top to bottom. Raises ImageError as `read` does."""
    image = _open(path, page, max_pixels)
    _check_size(image.width, image.height, max_pixels)
    notes: list[str] = []
    metadata = containers.read(path, image, page=page)
    with decoding():
        turned = bool(image.get_typeof("orientation")) and image.get("orientation") > 1
        if once_through and not turned:
            image = _open(path, page, max_pixels, access="sequential")
        icc_lab = containers.kind(path) == "tiff" and _photometric(path, page) == tiff.ICC_LAB
        image = to_srgb_or_gray(image, notes, icc_lab=icc_lab).autorot()
    if image.bands > 4:
        raise ImageError(f"has {image.bands} channels; up to 4 (RGB and alpha) are understood")
    if notes:
        # It was of the colours before.
        metadata = replace(metadata, profile=b"")
    return image, Described(metadata, turned, notes)


@contextmanager
def decoding() -> Iterator[None]:
    """In which libvips' errors become ImageErrors."""
    import pyvips

    try:
        yield
    except pyvips.Error as error:
        raise ImageError(f"cannot be decoded: {_reason(error)}") from error


def read_8_bit(path: Path) -> Pixels8:
    """The image of a file, as `read` reads it, as uint8 RGB [H, W, 3], or gray [H, W] if it is gray: 16 bits are
    rounded, transparency is flattened onto white. Raises ImageError as `read` does."""
    return to_8_bit(read(path).pixels)


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
    return notes


def write_raw(
    raw: Path | IO[bytes],
    shape: tuple[int, int, int],
    dtype: str,
    path: Path,
    page: Page,
    *,
    size: tuple[int, int],
    quality: int,
) -> list[str]:
    """Encode a file of raw samples [H, W, bands] as the image at `path`, resampled to `size` (width, height) if that
    differs, with the metadata of `page`. Returns what of these is not in the file, in words.

    Streams from disk to disk, and `path` is whole or not there. Raises ImageError with libvips' reason.
    """
    import pyvips

    suffix = path.suffix.lower()
    options: dict[str, Any] = {"Q": quality} if suffix in (".jpg", ".jpeg", ".webp") else {}
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
        raise ImageError(f"cannot be written as {suffix[1:]}: {_reason(error)}") from error
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


def _open(path: Path, page: int = 0, max_pixels: int = MAX_PIXELS, access: str = "random") -> pyvips.Image:
    """The header of an image, its pixels to be decoded later; but of a BMP, and of a TIFF in L*a*b* of 8 bits, all."""
    import pyvips

    if path.stat().st_size == 0:
        raise ImageError("is empty")
    kind = containers.kind(path)
    lab = kind == "tiff" and _photometric(path, page) == tiff.LAB
    try:
        if kind != "bmp":
            options = {"page": page} if page else {}
            # Not by name: libvips takes names in UTF-8 only. It duplicates the descriptor.
            with path.open("rb") as file:
                source = pyvips.Source.new_from_descriptor(file.fileno())
            return pyvips.Image.new_from_source(source, "", fail_on="truncated", access=access, **options)
    except pyvips.Error as error:
        if not lab:
            raise ImageError(f"is no image that can be read: {_reason(error)}") from error
    try:
        return by_pillow.opened(path, page, max_pixels)
    except ValueError as error:
        raise ImageError(f"is no {kind.upper()} that can be read: {error}") from error


def _photometric(path: Path, page: int) -> int | None:
    """A TIFF page's kind of colours, where it says. Raises ImageError for one that nobody here understands."""
    try:
        with path.open("rb") as file:
            return tiff.photometric(file, page)
    except ValueError as error:
        raise ImageError(str(error)) from error


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageError(
            f"claims {width}x{height} = {width * height:,} pixels, more than the limit of {max_pixels:,}; "
            "raise --max-pixels if that is meant"
        )


def _reason(error: Exception) -> str:
    """libvips' own words, without the name of the operation and on one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("unable to call")]
    return "; ".join(dict.fromkeys(lines)) or "unknown reason"
