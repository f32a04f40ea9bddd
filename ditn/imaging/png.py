# SPDX-License-Identifier: Apache-2.0
"""What PNG tells beside the pixels. Source: PNG, third edition (W3C 2025), chapters 4.7 and 11.3."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from ditn.imaging.metadata import Metadata, resolution_of

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_COLOUR = (b"gAMA", b"cHRM", b"sRGB", b"cICP", b"mDCV", b"cLLI", b"mDCv", b"cLLi")
# Where the image lies on a canvas, and how large that is, in pixels; although by their last letter other pixels make no
# difference to them.
_PLACES = (b"oFFs", b"caNv", b"vpAg")
# Of the pixels that were, or of the time when they changed.
_PAST = (b"tIME", b"hIST", b"sBIT")
_LARGEST = 2**26
_XMP = b"XML:com.adobe.xmp"
_METRE = 1 / 0.0254


def read(file: BinaryIO) -> Metadata:
    """The metadata of a PNG. Raises ValueError, struct.error or zlib.error for a damaged one."""
    exif, xmp, profile, resolution = b"", b"", b"", None
    chunks, dropped = [], []
    for kind, length, place in _chunks(file):
        if kind in _PIXELS or kind in _PAST:
            continue
        if length > _LARGEST:
            dropped.append(f"{kind.decode('latin-1')} of {length:,} bytes")
            continue
        file.seek(place)
        data = file.read(length)
        if zlib.crc32(kind + data) != int.from_bytes(file.read(4)):
            dropped.append(f"{kind.decode('latin-1')}, which is damaged")
            continue
        keyword, _, rest = data.partition(b"\0")
        if kind == b"eXIf":
            exif = data
        elif kind == b"iCCP":
            profile = _inflated(rest[1:])
        elif kind == b"pHYs" and length == 9 and data[8] == 1:
            x, y = struct.unpack(">II", data[:8])
            resolution = (x / _METRE, y / _METRE) if x and y else None
        elif kind == b"iTXt" and keyword == _XMP:
            xmp = _international(rest)
        elif kind in (b"tEXt", b"zTXt") and keyword.startswith(b"Raw profile type "):
            content = _raw_profile(_inflated(rest[1:]) if kind == b"zTXt" else rest)
            if content.startswith(b"Exif\0\0") and not exif:
                exif = content[6:]
            elif keyword.endswith(b" xmp") and not xmp:
                xmp = content
            elif not keyword.endswith((b" exif", b" APP1", b" icc", b" icm", b" xmp")):
                chunks.append((kind, data))
        elif kind in _PLACES:
            dropped.append(kind.decode("latin-1"))
        elif kind in _COLOUR or kind[3] & 0x20:  # by the last letter, which says that other pixels make no difference
            chunks.append((kind, data))
        else:
            dropped.append(kind.decode("latin-1"))
    resolution = resolution or resolution_of(exif)
    return Metadata(
        exif=exif, xmp=xmp, profile=profile, resolution=resolution, chunks=tuple(chunks), dropped=tuple(dropped)
    )


def write(source: BinaryIO, target: BinaryIO, metadata: Metadata) -> None:
    """Copy a PNG with these metadata instead of its own."""
    target.write(SIGNATURE)
    for kind, length, place in _chunks(source):
        if kind in _PIXELS:
            source.seek(place - 8)
            _copy(source, target, length + 12)
        if kind == b"IHDR":
            for made, data in _made(metadata):
                target.write(struct.pack(">I", len(data)) + made + data)
                target.write(struct.pack(">I", zlib.crc32(made + data)))


def _made(metadata: Metadata) -> Iterator[tuple[bytes, bytes]]:
    """The chunks in their order: the colours' meaning has to come before the palette."""
    if metadata.profile:
        yield b"iCCP", b"ICC profile\0\0" + zlib.compress(metadata.profile)
    # A profile stands for all that the others say but cICP, and sRGB may not stand beside it.
    yield from (
        (kind, data) for kind, data in metadata.chunks if kind in _COLOUR and not (kind == b"sRGB" and metadata.profile)
    )
    if metadata.resolution and max(metadata.resolution) * _METRE < 2**31:
        yield b"pHYs", struct.pack(">IIB", *(round(value * _METRE) for value in metadata.resolution), 1)
    if metadata.exif:
        yield b"eXIf", metadata.exif
    if metadata.xmp:
        yield b"iTXt", _XMP + b"\0\0\0\0\0" + metadata.xmp
    yield from ((kind, data) for kind, data in metadata.chunks if kind not in _COLOUR)


def is_animated(file: BinaryIO) -> bool:
    """Whether an animation control chunk comes before the first image data."""
    return next((kind for kind, _, _ in _chunks(file) if kind in (b"acTL", b"IDAT")), b"") == b"acTL"


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Kind, length and place of each chunk's data, up to the end, or where the file breaks off or is damaged."""
    place = len(SIGNATURE)
    while True:
        file.seek(place)
        head = file.read(8)
        if len(head) < 8:
            return
        length, kind = struct.unpack(">I4s", head)
        if not kind.isalpha():
            return
        yield kind, length, place + 8
        if kind == b"IEND":
            return
        place += length + 12


def _copy(source: BinaryIO, target: BinaryIO, length: int) -> None:
    while length and (data := source.read(min(length, 2**20))):
        target.write(data)
        length -= len(data)


def _inflated(data: bytes) -> bytes:
    inflater = zlib.decompressobj()
    content = inflater.decompress(data, _LARGEST)
    if inflater.unconsumed_tail:
        raise ValueError(f"more than {_LARGEST:,} bytes when it is unpacked")
    return content


def _international(rest: bytes) -> bytes:
    """The text of an iTXt chunk, behind its keyword: whether it is compressed, how, language, translated keyword."""
    _, _, text = rest[2:].partition(b"\0")[2].partition(b"\0")
    return _inflated(text) if rest[:1] == b"\1" else text


def _raw_profile(text: bytes) -> bytes:
    """ImageMagick's form: a name, the length, and hexadecimal digits."""
    match = re.match(rb"\s*\S*\s+\d+\s+([0-9a-fA-F\s]*)$", text)
    return bytes.fromhex(match[1].decode()) if match else b""
