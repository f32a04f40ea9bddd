# SPDX-License-Identifier: Apache-2.0
"""Image files put together byte by byte, of kinds that no library here writes."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np


def png(
    path: Path,
    pixels: np.ndarray,
    *chunks: tuple[bytes, bytes],
    after: tuple[tuple[bytes, bytes], ...] = (),
) -> None:
    """A PNG of uint8 or uint16 samples [H, W, 1 to 4], with further chunks before and after the pixels."""
    height, width, bands = pixels.shape
    bits, kind = 8 * pixels.dtype.itemsize, {1: 0, 2: 4, 3: 2, 4: 6}[bands]
    rows = b"".join(b"\0" + row.astype(pixels.dtype.newbyteorder(">")).tobytes() for row in pixels)
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    whole = (header, *chunks, (b"IDAT", zlib.compress(rows)), *after, (b"IEND", b""))
    made = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in whole
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(made))


def tiff(
    path: Path,
    pixels: np.ndarray,
    photometric: int,
    *,
    order: str = "<",
    alpha: bool = False,
    tags: Mapping[int, tuple[int, bytes]] | None = None,
) -> None:
    """A TIFF of one strip, not compressed, of samples [H, W, bands]; `tags` are further ones: type and bytes as they
    stand in the file."""
    height, width, bands = pixels.shape
    sizes = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 7: 1, 12: 8}
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()

    def short(*values: int) -> tuple[int, bytes]:
        return 3, struct.pack(f"{order}{len(values)}H", *values)

    def long(value: int) -> tuple[int, bytes]:
        return 4, struct.pack(f"{order}I", value)

    kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    entries = {256: long(width), 257: long(height), 258: short(*[8 * pixels.dtype.itemsize] * bands), 259: short(1)}
    entries |= {262: short(photometric), 273: long(8), 277: short(bands), 278: long(height), 279: long(len(data))}
    entries |= {339: short(*[kind] * bands)} | ({338: short(2)} if alpha else {}) | dict(tags or {})
    directory = 8 + len(data) + len(data) % 2
    values, table = b"", struct.pack(f"{order}H", len(entries))
    for tag, (type_, value) in sorted(entries.items()):
        table += struct.pack(f"{order}HHI", tag, type_, len(value) // sizes[type_])
        if len(value) > 4:
            table += struct.pack(f"{order}I", directory + 6 + 12 * len(entries) + len(values))
            values += value + b"\0" * (len(value) % 2)
        else:
            table += value.ljust(4, b"\0")
    mark = b"II*\0" if order == "<" else b"MM\0*"
    whole = mark + struct.pack(f"{order}I", directory) + data + b"\0" * (len(data) % 2)
    path.write_bytes(whole + table + bytes(4) + values)
