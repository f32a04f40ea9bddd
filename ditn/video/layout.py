# SPDX-License-Identifier: Apache-2.0
"""How a frame's samples lie in memory, by the name of its pixel format; and PyAV, where it is installed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType


class FilmError(ValueError):
    """A film that cannot be read, enlarged or written as asked, and why."""


def pyav() -> ModuleType:
    """PyAV, which is imported when a film is first touched. Raises FilmError where it is not installed."""
    try:
        import av
    except ImportError as error:
        raise FilmError(f"films need PyAV: pip install 'ditn-kernels[video]' ({error})") from error
    return av


def url(path: Path) -> str:
    """A file's name as FFmpeg takes it: what stands before a colon would be a protocol."""
    return f"file:{path}"


@dataclass(frozen=True)
class Layout:
    """A pixel format's samples: bits of each; how many pixels share a chroma sample, across and down (1, 2 or 4; for
    gray and RGB 1); which channels there are; and whether each has a plane of its own, in the machine's byte order."""

    name: str
    depth: int
    across: int
    down: int
    gray: bool
    rgb: bool
    alpha: bool
    planar: bool

    @property
    def bands(self) -> int:
        return (1 if self.gray else 3) + self.alpha


@cache
def layout_of(name: str) -> Layout:
    """Of a pixel format by FFmpeg's name. Raises FilmError if there is none of it, or none of whole numbers."""
    try:
        fmt = pyav().VideoFormat(name)
    except ValueError:
        raise FilmError(f"{name!r} is no pixel format") from None
    parts = fmt.components
    if not parts or fmt.is_bit_stream or "f16" in name or "f32" in name or name.startswith(("bayer", "xyz")):
        raise FilmError(f"the pixel format {name} is not understood")
    alpha = name == "pal8" or any(part.is_alpha for part in parts)
    colours = len(parts) - any(part.is_alpha for part in parts)
    chroma = colours == 3 and not fmt.is_rgb
    # Each component alone in a plane: nv12 and the like hold two in one.
    planar = len({part.plane for part in parts}) == len(parts) and not name.endswith("be") and not fmt.has_palette
    return Layout(
        name,
        depth=max(part.bits for part in parts),
        across=64 // fmt.chroma_width(64) if chroma else 1,
        down=64 // fmt.chroma_height(64) if chroma else 1,
        gray=colours == 1 and not fmt.has_palette,
        rgb=fmt.is_rgb or fmt.has_palette,
        alpha=alpha,
        planar=planar,
    )


def planar_name(layout: Layout) -> str:
    """The format with the same samples, each channel in a plane of its own, into which FFmpeg only rearranges them."""
    depth = next(bits for bits in (8, 9, 10, 12, 14, 16) if bits >= layout.depth)
    ending = "" if depth == 8 else f"{depth}le"
    if layout.gray and not layout.alpha:
        return f"gray{ending}"
    if layout.rgb or layout.gray:
        return f"gbr{'a' if layout.alpha else ''}p{ending}"
    sampling = {(1, 1): 444, (2, 1): 422, (2, 2): 420, (1, 2): 440, (4, 1): 411, (4, 4): 410}[
        layout.across, layout.down
    ]
    return f"yuv{'a' if layout.alpha else ''}{sampling}p{ending}"
