# SPDX-License-Identifier: Apache-2.0
"""Tiled BigTIFF of any size, made in parts by many processes and joined: a part holds compressed tiles, and joining
them copies bytes.

A part is a file of tiles, one behind the other, then a JSON object, then that object's length in 8 bytes. The object
has `tiles`, by tile their offset and length from left to right and top to bottom, and whatever else its maker wants to
keep.

Sources: TIFF 6.0, sections 14 (differencing) and 15 (tiles); BigTIFF as libtiff documents it; compression 8, deflate,
by Adobe's TIFF Technical Note 2.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from ditn.imaging import exif
from ditn.imaging.arrays import Pixels
from ditn.imaging.exif import LONG8, SHORT, Entry, Layout

_LONG = exif.LONG
_DEFLATE, _DIFFERENCES, _GRAY, _RGB, _ALPHA = 8, 2, 1, 2, 2
# zlib's: higher levels take three times the time and save some percent of photographs.
_LEVEL = 1
_AT_ONCE = 2**24  # bytes


@dataclass(frozen=True)
class TiledTiff:
    """The shape of an image in tiles: width and height in pixels, bands (gray, gray and alpha, RGB, RGB and alpha),
    uint8 or uint16, and the tiles' side, a multiple of 16."""

    width: int
    height: int
    bands: int
    dtype: str
    side: int

    @property
    def across(self) -> int:
        return -(-self.width // self.side)

    @property
    def down(self) -> int:
        return -(-self.height // self.side)

    def compressed(self, samples: Pixels) -> bytes:
        """A tile of [h, w, bands] samples, as it lies in the file; one that is cut by the image's edge is filled up."""
        height, width = samples.shape[:2]
        full = np.pad(samples, ((0, self.side - height), (0, self.side - width), (0, 0)), mode="edge")
        full[:, 1:] -= full[:, :-1].copy()
        return zlib.compress(full.astype(full.dtype.newbyteorder("<"), copy=False).tobytes(), _LEVEL)


class PartWriter:
    """Writes a part into an open file: tiles in any order, then what is told of them."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._places: dict[tuple[int, int], tuple[int, int]] = {}

    def add(self, row: int, column: int, data: bytes) -> None:
        self._places[row, column] = self._file.tell(), len(data)
        self._file.write(data)

    def close(self, **told: Any) -> None:
        """End the part with its tiles' places, in order, and with anything else that JSON can hold."""
        tiles = [self._places[place] for place in sorted(self._places)]
        text = json.dumps({**told, "tiles": tiles}).encode()
        self._file.write(text + struct.pack("<Q", len(text)))


def told(part: Path) -> dict[str, Any]:
    """What a part says of itself. Raises ValueError for a damaged one."""
    try:
        with part.open("rb") as file:
            file.seek(-8, os.SEEK_END)
            (length,) = struct.unpack("<Q", file.read(8))
            end = file.seek(-8 - length, os.SEEK_END)
            found: dict[str, Any] = json.loads(file.read(length))
            whole = end == sum(length for _, length in found["tiles"])
    except (OSError, ValueError, OverflowError):
        whole = False
    if not whole:
        raise ValueError(f"{part} is damaged; remove it, and it is made again")
    return found


def join(parts: Sequence[Path], form: TiledTiff, path: Path) -> None:
    """Write the image whose tiles the parts hold, top to bottom. Raises ValueError if they hold more or fewer."""
    layout = Layout("<", big=True)
    offsets: list[int] = []
    lengths: list[int] = []
    with path.open("wb") as file:
        file.write(struct.pack("<2sHHHQ", b"II", 43, 8, 0, 0))
        for part in parts:
            start = file.tell()
            tiles = told(part)["tiles"]
            offsets += [start + offset for offset, _ in tiles]
            lengths += [length for _, length in tiles]
            _copy(part, sum(length for _, length in tiles), file)
        if len(offsets) != form.across * form.down:
            raise ValueError(f"the parts hold {len(offsets)} tiles, {form.across} x {form.down} are needed")
        start = file.tell() + file.tell() % 2
        file.seek(start)
        file.write(exif.placed(_directory(form, offsets, lengths), start, layout))
        file.seek(8)
        file.write(layout.pointer.pack(start))


def _copy(part: Path, length: int, target: IO[bytes]) -> None:
    with part.open("rb") as source:
        while length:
            block = source.read(min(length, _AT_ONCE))
            target.write(block)
            length -= len(block)


def _directory(form: TiledTiff, offsets: Sequence[int], lengths: Sequence[int]) -> exif.Directory:
    def short(*numbers: int) -> Entry:
        return Entry(SHORT, struct.pack(f"<{len(numbers)}H", *numbers))

    def long(number: int) -> Entry:
        return Entry(_LONG, struct.pack("<I", number))

    found = {
        256: long(form.width),
        257: long(form.height),
        258: short(*[8 * np.dtype(form.dtype).itemsize] * form.bands),
        259: short(_DEFLATE),
        262: short(_GRAY if form.bands <= 2 else _RGB),
        277: short(form.bands),
        284: short(1),
        317: short(_DIFFERENCES),
        322: long(form.side),
        323: long(form.side),
        324: Entry(LONG8, np.array(offsets, "<u8").tobytes()),
        325: Entry(LONG8, np.array(lengths, "<u8").tobytes()),
    }
    if form.bands in (2, 4):
        found[338] = short(_ALPHA)
    return found
