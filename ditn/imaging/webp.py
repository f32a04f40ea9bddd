# SPDX-License-Identifier: Apache-2.0
"""What WebP tells beside the pixels. Source: RFC 9649, section 2.7."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import BinaryIO

from ditn.imaging import exif
from ditn.imaging.metadata import Metadata, resolution_of

_PIXELS = (b"VP8 ", b"VP8L", b"ALPH")
_PROFILE_FLAG, _ALPHA_FLAG, _EXIF_FLAG, _XMP_FLAG = 0x20, 0x10, 0x08, 0x04
_ANIMATION = (b"ANIM", b"ANMF")


def is_webp(head: bytes) -> bool:
    """By a file's first twelve bytes."""
    return head[:4] == b"RIFF" and head[8:12] == b"WEBP"


def is_lossless(file: BinaryIO) -> bool:
    """Whether a WebP's pixels, of an animation those of every frame, are coded so that none is changed."""
    kinds = set()
    for kind, data in _chunks(file):
        kinds |= {inner for inner, _ in _chunks(io.BytesIO(data), start=16)} if kind == b"ANMF" else {kind}
    return b"VP8L" in kinds and b"VP8 " not in kinds


def read(file: BinaryIO) -> Metadata:
    """The metadata of a WebP. Raises ValueError or struct.error for a damaged one."""
    parts = {kind: data for kind, data in _chunks(file) if kind not in _PIXELS}
    block = parts.get(b"EXIF", b"").removeprefix(b"Exif\0\0")
    unknown = [kind for kind in parts if kind not in (b"VP8X", b"ICCP", b"EXIF", b"XMP ", *_ANIMATION)]
    return Metadata(
        exif=block,
        xmp=parts.get(b"XMP ", b""),
        profile=parts.get(b"ICCP", b""),
        resolution=resolution_of(block),
        dropped=tuple(kind.decode("latin-1").strip() for kind in unknown),
    )


def write(source: BinaryIO, target: BinaryIO, metadata: Metadata, size: tuple[int, int]) -> None:
    """Copy a WebP of size (width, height) with these metadata instead of its own."""
    pixels = [(kind, data) for kind, data in _chunks(source) if kind in _PIXELS]
    # Lossless data say in their 29th bit whether alpha is used.
    alpha = any(kind == b"ALPH" or (kind == b"VP8L" and data[4] & 0x10) for kind, data in pixels)
    block = _with_resolution(metadata.exif, metadata.resolution)
    flags = _ALPHA_FLAG * alpha + _PROFILE_FLAG * bool(metadata.profile)
    flags += _EXIF_FLAG * bool(block) + _XMP_FLAG * bool(metadata.xmp)
    width, height = ((side - 1).to_bytes(3, "little") for side in size)
    chunks = [(b"VP8X", struct.pack("<I", flags) + width + height)] if flags & ~_ALPHA_FLAG or len(pixels) > 1 else []
    chunks += [(b"ICCP", metadata.profile)] if metadata.profile else []
    chunks += pixels
    chunks += [(b"EXIF", block)] if block else []
    chunks += [(b"XMP ", metadata.xmp)] if metadata.xmp else []
    total = 4 + sum(8 + len(data) + len(data) % 2 for _, data in chunks)
    target.write(b"RIFF" + struct.pack("<I", total) + b"WEBP")
    for kind, data in chunks:
        target.write(kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2))


def _with_resolution(block: bytes, resolution: tuple[float, float] | None) -> bytes:
    """EXIF that tells the resolution, for which WebP has no other place; but as it is if it would have to be laid out
    anew and holds a maker note, which may not be moved."""
    found = exif.parse(block) if block else {}
    if resolution is None or max(resolution) >= 2**32 / 1000 or exif.X_RESOLUTION in found:
        return block
    if exif.has_maker_note(found):
        return block
    for tag, value in zip((exif.X_RESOLUTION, exif.Y_RESOLUTION), resolution, strict=True):
        found[tag] = exif.Entry(exif.RATIONAL, struct.pack("<II", round(value * 1000), 1000))
    return exif.build(found | {exif.RESOLUTION_UNIT: exif.Entry(exif.SHORT, b"\2\0")})


def _chunks(file: BinaryIO, start: int = 12) -> Iterator[tuple[bytes, bytes]]:
    file.seek(start)
    while len(head := file.read(8)) == 8:
        kind, length = struct.unpack("<4sI", head)
        yield kind, file.read(length)
        file.seek(length % 2, 1)
