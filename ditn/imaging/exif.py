# SPDX-License-Identifier: Apache-2.0
"""EXIF, which is TIFF's structure of directories: adapted where it lies, taken apart, and put together again.

A block is adapted in place, because maker notes hold offsets into it that only the maker knows.

Sources: TIFF 6.0, section 2; JEITA CP-3451 (EXIF), 4.6; BigTIFF as libtiff documents it.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

ORIENTATION, EXIF, GPS, INTEROPERABILITY, MAKER_NOTE = 0x0112, 0x8769, 0x8825, 0xA005, 0x927C
X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT = 0x011A, 0x011B, 0x0128
SHORT, LONG, RATIONAL, LONG8 = 3, 4, 5, 16
_POINTERS = (EXIF, GPS, INTEROPERABILITY)
_WIDTHS, _HEIGHTS = (0x0100, 0xA002), (0x0101, 0xA003)
# SubjectArea and SubjectLocation: places in pixels, of the image as it was stored.
_PLACES = (0x9214, 0xA214)
_THUMBNAIL, _THUMBNAIL_LENGTH = 0x0201, 0x0202
# Bytes of a value, and of the numbers in it, by type.
_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_SWAPPED = {type_: 4 if type_ in (5, 10) else size for type_, size in _BYTES.items()}


@dataclass(frozen=True)
class Entry:
    """A directory's entry: its type, and its values as little-endian bytes; or, for a directory below, that."""

    type: int
    data: bytes
    below: Directory | None = None

    @property
    def count(self) -> int:
        return len(self.data) // _BYTES[self.type]

    def numbers(self) -> list[int]:
        """The values of an entry of whole numbers; a rational's two numbers one after the other."""
        return [int(n) for n in np.frombuffer(self.data, f"<u{_SWAPPED[self.type]}")]


Directory = dict[int, Entry]


@dataclass(frozen=True)
class Layout:
    """How a TIFF structure is written: its byte order, and BigTIFF's wider numbers or not."""

    order: str
    big: bool = False

    @property
    def pointer(self) -> struct.Struct:
        return struct.Struct(self.order + ("Q" if self.big else "I"))

    @property
    def count(self) -> struct.Struct:
        """Of a directory's entries."""
        return struct.Struct(self.order + ("Q" if self.big else "H"))

    @property
    def head(self) -> struct.Struct:
        """An entry's tag, type and count; its value or the pointer to it follows."""
        return struct.Struct(self.order + ("HHQ" if self.big else "HHI"))


def begin(file: BinaryIO) -> tuple[Layout, int]:
    """The layout and the first directory's offset. Raises ValueError for what is no TIFF structure."""
    head = file.read(16)
    for order, mark in (("<", b"II"), (">", b"MM")):
        if len(head) >= 8 and head[:2] == mark:
            (version,) = struct.unpack(order + "H", head[2:4])
            if version == 42:
                return Layout(order), struct.unpack(order + "I", head[4:8])[0]
            if version == 43 and len(head) == 16:
                return Layout(order, big=True), struct.unpack(order + "Q", head[8:])[0]
    raise ValueError("does not begin as a TIFF structure does")


def entries(file: BinaryIO, offset: int, layout: Layout) -> Iterator[tuple[int, int, int, int, int]]:
    """Of each entry of a known type its own offset, tag, type, count, and where its values lie. Raises ValueError where
    there is no directory."""
    try:
        file.seek(offset)
        (number,) = layout.count.unpack(file.read(layout.count.size))
        size = layout.head.size + layout.pointer.size
        table = file.read(min(number, 65536) * size)
        for index in range(number):
            tag, type_, count = layout.head.unpack_from(table, index * size)
            place = offset + layout.count.size + index * size
            values = place + layout.head.size
            if type_ in _BYTES and count * _BYTES[type_] > layout.pointer.size:
                (values,) = layout.pointer.unpack_from(table, index * size + layout.head.size)
            if type_ in _BYTES:
                yield place, tag, type_, count, values
    except (struct.error, OverflowError) as error:
        raise ValueError("has a directory that ends outside") from error


def next_directory(file: BinaryIO, offset: int, layout: Layout) -> tuple[int, int]:
    """Where a directory's pointer to the next one lies, and the next one's offset (0: none)."""
    try:
        file.seek(offset)
        (number,) = layout.count.unpack(file.read(layout.count.size))
        place = offset + layout.count.size + number * (layout.head.size + layout.pointer.size)
        file.seek(place)
        return place, layout.pointer.unpack(file.read(layout.pointer.size))[0]
    except (struct.error, OverflowError) as error:
        raise ValueError("has a directory that ends outside") from error


def directory(file: BinaryIO, offset: int, layout: Layout, *, depth: int = 0) -> Directory:
    """The directory at an offset, with those of EXIF below. Entries whose values lie outside are left out. Raises
    ValueError for what is none."""
    end = file.seek(0, io.SEEK_END)
    found: Directory = {}
    for _, tag, type_, count, values in list(entries(file, offset, layout)):
        size = count * _BYTES[type_]
        if values + size > end:
            continue
        file.seek(values)
        data = _swapped(file.read(size), type_, layout.order)
        if tag in _POINTERS and type_ in (LONG, LONG8, 13) and count == 1 and depth < 3:
            pointer = Entry(type_, data).numbers()[0]
            found[tag] = Entry(LONG, b"", directory(file, pointer, layout, depth=depth + 1))
        else:
            found[tag] = Entry(type_, data)
    return found


def parse(block: bytes) -> Directory:
    """A block's first directory, with EXIF's, GPS's and the interoperability directory below it, without the
    thumbnail's. Raises ValueError for a damaged one."""
    file = io.BytesIO(block)
    layout, offset = begin(file)
    return directory(file, offset, layout)


def has_maker_note(found: Directory) -> bool:
    """Whether EXIF's directory below this one holds one."""
    return EXIF in found and MAKER_NOTE in (found[EXIF].below or {})


def build(found: Directory) -> bytes:
    """A block of a directory and those below it, little-endian."""
    return b"II*\0\x08\0\0\0" + placed(found, 8, Layout("<"))


def placed(found: Directory, offset: int, layout: Layout) -> bytes:
    """A directory, its values and the directories below it as they are written at an (even) offset."""
    table = layout.count.pack(len(found))
    room = layout.count.size + len(found) * (layout.head.size + layout.pointer.size) + layout.pointer.size
    values = b""
    for tag in sorted(found):
        entry = found[tag]
        if entry.below is not None:
            count, data = 1, layout.pointer.pack(offset + room + len(values))
            type_ = LONG8 if layout.big else LONG
            values += placed(entry.below, offset + room + len(values), layout)
        else:
            type_, count, data = entry.type, entry.count, _swapped(entry.data, entry.type, layout.order)
        if len(data) > layout.pointer.size:
            start = offset + room + len(values)
            values += data + b"\0" * (len(data) % 2)
            data = layout.pointer.pack(start)
        table += layout.head.pack(tag, type_, count) + data.ljust(layout.pointer.size, b"\0")
    return table + layout.pointer.pack(0) + values


def adapted(block: bytes, width: int, height: int) -> bytes:
    """The block for an upright image of width x height: orientation and sizes say so where they are given; the
    thumbnail with its directory, and the subject's place in pixels are gone. All else stays where it lies.

    Raises ValueError for a damaged block."""
    file = io.BytesIO(block)
    layout, first = begin(file)
    if layout.big:
        raise ValueError("is a BigTIFF, not EXIF")
    data = bytearray(block)
    directory(file, first, layout)
    pointer, second = next_directory(file, first, layout)
    if second:
        _remove_thumbnail(data, file, second, layout)
        layout.pointer.pack_into(data, pointer, 0)
    offsets = [first]
    for _, tag, type_, count, values in entries(file, first, layout):
        if tag == EXIF and type_ in (LONG, 13) and count == 1:
            offsets += layout.pointer.unpack_from(block, values)
    for offset in offsets:
        for place, tag, type_, count, _ in list(entries(file, offset, layout)):
            value = width if tag in _WIDTHS else height if tag in _HEIGHTS else 1 if tag == ORIENTATION else None
            if value is not None and count == 1 and type_ in (SHORT, LONG):
                short = type_ == SHORT and value < 65536
                layout.head.pack_into(data, place, tag, SHORT if short else LONG, 1)
                # A short number stands at the value's beginning, whatever the byte order.
                number = struct.pack(layout.order + ("H" if short else "I"), value).ljust(4, b"\0")
                data[place + layout.head.size : place + layout.head.size + 4] = number
        _remove_places(data, offset, layout)
    return bytes(data)


def _remove_thumbnail(data: bytearray, file: BinaryIO, offset: int, layout: Layout) -> None:
    """Its bytes become zeros, or go where they are the last ones."""
    where = {
        tag: layout.pointer.unpack_from(data, values)[0]
        for _, tag, type_, _, values in entries(file, offset, layout)
        if type_ == LONG and values + 4 <= len(data)
    }
    start, length = where.get(_THUMBNAIL, 0), where.get(_THUMBNAIL_LENGTH, 0)
    if start and start + length <= len(data):
        data[start : start + length] = b"" if start + length == len(data) else bytes(length)


def _remove_places(data: bytearray, offset: int, layout: Layout) -> None:
    """Without SubjectArea and SubjectLocation: the entries behind them move up."""
    size = layout.head.size + layout.pointer.size
    start = offset + layout.count.size
    (number,) = layout.count.unpack_from(data, offset)
    end = start + number * size
    kept = [
        data[at : at + size]
        for at in range(start, end, size)
        if struct.unpack_from(layout.order + "H", data, at)[0] not in _PLACES
    ]
    table = b"".join(kept) + data[end : end + layout.pointer.size]
    layout.count.pack_into(data, offset, len(kept))
    data[start : start + len(table)] = table
    data[start + len(table) : end + layout.pointer.size] = bytes(end + layout.pointer.size - start - len(table))


def _swapped(data: bytes, type_: int, order: str) -> bytes:
    """Between a byte order and little-endian."""
    if order == "<" or _SWAPPED[type_] == 1:
        return data
    return np.frombuffer(data, f">u{_SWAPPED[type_]}").byteswap().tobytes()
