# SPDX-License-Identifier: Apache-2.0
"""What JPEG tells beside the pixels.

Sources: ITU-T T.81, annex B; JFIF 1.02; EXIF (JEITA CP-3451) 4.5; XMP specification, part 3; ICC.1:2010, B.4.
"""

from __future__ import annotations

import shutil
import struct
from collections.abc import Iterator
from typing import BinaryIO

from ditn.imaging.metadata import Metadata, resolution_of

SIGNATURE = b"\xff\xd8\xff"
_APP0, _APP1, _APP2, _APP13, _APP14, _COMMENT, _SCAN = 0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE, 0xDA
_EXIF, _XMP, _EXTENSION = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"http://ns.adobe.com/xmp/extension/\0"
_PROFILE, _PHOTOSHOP, _FURTHER = b"ICC_PROFILE\0", b"Photoshop 3.0\0", b"MPF\0"
_GAIN_MAP = b"urn:iso:std:iso:ts:21496:"
_LARGEST = 65533


def read(file: BinaryIO) -> Metadata:
    """The metadata of a JPEG. Raises ValueError or struct.error for a damaged one."""
    exif, xmp, photoshop, resolution = b"", b"", b"", None
    extension, comments, dropped = [], [], []
    profile: dict[int, bytes] = {}
    for marker, data in _segments(file):
        if marker == _APP0 and data.startswith(b"JFIF\0") and len(data) >= 12:
            unit, x, y = struct.unpack_from(">BHH", data, 7)
            resolution = {1: (float(x), float(y)), 2: (x * 2.54, y * 2.54)}.get(unit) if x and y else None
        elif marker == _APP1 and data.startswith(_EXIF):
            exif = exif or data[len(_EXIF) :]
        elif marker == _APP1 and data.startswith(_XMP):
            xmp = data[len(_XMP) :]
        elif marker == _APP1 and data.startswith(_EXTENSION):
            extension.append(data)
        elif marker == _APP2 and data.startswith(_PROFILE):
            profile[data[len(_PROFILE)]] = data[len(_PROFILE) + 2 :]
        elif marker == _APP2 and data.startswith((_FURTHER, _GAIN_MAP)):
            dropped.append("a gain map or other further images")
        elif marker == _APP13 and data.startswith(_PHOTOSHOP):
            photoshop += data[len(_PHOTOSHOP) :]
        elif marker == _COMMENT:
            comments.append(data)
        # JFIF's own and its thumbnail, and how the colours were encoded, are of this file alone.
        elif 0xE0 < marker <= 0xEF and marker != _APP14:
            name = data.partition(b"\0")[0][:16].decode("ascii", "replace")
            dropped.append(f"APP{marker - 0xE0} ({name})")
    return Metadata(
        exif=exif,
        xmp=xmp,
        xmp_extension=tuple(extension),
        profile=b"".join(profile[number] for number in sorted(profile)),
        photoshop=photoshop,
        resolution=resolution or resolution_of(exif),
        comments=tuple(comments),
        dropped=tuple(dict.fromkeys(dropped)),
    )


def write(source: BinaryIO, target: BinaryIO, metadata: Metadata) -> None:
    """Copy a JPEG that has no metadata with these. What does not fit into a segment is left out."""
    target.write(SIGNATURE[:2])
    density = [round(value) for value in metadata.resolution or ()]
    fits = bool(density) and min(density) > 0 and max(density) < 65536
    unit, x, y = (1, *density) if fits else (0, 1, 1)
    made = [(_APP0, b"JFIF\0\1\2" + struct.pack(">BHHBB", unit, x, y, 0, 0))]
    if metadata.exif:
        made.append((_APP1, _EXIF + metadata.exif))
    if metadata.xmp:
        made.append((_APP1, _XMP + metadata.xmp))
    made += [(_APP1, data) for data in metadata.xmp_extension]
    made += [(_APP13, _PHOTOSHOP + part) for part in _parts(metadata.photoshop, _LARGEST - len(_PHOTOSHOP))]
    parts = _parts(metadata.profile, _LARGEST - len(_PROFILE) - 2)
    if len(parts) < 256:
        made += [(_APP2, _PROFILE + bytes([number, len(parts)]) + part) for number, part in enumerate(parts, 1)]
    made += [(_COMMENT, data) for data in metadata.comments]
    for marker, data in made:
        if len(data) <= _LARGEST:
            target.write(struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data)
    source.seek(2)
    if source.read(2) == b"\xff\xe0":  # the encoder's JFIF segment
        source.seek(struct.unpack(">H", source.read(2))[0] - 2, 1)
    else:
        source.seek(2)
    shutil.copyfileobj(source, target)


def _segments(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Marker and content of each segment before the first scan."""
    file.seek(2)
    while (byte := file.read(1)) == b"\xff":
        while byte == b"\xff":
            byte = file.read(1)
        if not byte or byte[0] == _SCAN:
            return
        (length,) = struct.unpack(">H", file.read(2))
        yield byte[0], file.read(length - 2)


def _parts(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]
