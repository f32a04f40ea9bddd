# SPDX-License-Identifier: Apache-2.0
"""Images of Pillow to samples and back, with what they tell beside these."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ditn.imaging import exif, tiff
from ditn.imaging.arrays import Pixels
from ditn.imaging.by_pillow import lab
from ditn.imaging.colour import to_srgb_or_gray
from ditn.imaging.metadata import Metadata

if TYPE_CHECKING:
    from PIL.Image import Exif
    from PIL.Image import Image as PILImage

_MODES = {"1": "L", "L": "L", "LA": "LA", "La": "LA", "RGB": "RGB", "RGBA": "RGBA", "RGBa": "RGBA", "PA": "RGBA"}
# Of the samples before, or of the file: an animation's, and JPEG's and TIFF's own.
_OF_THE_FILE = {
    *("transparency", "background", "duration", "loop", "timestamp"),
    *("jfif", "progressive", "adobe", "mp", "mpoffset"),
}
# Pillow's transpositions that undo EXIF's orientations 2 to 8: FLIP_LEFT_RIGHT, ROTATE_180, FLIP_TOP_BOTTOM, TRANSPOSE,
# ROTATE_270, TRANSVERSE, ROTATE_90.
_TURNS = (0, 3, 1, 5, 4, 6, 2)
# What Pillow raises for EXIF that cannot be read or put together.
_DAMAGED = (ValueError, TypeError, AttributeError, LookupError, OverflowError, SyntaxError, struct.error, OSError)


@dataclass(frozen=True)
class Described:
    """What an image told beside its samples: Pillow's `info`, its size (width, height) upright, whether it had to be
    turned, and whether its colours were converted, so that its profile no longer fits."""

    info: dict[Any, Any]
    size: tuple[int, int]
    turned: bool
    converted: bool


def from_pil(image: PILImage) -> tuple[Pixels, Described]:
    """The samples [H, W, bands], uint8 or uint16, of an image turned upright: gray and RGB as they are, with alpha
    where there is any transparency; other colours as sRGB, CMYK by its profile. Raises TypeError for numbers of no
    known range."""
    from PIL.Image import Transpose

    if image.mode in ("F", "I"):
        raise TypeError(f"PIL images of mode {image.mode!r} hold numbers of no known range; pass an array instead")
    image.load()  # which turns a TIFF
    info = dict(image.info)
    try:
        found = image.getexif()
        orientation = found.get(exif.ORIENTATION, 1)
        if "exif" not in info:
            info["exif"] = _described(found)
    except _DAMAGED:
        orientation = 1
    turned = orientation in range(2, 9)
    upright = image.transpose(Transpose(_TURNS[orientation - 2])) if turned else image
    return _samples(upright), Described(info, upright.size, turned, image.mode in ("CMYK", "LAB"))


def _described(found: Exif) -> bytes:
    """What EXIF says that an image has not as a block: a TIFF's, or one that was put into it."""
    block = found.tobytes()[6:] if found else b""
    kept = {tag: entry for tag, entry in exif.parse(block).items() if tag in tiff.DESCRIPTIVE} if block else {}
    return exif.build(kept) if kept else b""


def _samples(image: PILImage) -> Pixels:
    if image.mode.startswith("I;16"):
        deep = np.asarray(image).astype(np.uint16)[..., None]
        clear = image.info.get("transparency")
        return deep if clear is None else np.concatenate([deep, np.where(deep == clear, 0, 65535).astype(np.uint16)], 2)
    if image.mode in ("CMYK", "LAB"):
        return _srgb(image)
    mode = _MODES.get(image.mode, "RGB")
    if image.has_transparency_data:
        mode = "LA" if mode in ("L", "LA") else "RGBA"
    samples = np.asarray(image.convert(mode))
    return samples if samples.ndim == 3 else samples[..., None]


def _srgb(image: PILImage) -> Pixels:
    import pyvips

    if image.mode == "LAB":
        given = lab(image)
    else:
        given = pyvips.Image.new_from_array(np.asarray(image)).copy(interpretation="cmyk")
        if profile := image.info.get("icc_profile"):
            given.set_type(pyvips.GValue.blob_type, "icc-profile-data", profile)
    return np.asarray(to_srgb_or_gray(given, []).numpy())


def to_pil(pixels: Pixels, described: Described) -> PILImage:
    """Samples as an image that tells what the one before told: profile, resolution, text, and EXIF and XMP as they are
    true of the new size."""
    from PIL import Image

    made = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    info = {name: value for name, value in described.info.items() if name not in _OF_THE_FILE}
    if described.converted:
        info.pop("icc_profile", None)
    block, packet = info.pop("exif", b""), info.pop("xmp", b"")
    before = Metadata(exif=block.removeprefix(b"Exif\0\0"), xmp=packet)
    after = before.adapted(described.size, made.size, turned=described.turned)
    made.info = info
    if after.exif:
        made.info["exif"] = b"Exif\0\0" + after.exif
    if after.xmp:
        made.info["xmp"] = after.xmp
    return made
