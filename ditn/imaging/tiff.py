# SPDX-License-Identifier: Apache-2.0
"""What TIFF tells beside the pixels. EXIF's first directory is a TIFF's own: its tags stand among those of the pixels.

Sources: TIFF 6.0; TIFF Technical Note for Photoshop (ICC's L*a*b*); EXIF (JEITA CP-3451) 4.6.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import BinaryIO

from ditn.imaging import exif
from ditn.imaging.exif import LONG, RATIONAL, SHORT, Directory, Entry, Layout
from ditn.imaging.metadata import Metadata, resolution_in

PHOTOMETRIC, LAB, ICC_LAB = 0x0106, 8, 9
# NewSubfileType, whose first bit says that the image is a smaller one of another in the file.
_SUBFILE_TYPE, _SMALLER = 254, 1
TILE_WIDTH = 322
# Photometric interpretations that libvips understands: gray, RGB, palette, CMYK, YCbCr, L*a*b*, LogL and LogLuv.
_KNOWN = (0, 1, 2, 3, 5, 6, LAB, ICC_LAB, 32844, 32845)
_SUB_DIRECTORIES = 330
_XMP, _IPTC, _PHOTOSHOP, _PROFILE = 700, 33723, 34377, 34675
_RESOLUTION = (exif.X_RESOLUTION, exif.Y_RESOLUTION, exif.RESOLUTION_UNIT)
# Document, description, maker, model, page, software, time, artist, computer, rating, copyright, EXIF, GPS, Windows'.
DESCRIPTIVE = (
    269,
    270,
    271,
    272,
    285,
    305,
    306,
    315,
    316,
    18246,
    18249,
    33432,
    exif.EXIF,
    exif.GPS,
    *range(40091, 40096),
)
# Sizes, samples, strips, tiles, compression, palette, and which page it is.
_OF_THE_PIXELS = frozenset(
    n
    for first, last in ((254, 266), (273, 274), (277, 284), (290, 293), (296, 297), (317, 317), (320, 325), (332, 347))
    for n in range(first, last + 1)
) | {*_RESOLUTION, *range(512, 522), *range(529, 533), 559}
_NAMES = {
    301: "a transfer function",
    318: "a white point",
    319: "primary colours",
    _SUB_DIRECTORIES: "smaller images",
    37724: "Photoshop's layers",
    50341: "print settings",
    33550: "a place on a map",
    33922: "a place on a map",
    34264: "a place on a map",
    34735: "a place on a map",
    34736: "a place on a map",
    34737: "a place on a map",
}


# Said of a maker note that has to be laid out anew.
MOVED = "the maker note's place in EXIF, from which its own offsets may count"


def pages(file: BinaryIO) -> list[int]:
    """The numbers, from 0, of the directories that are pages, up to where the file is damaged. Previews and a pyramid's
    levels are none, unless there is nothing else. Raises ValueError for what is no TIFF."""
    smaller = list(_smaller(file))
    return [number for number, is_smaller in enumerate(smaller) if not is_smaller] or list(range(len(smaller)))


def directory_of(file: BinaryIO, page: int) -> int:
    """The number of the directory that is a page. Raises ValueError for a page that is not there, and for what is no
    TIFF."""
    found = pages(file)
    if page >= len(found):
        raise ValueError(f"has no page {page + 1} that can be read; it has {len(found)}")
    return found[page]


def photometric(file: BinaryIO, page: int) -> int | None:
    """The number of a page's photometric interpretation. Raises ValueError for one that is not understood, and for what
    is no TIFF."""
    entry = _page(file, page).get(PHOTOMETRIC)
    if entry is None or entry.type != SHORT or not entry.count:
        return None
    number = entry.numbers()[0]
    if number not in _KNOWN:
        raise ValueError(f"has colours of TIFF's kind {number}; convert it to RGB first")
    return number


def is_tiled(file: BinaryIO, page: int) -> bool:
    """Whether a page's pixels lie in tiles, not in strips. Raises ValueError for what is no TIFF."""
    return TILE_WIDTH in _page(file, page)


def read(file: BinaryIO, page: int = 0) -> Metadata:
    """The metadata of a TIFF's page. Raises ValueError for a damaged one."""
    found = _page(file, page)
    described = {tag: entry for tag, entry in found.items() if tag in DESCRIPTIVE}
    photoshop = _bytes(found, _PHOTOSHOP)
    if iptc := _iptc(found):
        resource = b"8BIM\x04\x04\0\0" + struct.pack(">I", len(iptc)) + iptc + b"\0" * (len(iptc) % 2)
        photoshop = photoshop if b"8BIM\x04\x04" in photoshop else resource + photoshop
    dropped = [
        _NAMES.get(tag, f"the TIFF tag {tag}")
        for tag in found
        if tag not in _OF_THE_PIXELS and tag not in DESCRIPTIVE and tag not in (_XMP, _IPTC, _PHOTOSHOP, _PROFILE)
    ]
    if len(pages(file)) < len(list(_smaller(file))):
        dropped.append(_NAMES[_SUB_DIRECTORIES])
    if exif.has_maker_note(described):
        dropped.append(MOVED)
    return Metadata(
        exif=exif.build(described) if described else b"",
        xmp=_bytes(found, _XMP),
        profile=_bytes(found, _PROFILE),
        photoshop=photoshop,
        resolution=resolution_in(found),
        dropped=tuple(dict.fromkeys(dropped)),
    )


def write(file: BinaryIO, metadata: Metadata) -> None:
    """Give a TIFF of one page these metadata: a new directory behind its pixels, in place of the old one."""
    layout, offset = _begin(file)
    found = {
        tag: entry
        for tag, entry in exif.directory(file, offset, layout).items()
        if tag in _OF_THE_PIXELS and tag not in _RESOLUTION
    }
    described = exif.parse(metadata.exif) if metadata.exif else {}
    found |= {tag: entry for tag, entry in described.items() if tag not in _OF_THE_PIXELS}
    if metadata.resolution and max(metadata.resolution) < 2**32 / 1000:
        x, y = (Entry(RATIONAL, struct.pack("<II", round(value * 1000), 1000)) for value in metadata.resolution)
        found |= {exif.X_RESOLUTION: x, exif.Y_RESOLUTION: y, exif.RESOLUTION_UNIT: Entry(SHORT, b"\2\0")}
    contents = {_XMP: (1, metadata.xmp), _PHOTOSHOP: (1, metadata.photoshop), _PROFILE: (7, metadata.profile)}
    found |= {tag: Entry(type_, data) for tag, (type_, data) in contents.items() if data}
    end = file.seek(0, io.SEEK_END)
    start = end + end % 16
    file.write(b"\0" * (start - end))
    file.write(exif.placed(found, start, layout))
    file.seek(8 if layout.big else 4)
    file.write(layout.pointer.pack(start))


def _begin(file: BinaryIO) -> tuple[Layout, int]:
    file.seek(0)
    return exif.begin(file)


def _page(file: BinaryIO, page: int) -> Directory:
    layout, offset = _begin(file)
    for _ in range(directory_of(file, page)):
        _, offset = exif.next_directory(file, offset, layout)
    return exif.directory(file, offset, layout)


def _smaller(file: BinaryIO) -> Iterator[bool]:
    """Of each directory up to where the file is damaged, whether its image is a smaller one of another."""
    layout, offset = _begin(file)
    seen = set()  # a damaged file's directories may go round in a circle
    with suppress(ValueError):
        while offset and offset not in seen:
            seen.add(offset)
            yield bool(_subfile_type(file, offset, layout) & _SMALLER)
            _, offset = exif.next_directory(file, offset, layout)


def _subfile_type(file: BinaryIO, offset: int, layout: Layout) -> int:
    """A directory's, without the values of all its other entries, of which a file of many pages has too many."""
    for _, tag, type_, count, values in exif.entries(file, offset, layout):
        if tag == _SUBFILE_TYPE and type_ in (SHORT, LONG) and count == 1:
            file.seek(values)
            return int.from_bytes(file.read(2 if type_ == SHORT else 4), "little" if layout.order == "<" else "big")
    return 0


def _bytes(found: Directory, tag: int) -> bytes:
    return found[tag].data if tag in found else b""


def _iptc(found: Directory) -> bytes:
    """IPTC's records, which begin with 28. Many files call them long numbers, and as such they were swapped."""
    data = _bytes(found, _IPTC)
    if not data.startswith(b"\x1c") and len(data) % 4 == 0:
        data = b"".join(data[at : at + 4][::-1] for at in range(0, len(data), 4))
    return data if data.startswith(b"\x1c") else b""
