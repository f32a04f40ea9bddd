# SPDX-License-Identifier: Apache-2.0
"""Metadata from and to files of every format, which the file's first bytes tell."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ditn.imaging import bmp, jpeg, png, tiff, webp
from ditn.imaging.atomic import atomic_write
from ditn.imaging.metadata import Metadata, resolution_of

if TYPE_CHECKING:
    import pyvips

_MARKS = {
    "png": (png.SIGNATURE,),
    "jpeg": (jpeg.SIGNATURE,),
    "tiff": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "bmp": (bmp.SIGNATURE,),
}
_DAMAGED = (ValueError, struct.error, zlib.error, IndexError)


def kind(path: Path) -> str:
    """ "png", "jpeg", "webp", "tiff" or "bmp", by the file's first bytes; "" for another."""
    with path.open("rb") as file:
        head = file.read(12)
    if webp.is_webp(head):
        return "webp"
    return next((name for name, marks in _MARKS.items() if head.startswith(marks)), "")


def read(path: Path, header: pyvips.Image, *, page: int = 0) -> Metadata:
    """The metadata of a file, or of a TIFF's page; of a format that has no file here, what libvips found in it."""
    read_page = {
        "png": png.read,
        "jpeg": jpeg.read,
        "webp": webp.read,
        "tiff": lambda file: tiff.read(file, page),
        "bmp": bmp.read,
    }.get(kind(path))
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
        resolution=resolution_of(block),
        comments=tuple(value.encode() for name, value in fields.items() if name.startswith("gif-comment")),
    )
