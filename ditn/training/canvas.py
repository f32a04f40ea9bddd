# SPDX-License-Identifier: Apache-2.0
"""What drawings are made with: a canvas, its colours, and words in the fonts that come with matplotlib."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Random = np.random.Generator
Colour = tuple[int, int, int]

_FACES = ("DejaVuSans", "DejaVuSerif", "DejaVuSansMono", "STIXGeneral", "cmr10", "cmss10", "cmtt10")
_STYLES = {"DejaVuSans": ("", "-Bold", "-Oblique"), "DejaVuSerif": ("", "-Bold", "-Italic"), "DejaVuSansMono": ("",)}
_LETTERS = "etaoinshrdlucmfwypvbgkqjxz"
_FREQUENCIES = np.array([12, 9, 8, 8, 7, 7, 6, 6, 6, 4, 4, 3, 3, 2, 2, 2, 2, 2, 1, 1.5, 2, 0.8, 0.1, 0.2, 0.2, 0.1])
_BLACK_ON_WHITE_SHARE = 0.5


@dataclass(frozen=True)
class Canvas:
    """A square to draw on. `unit` is one low-resolution pixel in its own pixels, in which widths and sizes are chosen;
    `inks` are the paper's colour and three for what is on it."""

    image: Image.Image
    draw: ImageDraw.ImageDraw
    side: int
    unit: int
    inks: tuple[Colour, ...]
    random: Random

    def length(self, low: float, high: float) -> int:
        """A length of `low` to `high` low-resolution pixels, small ones as likely as large ones."""
        return max(1, round(self.unit * math.exp(self.random.uniform(math.log(low), math.log(high)))))

    def point(self) -> tuple[int, int]:
        """Anywhere, a little outside too."""
        x, y = self.random.uniform(-0.1, 1.1, 2) * self.side
        return round(x), round(y)

    def ink(self) -> Colour:
        return self.inks[self.random.integers(1, len(self.inks))]

    def write(self, place: tuple[int, int], text: str, size: int, ink: Colour | None = None) -> None:
        self.draw.text(place, text, fill=ink or self.inks[1], font=load_font(random_face(self.random), size))


def random_inks(random: Random) -> tuple[Colour, ...]:
    if random.random() < _BLACK_ON_WHITE_SHARE:
        paper, ink = ((255, 255, 255), (0, 0, 0))[:: random.choice((1, -1))]
        return paper, ink, ink, ink
    return tuple((int(r), int(g), int(b)) for r, g, b in random.integers(0, 256, (4, 3)))


@functools.cache
def _folder() -> Path:
    found = find_spec("matplotlib")
    if found is None or found.origin is None:
        raise RuntimeError(
            "drawn training images need matplotlib's fonts: pip install 'ditn-kernels[train]', or train without "
            "(--drawn 0 --consistency 0)"
        )
    return Path(found.origin).parent / "mpl-data" / "fonts" / "ttf"


def random_face(random: Random) -> str:
    face = _FACES[random.integers(len(_FACES))]
    styles = _STYLES.get(face, ("",))
    return face + styles[random.integers(len(styles))]


@functools.lru_cache(maxsize=256)
def load_font(face: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(_folder() / f"{face}.ttf"), size)


def random_words(random: Random, count: int) -> str:
    """Words of English letters, some capitalised, some numbers, some with punctuation."""
    words = []
    for _ in range(count):
        if random.random() < 0.12:
            words.append(str(random.integers(1, 100_000)))
            continue
        word = "".join(random.choice(list(_LETTERS), size=random.integers(1, 10), p=_FREQUENCIES / _FREQUENCIES.sum()))
        style = random.random()
        word = word.upper() if style < 0.1 else word.capitalize() if style < 0.3 else word
        words.append(word + str(random.choice(list(".,;:?!)")) if random.random() < 0.15 else ""))
    return " ".join(words)
