# SPDX-License-Identifier: Apache-2.0
"""Pictures that no photograph resembles: step edges, text, line art, pixel art, patterns of single pixels, noise.

Drawn here with Pillow's own font and numpy, independently of what training draws. All float32 [3, 48, 48] in 0..1.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

SIDE = 48
_MIDDLE = SIDE // 2


def step_edges() -> Iterator[Tensor]:
    """A black and a white half, the edge in eight directions."""
    y, x = np.indices((SIDE, SIDE)) - SIDE / 2 + 0.5
    for direction in range(8):
        angle = direction * math.pi / 4
        yield _gray(x * math.cos(angle) + y * math.sin(angle) > 0)


def text() -> Iterator[Tensor]:
    """Letters of 6 to 60 pixels, with smooth and with hard edges, dark on light and light on dark, in half, 80 % and
    full contrast."""
    for number, (size, smooth) in enumerate(itertools.product((6, 9, 13, 20, 34, 60), (False, True))):
        for contrast in (0.5, 0.8, 1.0):
            image = Image.new("L", (SIDE, SIDE), 0)
            draw = ImageDraw.Draw(image)
            draw.fontmode = "L" if smooth else "1"
            font = ImageFont.load_default(size)
            for line in range(SIDE // size + 1):
                draw.text((2 - line, line * size * 1.1), "Right 47 gmx & Quays"[line:], 255, font)
            ink = np.asarray(image) / 255 * contrast
            yield _gray(ink if number % 2 else 1 - ink)
            yield _gray(1 - ink if number % 2 else ink)


def line_art() -> Iterator[Tensor]:
    """Circles, spokes and boxes of lines one to three pixels wide."""
    for width, dark in itertools.product((1, 2, 3), (False, True)):
        image = Image.new("L", (SIDE, SIDE), 255 * dark)
        draw = ImageDraw.Draw(image)
        for radius in range(6, SIDE, 4 + 3 * width):
            box = (_MIDDLE - radius, _MIDDLE - radius, _MIDDLE + radius, _MIDDLE + radius)
            draw.ellipse(box, outline=255 * (not dark), width=width)
        for angle in np.arange(0, 2 * math.pi, math.pi / 7):
            end = (_MIDDLE + SIDE * math.cos(angle), _MIDDLE + SIDE * math.sin(angle))
            draw.line([(_MIDDLE, _MIDDLE), end], fill=255 * (not dark), width=width)
        draw.rectangle((5, 30, 22, 45), outline=255 * (not dark), width=width)
        yield _gray(np.asarray(image) / 255)


def pixel_art() -> Iterator[Tensor]:
    """Sprites of four colours, mirrored, and grids like those of matrix codes, their blocks one to four pixels wide."""
    random = np.random.default_rng(0)
    for block in (1, 2, 3, 4):
        count = -(-SIDE // block)
        half = random.integers(0, 4, (count, count))
        sprite = random.random((4, 3)).round()[np.maximum(half, half[:, ::-1])]
        code = random.integers(0, 2, (count, count, 1)).repeat(3, 2)
        for cells in (sprite, code):
            large = cells.repeat(block, 0).repeat(block, 1)[:SIDE, :SIDE]
            yield torch.from_numpy(np.ascontiguousarray(large, np.float32)).permute(2, 0, 1)


def patterns() -> Iterator[Tensor]:
    """Checkers and stripes of one to three pixels, ordered and random dithers of gradients, and noise of 0 and 1, gray
    and in colours."""
    y, x = np.indices((SIDE, SIDE))
    for size in (1, 2, 3):
        for index in (x // size + y // size, x // size, y // size):
            yield _gray(index % 2)
    gradient, random = (x + y) / (2 * SIDE), np.random.default_rng(1)
    bayer = np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]])
    yield _gray(gradient > (bayer[y % 4, x % 4] + 0.5) / 16)
    yield _gray(gradient > random.random((SIDE, SIDE)))
    yield _gray(random.integers(0, 2, (SIDE, SIDE)))
    yield torch.from_numpy(random.integers(0, 2, (3, SIDE, SIDE)).astype(np.float32))


def _gray(values: object) -> Tensor:
    return torch.from_numpy(np.asarray(values, np.float32)).expand(3, -1, -1)
