# SPDX-License-Identifier: Apache-2.0
"""Numbered pictures and animations: as a source of frames, and as what frames are written to."""

from __future__ import annotations

import hashlib
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ditn.imaging import png, webp
from ditn.imaging.arrays import ImageError, Pixels
from ditn.imaging.atomic import atomic_write
from ditn.imaging.colour import interpretation, to_8_bit
from ditn.imaging.files import READABLE, read
from ditn.video.colour import FULL, RGB, Colour
from ditn.video.layout import FilmError
from ditn.video.source import Source, file_identity

if TYPE_CHECKING:
    from PIL.Image import Image

ANIMATED = (".gif", ".webp", ".apng", ".png")
NUMBERED = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".webp")
_EIGHT_BIT = (".jpg", ".jpeg", ".webp")
_PLACE = re.compile(r"%(0?)(\d*)d")
_RGB = Colour(RGB, FULL)


@dataclass(frozen=True)
class Pictures(Source):
    """Files of one size, in order, at a rate."""

    files: tuple[Path, ...] = ()

    def frames(self, start: int, stop: int) -> Iterator[tuple[int, Pixels]]:
        for number in range(start, stop):
            path = self.files[self.skipped + number]
            try:
                pixels = read(path).pixels
            except ImageError as error:
                raise FilmError(f"{path} {error}") from error
            if pixels.shape[:2] != (self.height, self.width):
                raise FilmError(
                    f"{path} has {pixels.shape[1]}x{pixels.shape[0]} pixels, the first has {self.width}x{self.height}"
                )
            yield number, _of_layout(pixels, self.layout)


def pictures(path: Path, rate: Fraction) -> Pictures:
    """The frames of a folder, every image in it by name, or of a pattern as `frames/%06d.png`. The first says what all
    are. Raises FilmError if there are none."""
    files = given(path)
    if not files:
        raise FilmError("has no images")
    try:
        pixels = read(files[0]).pixels
    except ImageError as error:
        raise FilmError(f"{files[0]} {error}") from error
    height, width, bands = pixels.shape
    layout = (
        ("rgba" if bands in (2, 4) else "rgb24")
        if pixels.itemsize == 1
        else "rgba64le"
        if bands in (2, 4)
        else "rgb48le"
    )
    digest = hashlib.sha256("\n".join(f"{file.name} {file_identity(file)}" for file in files).encode(errors="replace"))
    return Pictures(
        path,
        width,
        height,
        time_base=1 / rate,
        rate=rate,
        pts=tuple(range(len(files))),
        end=len(files),
        layout=layout,
        colour=_RGB,
        identity=f"{len(files)} files, {digest.hexdigest()}",
        entries=tuple(range(len(files))),
        files=tuple(files),
    )


def given(path: Path) -> list[Path]:
    """The images that a folder or a pattern stands for, in the order of the frames."""
    files = numbered(path).values() if are_numbered(path) else sorted(path.iterdir())
    return [file for file in files if file.suffix.lower() in READABLE and not file.name.startswith(".")]


def numbered(pattern: Path) -> dict[int, Path]:
    """The files that a pattern as `%06d.png` means, in the order of their numbers. Raises FilmError for one without
    such a place."""
    place = _PLACE.search(pattern.name)
    if not place:
        raise FilmError(f"{pattern.name} has no place for a number, such as %06d")
    before, after = map(re.escape, (pattern.name[: place.start()], pattern.name[place.end() :]))
    fits = re.compile(rf"{before}(\d+){after}")
    found = {int(match[1]): file for file in pattern.parent.iterdir() if (match := fits.fullmatch(file.name))}
    return dict(sorted(found.items()))


def is_pattern(name: str) -> bool:
    """Whether a name has a place for a number."""
    return bool(_PLACE.search(Path(name).name))


def are_numbered(path: Path) -> bool:
    """Whether a path stands for numbered pictures: it has a place for a number, and is no file's own name, of which
    %20d may well be a part."""
    return is_pattern(path.name) and not os.path.exists(path)


def name_of(pattern: Path, number: int) -> Path:
    """The file of a number. Only the place for it is filled in: other per cent signs are a name's own."""
    return pattern.with_name(_PLACE.sub(lambda place: f"{number:{place[1]}{place[2]}d}", pattern.name, count=1))


@dataclass(frozen=True)
class Animation(Source):
    """A GIF, WebP or APNG with several frames, upright as Pillow composes them. `loops` as in the file: 0 for ever,
    None if it does not say. `lossless` of a WebP that loses nothing."""

    loops: int | None = None
    lossless: bool = False

    def frames(self, start: int, stop: int) -> Iterator[tuple[int, Pixels]]:
        for number, image in enumerate(_composed(self.path)):
            if number >= self.skipped + stop:
                return
            if number >= self.skipped + start:
                yield number - self.skipped, _of_layout(np.asarray(image.convert("RGBA")), self.layout)


def is_animated(path: Path) -> bool:
    """Whether a file is a GIF, WebP or PNG of several frames, by what it begins with."""
    from PIL import Image

    if path.suffix.lower() not in ANIMATED or not os.path.isfile(path):
        return False
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            head = file.read(12)
            if head.startswith(b"\x89PNG"):
                return png.is_animated(file)
            if not head.startswith(b"GIF8") and head[8:] != b"WEBP":
                return False
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # nothing is decoded here
            with Image.open(path) as image:
                return getattr(image, "n_frames", 1) > 1
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False


def animation(path: Path) -> Animation:
    """The frames of a file that `is_animated`."""
    from PIL import Image

    with Image.open(path) as image:
        width, height = image.size
        loops = image.info.get("loop")
    with path.open("rb") as file:
        lossless = webp.is_webp(file.read(12)) and webp.is_lossless(file)
    times, alpha = [0], False
    for frame in _composed(path):
        # Browsers show what says nothing, or next to nothing, for a tenth of a second.
        milliseconds = round(frame.info.get("duration", 0))
        times.append(times[-1] + (milliseconds if milliseconds > 10 else 100))
        alpha = alpha or bool((np.asarray(frame.convert("RGBA"))[..., 3] < 255).any())
    return Animation(
        path,
        width,
        height,
        time_base=Fraction(1, 1000),
        rate=Fraction(1000 * (len(times) - 1), times[-1]),
        pts=tuple(times[:-1]),
        end=times[-1],
        layout="rgba" if alpha else "rgb24",
        colour=_RGB,
        identity=file_identity(path),
        loops=loops,
        lossless=lossless,
    )


def _composed(path: Path) -> Iterator[Image]:
    from PIL import Image

    with Image.open(path) as image:
        still = bool(image.info.get("default_image"))
        if still:  # for those who show no animations: Pillow counts it, but it is no frame, and lies under none
            image.paste(0, (0, 0, *image.size))
        for number in range(still, getattr(image, "n_frames", 1)):
            try:
                image.seek(number)
                image.load()
            except (OSError, EOFError, SyntaxError) as error:
                raise FilmError(f"cannot be decoded from frame {number + 1} on: {error}") from error
            yield image


def _of_layout(pixels: Pixels, layout: str) -> Pixels:
    """[H, W, bands] as the first frame is: with or without alpha, gray as colours, in its depth."""
    bands = pixels.shape[2]
    colours = pixels[..., : 3 if bands > 2 else 1]
    if colours.shape[2] == 1:
        colours = np.repeat(colours, 3, axis=2)
    if layout.startswith("rgba"):
        whole = np.iinfo(pixels.dtype).max
        alpha = pixels[..., -1:] if bands in (2, 4) else np.full_like(pixels[..., :1], whole)
        colours = np.concatenate([colours, alpha], axis=2)
    depth = 16 if "48" in layout or "64" in layout else 8
    return as_depth(np.ascontiguousarray(colours), depth)


def as_depth(pixels: Pixels, depth: int) -> Pixels:
    """uint8 or uint16 samples in the other depth, rounded."""
    if depth == 8 * pixels.itemsize:
        return pixels
    if depth == 16:
        return pixels.astype(np.uint16) * 257
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def picture_bytes(pixels: Pixels, suffix: str, *, quality: int | None) -> bytes:
    """One picture as a file of that suffix, in its depth or, where the format has no more, 8 bits; JPEG on white.
    `quality` is JPEG's and WebP's; None makes a WebP that loses nothing."""
    import pyvips

    if suffix in (".jpg", ".jpeg"):
        pixels = to_8_bit(pixels)
    elif suffix in _EIGHT_BIT:
        pixels = as_depth(pixels, 8)
    image = pyvips.Image.new_from_array(np.ascontiguousarray(pixels))
    image = image.copy(interpretation=interpretation(image.bands, 8 * pixels.itemsize))
    options: dict[str, Any] = {"Q": quality} if suffix in _EIGHT_BIT else {}
    if suffix == ".webp" and quality is None:
        options = {"lossless": True, "exact": True}
    elif suffix in (".tif", ".tiff"):
        options = {"compression": "lzw", "predictor": "horizontal"}
    data: bytes = image.write_to_buffer(suffix, **options)
    return data


def write_animation(path: Path, source: Source, frames: Sequence[tuple[int, Path]], *, quality: int | None) -> None:
    """The frames, each a file by its number, as an animation at `path`, with the times of the source: to the
    millisecond, in GIF to the hundredth of a second. `quality` is as for `picture_bytes`. Pillow holds what changes in
    GIF and APNG in memory until all is there."""
    from PIL import Image

    suffix = path.suffix.lower()
    step = 10 if suffix == ".gif" else 1
    edges = [(source.pts[number] - source.pts[0]) * source.time_base for number, _ in frames]
    edges.append((source.end - source.pts[0]) * source.time_base)
    ticks = [math.floor(edge * 1000 / step + Fraction(1, 2)) for edge in edges]
    durations = [max(after - before, 1) * step for before, after in pairwise(ticks)]

    loops = source.loops if isinstance(source, Animation) else 0
    options: dict[str, Any] = {"duration": durations, "save_all": True}
    if loops is not None:
        options["loop"] = loops
    if suffix == ".webp":
        options |= {"lossless": True, "exact": True} if quality is None else {"quality": quality, "method": 4}
    first, *others = (file for _, file in frames)
    with atomic_write(path) as temporary:
        form = {".gif": "GIF", ".webp": "WEBP"}.get(suffix, "PNG")
        prepared = _as_it_is
        if form == "GIF" and source.layout.startswith("rgba"):
            options["disposal"], prepared = 2, _without_soft_edges
        with Image.open(first) as image:
            prepared(image).save(temporary, form, append_images=_Opened(others, prepared), **options)


@dataclass(frozen=True)
class _Opened:
    """The images of files, opened and prepared one after the other, as often as they are asked for."""

    files: Sequence[Path]
    prepared: Callable[[Image], Image]

    def __iter__(self) -> Iterator[Image]:
        from PIL import Image

        for file in self.files:
            with Image.open(file) as image:
                image.load()
                yield self.prepared(image)


def _as_it_is(image: Image) -> Image:
    return image


def _without_soft_edges(image: Image) -> Image:
    """Every pixel visible or not: Pillow makes whatever is not wholly transparent opaque, and haze becomes specks."""
    from PIL import Image

    pixels = np.array(image.convert("RGBA"))
    pixels[pixels[..., 3] < 128] = 0
    pixels[..., 3] = np.where(pixels[..., 3], 255, 0)
    return Image.fromarray(pixels)
