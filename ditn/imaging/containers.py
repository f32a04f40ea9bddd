# SPDX-License-Identifier: Apache-2.0
"""Metadata from and to files of every format, which the file's first bytes tell."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ditn.imaging import bmp, boxes, jpeg, png, tiff, webp
from ditn.imaging.atomic import atomic_write
from ditn.imaging.metadata import HDR, Metadata, resolution_of

if TYPE_CHECKING:
    import pyvips

_MARKS = {
    "png": (png.SIGNATURE,),
    "jpeg": (jpeg.SIGNATURE,),
    "tiff": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "bmp": (bmp.SIGNATURE,),
    "jp2": (boxes.JPEG_2000,),
}
# Primary colours beyond sRGB's: BT.2020's and the two of DCI-P3 (ITU-T H.273, table 2).
_WIDE = (9, 11, 12)
_DAMAGED = (ValueError, struct.error, zlib.error, IndexError)


def kind(path: Path) -> str:
    """ "png", "jpeg", "webp", "tiff", "bmp", "jp2" or "heif", which AVIF is too, by the file's first bytes; "" for
    another."""
    with path.open("rb") as file:
        head = file.read(12)
    if webp.is_webp(head):
        return "webp"
    if head[4:8] == b"ftyp":
        return "heif"
    return next((name for name, marks in _MARKS.items() if head.startswith(marks)), "")


def read(path: Path, header: pyvips.Image, *, page: int = 0) -> Metadata:
    """The metadata of a file, or of a TIFF's page; of a format that has no file here, what libvips found in it."""
    readers: dict[str, Callable[[BinaryIO], Metadata]] = {
        "png": png.read,
        "jpeg": jpeg.read,
        "webp": webp.read,
        "tiff": lambda file: tiff.read(file, page),
        "bmp": bmp.read,
        "jp2": boxes.read_jpeg2000,
        "heif": lambda file: _of_heif(file, header),
    }
    read_page = readers.get(kind(path))
    if not read_page:
        return _from_fields(header)
    try:
        with path.open("rb") as file:
            return read_page(file)
    except _DAMAGED as error:
        return Metadata(dropped=(f"metadata, of which something is damaged ({error})",))


def is_lossless_webp(path: Path) -> bool:
    """Whether a file is a WebP that lost nothing."""
    with path.open("rb") as file:
        return webp.is_webp(file.read(12)) and webp.is_lossless(file)


def write(path: Path, metadata: Metadata, size: tuple[int, int]) -> list[str]:
    """Give a file that an encoder has just written, of an image of size (width, height), these metadata in place of its
    own. Returns what is not in the file then, in words."""
    form = kind(path)
    if form in ("tiff", "bmp"):
        with path.open("r+b") as file:
            (tiff if form == "tiff" else bmp).write(file, metadata)
    else:
        with atomic_write(path) as temporary, path.open("rb") as source, temporary.open("wb") as target:
            _copy(form, source, target, metadata, size)
    with path.open("rb") as file:
        found = {"png": png.read, "jpeg": jpeg.read, "webp": webp.read, "tiff": tiff.read, "bmp": bmp.read}[form](file)
    # A TIFF tells of a moved maker note by itself.
    moved = [name for name in found.dropped if name == tiff.MOVED]
    return list(dict.fromkeys((*metadata.dropped, *metadata.lost_in(found), *moved)))


def _copy(form: str, source: BinaryIO, target: BinaryIO, metadata: Metadata, size: tuple[int, int]) -> None:
    if form == "png":
        png.write(source, target, metadata)
    elif form == "jpeg":
        jpeg.write(source, target, metadata)
    else:
        webp.write(source, target, metadata, size)


def _from_fields(header: pyvips.Image) -> Metadata:
    fields = {name: header.get(name) for name in header.get_fields() if not name.startswith("exif-ifd")}
    block = fields.get("exif-data", b"").removeprefix(b"Exif\0\0")
    return Metadata(
        exif=block,
        xmp=fields.get("xmp-data", b""),
        profile=fields.get("icc-profile-data", b""),
        resolution=tuple(fields["dpi"]) if "dpi" in fields else resolution_of(block),
        comments=tuple(value.encode() for name, value in fields.items() if name.startswith("gif-comment")),
    )


def _of_heif(file: BinaryIO, header: pyvips.Image) -> Metadata:
    """What libvips found; and, if that is no profile, what colours beyond sRGB mean, as PNG has it: decoding makes RGB
    of full range and leaves primaries and transfer as they are."""
    found, colour = _from_fields(header), boxes.nclx(file)
    primaries, transfer = struct.unpack_from(">HH", colour) if colour else (2, 2)
    if found.profile or not (transfer in HDR or primaries in _WIDE):
        return found
    return replace(found, chunks=((b"cICP", bytes([primaries, transfer, 0, 1])),))
