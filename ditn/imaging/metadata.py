# SPDX-License-Identifier: Apache-2.0
"""What a file tells of its image beside the pixels, whatever the format, and what an enlargement may still tell."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import Any

from ditn.imaging import exif, xmp

# Tags of an EXIF block's first directory that belong to the image as it lies in one file, not to what it shows.
_OF_THE_FILE = frozenset(
    (
        *range(0xFE, 0x103),
        0x103,
        0x106,
        0x111,
        0x112,
        0x115,
        0x116,
        0x117,
        0x11A,
        0x11B,
        0x11C,
        0x128,
        0x201,
        0x202,
        0x213,
    )
)
_THUMBNAILS = (0x0409, 0x040C)
# The transfer characteristics of high dynamic range (ITU-T H.273, table 3), as cICP and HEIF number them.
HDR = {16: "PQ", 18: "HLG"}
# PNG's ways to say sRGB, which is also what a file means that says nothing.
_SRGB_CHUNKS = {
    b"gAMA": (struct.pack(">I", 45455),),
    b"cHRM": (struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000),),
    b"sRGB": (b"\0", b"\1", b"\2", b"\3"),
    b"cICP": (b"\1\15\0\1",),
}


@dataclass(frozen=True)
class Metadata:
    """Everything as the bytes of its own standard, without a format's wrapping.

    exif           a TIFF structure
    xmp            a packet; `xmp_extension` holds JPEG's segments of what did not fit into it
    profile        an ICC profile
    photoshop      Photoshop's resources, of which IPTC's fields are one
    resolution     pixels per inch, across and down
    comments       JPEG's and GIF's
    chunks         PNG's kinds and data: text, and what the colours mean
    dropped        what cannot be kept or is not true of an enlargement, in words
    """

    exif: bytes = b""
    xmp: bytes = b""
    xmp_extension: tuple[bytes, ...] = ()
    profile: bytes = b""
    photoshop: bytes = b""
    resolution: tuple[float, float] | None = None
    comments: tuple[bytes, ...] = ()
    chunks: tuple[tuple[bytes, bytes], ...] = ()
    dropped: tuple[str, ...] = ()

    def adapted(self, before: tuple[int, int], after: tuple[int, int], *, turned: bool) -> Metadata:
        """As it is true of an upright image of `after` (width, height) pixels that was one of `before`; `turned` says
        whether it had lain on its side or was mirrored in its file. Damaged parts are dropped."""
        made, dropped = self, list(self.dropped)
        if self.exif:
            try:
                made = replace(made, exif=exif.adapted(self.exif, *after))
            except (ValueError, struct.error) as error:
                made = replace(made, exif=b"")
                dropped.append(f"EXIF, which {error}")
        if self.xmp:
            try:
                packet, lost = xmp.adapted(self.xmp, before, after, turned=turned)
                made = replace(made, xmp=packet)
                dropped += [f"XMP's {name}" for name in lost if not name.endswith(":Thumbnails")]
                if xmp.tells_of_other_images(self.xmp) and "a gain map or other further images" not in dropped:
                    dropped.append("a gain map or other further images")
                if any(name.partition(":")[2].startswith(xmp.OF_A_FILM) for name in lost):
                    dropped.append("a motion photo's film")
            except (ValueError, RecursionError) as error:
                made = replace(made, xmp=b"")
                dropped.append(f"XMP, which {error}")
        if self.photoshop:
            try:
                made = replace(made, photoshop=without_thumbnails(self.photoshop))
            except (ValueError, struct.error):
                made = replace(made, photoshop=b"")
                dropped.append("IPTC and Photoshop's data, which are damaged")
        return replace(made, dropped=tuple(dropped))

    def lost_in(self, found: Metadata) -> list[str]:
        """What of this is not in what was found in a file, in words."""
        names = []
        for name, value in self._items().items():
            other = found._items().get(name)
            if name == "the resolution":
                # JPEG knows whole numbers only, PNG and BMP pixels of a metre.
                same = other is not None and all(abs(a - b) <= 0.51 for a, b in zip(value, other, strict=True))
            else:
                same = value == other
            if not same:
                names.append(name)
        return names

    def _items(self) -> dict[str, Any]:
        items: dict[str, Any] = {
            "EXIF": _told(self.exif),
            "XMP": self.xmp.strip(b"\0 \r\n\t"),
            "XMP's extension": self.xmp_extension,
            "the colour profile": self.profile,
            "IPTC and Photoshop's data": self.photoshop,
            "the resolution": self.resolution,
            "a comment": self.comments,
        }
        for kind, data in self.chunks:
            if kind in (b"tEXt", b"zTXt", b"iTXt"):
                keyword = data.partition(b"\0")[0].decode("latin-1")
                items[f'the text "{keyword}"'] = (*items.get(f'the text "{keyword}"', ()), data)
            elif data not in _SRGB_CHUNKS.get(kind, ()):
                hdr = HDR.get(data[1]) if kind == b"cICP" and len(data) == 4 else None
                items[f"cICP, that the colours are HDR ({hdr})" if hdr else kind.decode("latin-1")] = data
        return {name: value for name, value in items.items() if value}


def _told(block: bytes) -> exif.Directory:
    """What EXIF tells of the image. Another place in the file or another byte order makes no difference."""
    if not block:
        return {}
    try:
        found = exif.parse(block)
    except (ValueError, struct.error):
        return {}
    return {tag: entry for tag, entry in found.items() if tag not in _OF_THE_FILE}


def resolution_of(block: bytes) -> tuple[float, float] | None:
    """Pixels per inch, if EXIF gives them."""
    try:
        return resolution_in(exif.parse(block)) if block else None
    except (ValueError, struct.error):
        return None


def resolution_in(found: exif.Directory) -> tuple[float, float] | None:
    """Pixels per inch, if a directory of TIFF or EXIF gives them."""
    values = []
    for tag in (exif.X_RESOLUTION, exif.Y_RESOLUTION):
        entry = found.get(tag)
        if entry is None or entry.type != exif.RATIONAL or entry.count != 1:
            return None
        number, divisor = entry.numbers()
        values.append(number / divisor if divisor else 0.0)
    unit = found.get(exif.RESOLUTION_UNIT)
    factor = {2: 1.0, 3: 2.54}.get(unit.numbers()[0] if unit and unit.type == exif.SHORT and unit.count else 2, 0.0)
    return (values[0] * factor, values[1] * factor) if factor and min(values) > 0 else None


def without_thumbnails(resources: bytes) -> bytes:
    """Photoshop's resources without the thumbnails among them. Raises ValueError for damaged ones.

    Source: Adobe Photoshop File Formats Specification, "Image Resource Blocks".
    """
    kept, place = b"", 0
    while resources[place : place + 4] in (b"8BIM", b"MeSa", b"PHUT", b"DCSR", b"AgHg"):
        (number, name) = struct.unpack_from(">HB", resources, place + 4)
        head = place + 6 + (1 + name + 1) // 2 * 2
        (size,) = struct.unpack_from(">I", resources, head)
        end = head + 4 + size + size % 2
        if head + 4 + size > len(resources):
            raise ValueError("ends early")
        if number not in _THUMBNAILS:
            kept += resources[place:end]
        place = end
    if resources[place:].strip(b"\0"):
        raise ValueError("holds something else")
    return kept


def fitting_profile(profile: bytes, *, gray: bool, suffix: str) -> str | None:
    """Why a profile is not for an image, gray or RGB, in a format of that suffix; None if it is."""
    if len(profile) < 132 or profile[36:40] != b"acsp":
        return "the colour profile, which is damaged"
    space = profile[16:20].decode("latin-1").strip()
    # In PNG a profile is of the image's own kind; WebP knows colour only.
    kinds = {".png": ("GRAY",) if gray else ("RGB",), ".webp": ("RGB",)}.get(
        suffix, ("GRAY", "RGB") if gray else ("RGB",)
    )
    return None if space in kinds else f"the colour profile, which is for {space} and not for {' or '.join(kinds)}"
