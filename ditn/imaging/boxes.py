# SPDX-License-Identifier: Apache-2.0
"""Boxes, in which JPEG 2000 and HEIF, AVIF too, have their metadata.

Sources: JPEG 2000 (ISO/IEC 15444-1), annex I; ISO base media file format (ISO/IEC 14496-12), 4.2 and 8.11; HEIF
(ISO/IEC 23008-12), 9.3; XMP specification, part 3.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import BinaryIO

from ditn.imaging.metadata import Metadata

JPEG_2000 = b"\0\0\0\x0cjP  \r\n\x87\n"
# JPEG 2000's bilevel, sRGB, gray and sYCC, of all of which its decoder makes gray or sRGB.
_PLAIN_SPACES = (0, 15, 16, 17, 18)
_XMP_UUID = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")
_UUIDS = {b"JpgTiffExif->JP2": "EXIF", bytes.fromhex("b14bf8bd083d4b43a5ae8cd7d5a6ce03"): "a place on a map"}


def read_jpeg2000(file: BinaryIO) -> Metadata:
    """The metadata of a JPEG 2000 file, and by name what of it is not kept."""
    profile, xmp, resolutions, dropped = b"", b"", {}, []
    for kind, data in _boxes(file, b"jp2h", b"uuid", b"xml "):
        if kind == b"jp2h":
            for inner, content in _boxes(io.BytesIO(data), b"colr", b"res "):
                if inner == b"res ":
                    resolutions = {of: _per_inch(value) for of, value in _boxes(io.BytesIO(content), b"resc", b"resd")}
                elif content[0] in (2, 3):
                    profile = profile or content[3:]
                elif content[0] == 1 and (space := int.from_bytes(content[3:7])) not in _PLAIN_SPACES:
                    dropped.append(f"the colours' meaning, JPEG 2000's colour space {space}")
        elif kind == b"uuid" and data.startswith(_XMP_UUID):
            xmp = data[16:]
        elif kind == b"uuid":
            dropped.append(_UUIDS.get(data[:16], f"JPEG 2000's box {data[:16].hex()}"))
        else:
            dropped.append("JPEG 2000's XML")
    # As it was scanned, rather than as it should be shown.
    resolution = resolutions.get(b"resc") or resolutions.get(b"resd")
    return Metadata(profile=profile, xmp=xmp, resolution=resolution, dropped=tuple(dict.fromkeys(dropped)))


def _per_inch(data: bytes) -> tuple[float, float] | None:
    """Pixels per inch, across and down, of a box that has them per metre and the other way round."""
    down, of_down, across, of_across, down_tens, across_tens = struct.unpack(">HHHHbb", data)
    if not (down and of_down and across and of_across):
        return None
    return across / of_across * 10.0**across_tens * 0.0254, down / of_down * 10.0**down_tens * 0.0254


def nclx(file: BinaryIO) -> bytes:
    """The numbers of primary colours, transfer and matrix of HEIF's primary image, where it gives these."""
    meta = next((data[4:] for _, data in _boxes(file, b"meta")), b"")
    parts = dict(_boxes(io.BytesIO(meta), b"pitm", b"iprp"))
    primary = int.from_bytes(parts.get(b"pitm", b"")[4:])
    properties: dict[int, tuple[bytes, bytes]] = {}
    for kind, data in _boxes(io.BytesIO(parts.get(b"iprp", b"")), b"ipco", b"ipma"):
        if kind == b"ipco":
            properties = dict(enumerate(_boxes(io.BytesIO(data)), 1))
        else:
            for number in _associated(data, primary):
                name, value = properties.get(number, (b"", b""))
                if name == b"colr" and value.startswith(b"nclx"):
                    return value[4:]
    return b""


def _associated(ipma: bytes, item: int) -> list[int]:
    """The numbers, from 1, of an item's properties."""
    id_size, size = 4 if ipma[0] else 2, 2 if ipma[3] & 1 else 1
    place = 8
    for _ in range(int.from_bytes(ipma[4:8])):
        one, count = int.from_bytes(ipma[place : place + id_size]), ipma[place + id_size]
        place += id_size + 1
        if one == item:
            # The highest bit says that the property is essential.
            numbers = (ipma[place + n * size : place + (n + 1) * size] for n in range(count))
            return [int.from_bytes(number) & (0x7FFF if size == 2 else 0x7F) for number in numbers]
        place += count * size
    return []


def _boxes(file: BinaryIO, *kinds: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of each box of these kinds, or of any, up to where the file breaks off or is damaged."""
    end, place = file.seek(0, io.SEEK_END), 0
    while place + 8 <= end:
        file.seek(place)
        length, kind = struct.unpack(">I4s", file.read(8))
        if length == 1:
            (length,) = struct.unpack(">Q", file.read(8))
        stop = place + length if length else end
        if not file.tell() <= stop <= end:
            return
        if not kinds or kind in kinds:
            yield kind, file.read(stop - file.tell())
        place = stop
