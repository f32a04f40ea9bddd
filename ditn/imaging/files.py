# SPDX-License-Identifier: Apache-2.0
"""Images from files, keeping what they are: depth, gray, alpha, and what the file tells beside the pixels.

libvips reads PNG, JPEG, WebP and TIFF, as a stream where the image is larger than memory; BMP and other formats that it
lacks go through Pillow. Metadata, of which libvips keeps some and changes some, are `containers`' to read.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ditn.imaging import by_pillow, containers, png, tiff
from ditn.imaging.arrays import ImageError, Pixels, Pixels8
from ditn.imaging.colour import to_8_bit, to_srgb_or_gray
from ditn.imaging.metadata import Metadata, fitting_profile

if TYPE_CHECKING:
    import pyvips


SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
QUALITY = 92  # of JPEG and WebP, 1 to 100
# Read and written, or read only. HEIC as libvips has been built: the wheel's has no decoder and says so.
READABLE = (
    *SUFFIXES,
    *(".jpe", ".jfif", ".jif", ".pjpeg", ".pjp", ".dib"),
    *(".gif", ".avif", ".heic", ".heif", ".hif"),
    *by_pillow.SUFFIXES,
)
# A TIFF with a small preview on its first page.
_RAW = (".dng", ".cr2", ".nef", ".nrw", ".arw", ".orf", ".rw2", ".pef", ".srw", ".3fr", ".iiq")
MAX_PIXELS = 2**28  # 268 megapixels: beyond any camera, below what a forged header claims


@dataclass
class Described:
    """What a file tells beside a page's pixels, and `turned`, whether these lay on their side or mirrored in it.
    `lossless`: it is a WebP that lost nothing. `notes` says what was changed on the way in, for the report."""

    metadata: Metadata
    turned: bool = False
    lossless: bool = False
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
    header, _ = _header(path)
    kind = containers.kind(path)
    if kind == "tiff":
        with path.open("rb") as file:
            return len(tiff.pages(file))
    pages = int(header.get("n-pages")) if header is not None and header.get_typeof("n-pages") else 1
    if pages > 1:
        raise ImageError(
            f"is an animation of {pages} frames; name an output that ends in .gif, .webp, .png or as a film"
        )
    if kind == "png":
        with path.open("rb") as file:
            if png.is_animated(file):
                raise ImageError("is an animated PNG; name an output that ends in .gif, .webp, .png or as a film")
    return pages


def pixel_count(path: Path, page: int = 0) -> int:
    """The pixels that an image's header claims; 0 for what cannot be read."""
    try:
        header, form = _header(path, page)
        width, height = _size_by_pillow(path, form, page) if header is None else (header.width, header.height)
    except (ImageError, OSError):
        return 0
    return int(width) * int(height)


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
    if bits := by_pillow.lost_bits(image):
        notes.append(f"read in 8 of its {bits} bits")
    return image, Described(metadata, turned, containers.is_lossless_webp(path), notes)


@contextmanager
def decoding() -> Iterator[None]:
    """In which libvips' errors become ImageErrors."""
    import pyvips

    try:
        yield
    except pyvips.Error as error:
        raise ImageError(f"cannot be decoded: {reason(error)}") from error


def read_8_bit(path: Path) -> Pixels8:
    """The image of a file, as `read` reads it, as uint8 RGB [H, W, 3], or gray [H, W] if it is gray: 16 bits are
    rounded, transparency is flattened onto white. Raises ImageError as `read` does."""
    return to_8_bit(read(path).pixels)


def _open(path: Path, page: int = 0, max_pixels: int = MAX_PIXELS, access: str = "random") -> pyvips.Image:
    """An image, its pixels to be decoded later; but of what goes through Pillow now, if these are at most
    `max_pixels`."""
    image, form = _header(path, page, access)
    if image is not None:
        return image
    _check_size(*_size_by_pillow(path, form, page), max_pixels)
    try:
        return by_pillow.opened(path, form, page)
    except ValueError as error:
        raise _unreadable(form, error) from error


def _header(path: Path, page: int = 0, access: str = "random") -> tuple[pyvips.Image | None, str]:
    """An image by libvips, or None and Pillow's name of the format."""
    import pyvips

    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # to open a pipe is to wait for whoever writes into it
        raise ImageError("is a pipe or a device, and files are read more than once; give it as -, standard input")
    if status.st_size == 0:
        raise ImageError("is empty")
    if path.suffix.lower() in _RAW:
        raise ImageError("is a camera's raw file: develop it first, to 16-bit TIFF")
    is_tiff = containers.kind(path) == "tiff"
    is_lab = is_tiff and _photometric(path, page) == tiff.LAB
    form = "TIFF" if is_lab else by_pillow.form_of(path)
    if form == "BMP":
        return None, form
    try:
        # Not by name: libvips takes names in UTF-8 only. It duplicates the descriptor.
        with path.open("rb") as file:
            options = {"page": tiff.directory_of(file, page)} if is_tiff else {}
            source = pyvips.Source.new_from_descriptor(file.fileno())
        return pyvips.Image.new_from_source(source, "", fail_on="truncated", access=access, **options), form
    except pyvips.Error as error:
        if _is_pdf(path):
            raise ImageError(
                "is a PDF: take its pages out first, as with pdfimages -png, or pdftoppm -r 300 -png"
            ) from error
        if not form:
            raise ImageError(f"is no image that can be read: {reason(error)}") from error
    return None, form


def _size_by_pillow(path: Path, form: str, page: int) -> tuple[int, int]:
    try:
        return by_pillow.size(path, form, page)
    except ValueError as error:
        raise _unreadable(form, error) from error


def _unreadable(form: str, error: Exception) -> ImageError:
    return ImageError(f"is no {form} that can be read: {error}")


def _is_pdf(path: Path) -> bool:
    with path.open("rb") as file:
        return b"%PDF-" in file.read(1024)


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


def reason(error: Exception) -> str:
    """libvips' own words, without the name of the operation and on one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("unable to call")]
    return "; ".join(dict.fromkeys(lines)) or "unknown reason"
