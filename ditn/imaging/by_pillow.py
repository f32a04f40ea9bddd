# SPDX-License-Identifier: Apache-2.0
"""What libvips cannot open, by Pillow: BMP, TIFF in L*a*b* of 8 bits and, as libvips has been built, what scanners,
archives and old programs write: Netpbm, JPEG 2000, TGA, PCX, ICO."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ditn.imaging import tiff
from ditn.imaging.colour import interpretation

if TYPE_CHECKING:
    import pyvips
    from PIL.Image import Image as PILImage

# By what Pillow calls the format. The codestream's first marker is where JPEG 2000 begins without a container.
_CODESTREAM = b"\xff\x4f\xff\x51"
_BEGINNINGS = {
    "BMP": rb"BM",
    "PPM": rb"P[1-6]\s",
    "JPEG2000": rb"\x00\x00\x00\x0cjP  \r\n\x87\n|" + re.escape(_CODESTREAM),
    "PCX": rb"\x0a[\x00\x02\x03\x05]\x01[\x01\x02\x04\x08]",
    "ICO": rb"\x00\x00\x01\x00",
}
SUFFIXES = (".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".tga", ".pcx", ".ico")
_BITS = "bits-per-sample"


def form_of(path: Path) -> str:
    """Pillow's name of a file's format, by its first bytes or, of TGA, which has no mark there, by its name; "" if none
    of these."""
    with path.open("rb") as file:
        head = file.read(12)
    found = next((form for form, mark in _BEGINNINGS.items() if re.match(mark, head)), "")
    return found or ("TGA" if path.suffix.lower() == ".tga" else "")


def size(path: Path, form: str, page: int) -> tuple[int, int]:
    """Width and height of a page of a file of this format. Raises ValueError for what cannot be read."""
    with _reading(path, form, page) as image:
        width, height = image.size
    return width, height


def opened(path: Path, form: str, page: int) -> pyvips.Image:
    """A page of a file of this format. Where the file had more bits than the samples, "bits-per-sample" tells, and
    where it had a resolution, "dpi". Raises ValueError for what cannot be read."""
    import pyvips

    with _reading(path, form, page) as image:
        if image.mode == "LAB":
            found = lab(image)
            orientation = image.getexif().get(0x0112, 1)
            found.set_type(pyvips.GValue.gint_type, "orientation", orientation)
            return found
        bits, dpi = _bits(path, image), image.info.get("dpi")
        pixels = _samples(image)
    bands, depth = pixels.shape[2] if pixels.ndim == 3 else 1, 8 * pixels.itemsize
    found = pyvips.Image.new_from_array(pixels).copy(interpretation=interpretation(bands, depth))
    if bits > depth:
        found.set_type(pyvips.GValue.gint_type, _BITS, bits)
    if dpi and min(dpi) > 0:
        found.set_type(pyvips.GValue.array_double_type, "dpi", dpi)
    return found


@contextmanager
def _reading(path: Path, form: str, page: int) -> Iterator[PILImage]:
    """Whatever Pillow's readers raise of a damaged file becomes a ValueError."""
    from PIL import Image

    # Not by Image.open, which has a limit of its own on pixels, of the whole process.
    Image.init()
    reader, _ = Image.OPEN[form]
    try:
        with path.open("rb") as file, reader(file, str(path)) as image:
            image.seek(tiff.directory_of(file, page) if form == "TIFF" else page)
            yield image
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def lost_bits(image: pyvips.Image) -> int:
    """How many bits a sample of the file had, if these have fewer; else 0."""
    bits = int(image.get(_BITS)) if image.get_typeof(_BITS) else 0
    return bits if bits > 8 and image.format == "uchar" else 0


def _samples(image: PILImage) -> np.ndarray:
    """[H, W] or [H, W, bands], uint8 or, of gray alone, uint16, which is all that Pillow has."""
    if image.mode.startswith("I"):
        return np.clip(np.asarray(image), 0, 65535).astype(np.uint16)
    has_alpha = "A" in image.mode or "transparency" in image.info
    mode = "L" if image.mode in ("1", "L") else "RGBA" if has_alpha else "RGB"
    return np.asarray(image.convert(mode))


def _bits(path: Path, image: PILImage) -> int:
    """Of a sample in the file, as far as it is of use to know; 8 for all else."""
    with path.open("rb") as file:
        head = file.read(4096)
    if image.format == "JPEG2000":
        # Its first marker segment, SIZ (ISO/IEC 15444-1, A.5.1), has the bits less one of the first channel at byte 42.
        start = head.find(_CODESTREAM)
        return (head[start + 42] & 127) + 1 if start >= 0 and len(head) > start + 42 else 8
    if image.format == "PPM":
        largest = re.match(rb"P[2356](?:\s+|#[^\n]*\n)+\d+(?:\s+|#[^\n]*\n)+\d+(?:\s+|#[^\n]*\n)+(\d+)\s", head)
        return int(largest[1]).bit_length() if largest else 8
    return 8


def lab(image: PILImage) -> pyvips.Image:
    """An image of Pillow's mode LAB, whose a* and b* are signed, as L*, a*, b*."""
    import pyvips

    pixels = np.asarray(image)
    values = np.concatenate([pixels[..., :1] * np.float32(100 / 255), pixels[..., 1:].view(np.int8)], axis=2)
    made = pyvips.Image.new_from_array(values).copy(interpretation="lab")
    made.set_type(pyvips.GValue.gint_type, _BITS, 8)
    return made
