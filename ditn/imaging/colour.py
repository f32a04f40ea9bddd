# SPDX-License-Identifier: Apache-2.0
"""Decoded images of any colours to gray or sRGB, and without alpha."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ditn.imaging.arrays import ImageError, Pixels, Pixels8

if TYPE_CHECKING:
    import pyvips

# The factors and offsets that make L*, a*, b* of ICC's 8-bit and 16-bit encoding (ICC.1:2001-04, A.2).
_ICC_LAB = {"uchar": (100 / 255, 1.0), "ushort": (100 / 65280, 1 / 256)}


def to_srgb_or_gray(image: pyvips.Image, notes: list[str], *, icc_lab: bool = False) -> pyvips.Image:
    """Leave gray and RGB of 8 or 16 bits as they are; convert the rest to sRGB, and note that.

    L*a*b* is relative to D50, as Photoshop's note on TIFF and ICC have it, and converted by ICC's rules. icc_lab says
    that the samples are L*a*b* in ICC's encoding, which libvips does not know. Raises ImageError for samples of no
    known range.
    """
    kind = image.interpretation
    if icc_lab:
        kind = "lab"
    elif kind == "labs" or (kind == "lab" and image.bands == 3):
        pass
    elif image.format not in ("uchar", "ushort"):
        raise ImageError(f"has {image.format} samples; convert it to 8 or 16 bits per channel first")
    depth = 8 if image.format == "uchar" or _bits(image) == 8 else 16
    if kind in ("b-w", "grey16", "srgb", "rgb16", "rgb"):
        return image
    if kind == "multiband":
        return image.copy(interpretation=interpretation(image.bands, depth)) if image.bands <= 4 else image
    notes.append(f"{kind.removesuffix('s')} converted to sRGB")
    if kind == "cmyk":
        embedded = bool(image.get_typeof("icc-profile-data"))
        return image.icc_transform("srgb", embedded=embedded, input_profile="cmyk", depth=depth)
    if kind in ("lab", "labs"):
        return _from_lab(image, depth, icc_lab=icc_lab)
    return image.colourspace("srgb" if depth == 8 else "rgb16")


def _from_lab(image: pyvips.Image, depth: int, *, icc_lab: bool) -> pyvips.Image:
    alpha = image.extract_band(3) if image.bands == 4 else None
    lab = image.extract_band(0, n=3)
    if icc_lab:
        of_l, of_ab = _ICC_LAB[image.format]
        lab = (lab * [of_l, of_ab, of_ab] - [0, 128, 128]).copy(interpretation="lab")
    elif image.format == "short":
        lab = lab.copy(interpretation="labs").colourspace("lab")
        # libvips widens 8 bits of alpha to 16, whose upper half is negative here.
        alpha = alpha and alpha.copy(format="ushort")
        alpha = alpha >> 8 if alpha and depth == 8 else alpha
    colours = lab.icc_export(output_profile="srgb", depth=depth, intent="relative")
    if alpha:
        colours = colours.bandjoin(alpha.cast(colours.format))
    return colours.copy(interpretation=interpretation(3, depth))


def _bits(image: pyvips.Image) -> int:
    """Of a sample in the file, where libvips says."""
    return int(image.get("bits-per-sample")) if image.get_typeof("bits-per-sample") else 0


def interpretation(bands: int, depth: int) -> str:
    """libvips' name for gray (1 or 2 bands) and RGB of 8 or 16 bits."""
    gray, colour = ("b-w", "srgb") if depth == 8 else ("grey16", "rgb16")
    return gray if bands <= 2 else colour


def to_8_bit(pixels: Pixels) -> Pixels8:
    """[H, W, bands] uint8 or uint16 samples -> uint8 RGB [H, W, 3] or gray [H, W]: rounded, on white where there is
    alpha."""
    bands, limit = pixels.shape[2], 255 if pixels.dtype == np.uint8 else 65535
    if bands in (2, 4):
        alpha = pixels[..., -1:] / np.float32(limit)
        pixels = pixels[..., :-1] * alpha + limit * (1 - alpha)
    if pixels.dtype != np.uint8:
        pixels = np.rint(pixels / np.float32(limit / 255)).astype(np.uint8)
    return pixels[..., 0] if bands <= 2 else pixels
