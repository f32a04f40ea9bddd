# SPDX-License-Identifier: Apache-2.0
"""What BMP tells beside the pixels. Source: Microsoft's BITMAPINFOHEADER and BITMAPV5HEADER."""

from __future__ import annotations

import struct
from typing import BinaryIO

from ditn.imaging.metadata import Metadata

SIGNATURE = b"BM"
# Where the header is, its length, the resolution in pixels per metre, and version 5's profile.
_HEADER, _DENSITY, _SPACE, _PROFILE, _VERSION_5 = 14, 38, 70, 126, 124
_METRE = 1 / 0.0254


def read(file: BinaryIO) -> Metadata:
    """The metadata of a BMP. Raises ValueError or struct.error for a damaged one."""
    file.seek(0)
    head = file.read(_HEADER + _VERSION_5)
    (size,) = struct.unpack_from("<I", head, _HEADER)
    if size < 40:
        return Metadata()
    x, y = struct.unpack_from("<ii", head, _DENSITY)
    profile = b""
    if size >= _VERSION_5 and head[_SPACE : _SPACE + 4] == b"DEBM":  # PROFILE_EMBEDDED, little-endian
        offset, length = struct.unpack_from("<II", head, _PROFILE)
        file.seek(_HEADER + offset)
        profile = file.read(length)
    return Metadata(profile=profile, resolution=(x / _METRE, y / _METRE) if x > 0 and y > 0 else None)


def write(file: BinaryIO, metadata: Metadata) -> None:
    """Give a BMP, which has no place for anything else, its resolution."""
    density = [round(value * _METRE) for value in metadata.resolution or (0.0, 0.0)]
    if max(density) < 2**31:
        file.seek(_DENSITY)
        file.write(struct.pack("<ii", *density))
