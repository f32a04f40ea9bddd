# SPDX-License-Identifier: Apache-2.0
"""Training images that no camera takes: text, line art, tables, windows, maps, plots, pixel art, dithers, masks.

Photographs have no edge of full contrast and no pattern of single pixels, so a network trained on them alone has never
seen a scanned page or a screenshot. Everything is a function of the random generator it is given, and the fonts come
with matplotlib, so a run repeats on any machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from ditn.imaging.arrays import Pixels8
from ditn.training.canvas import Canvas, Random, load_font, random_face, random_inks, random_words

_BAYER = np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]])
_SUPERSAMPLING = 3
_HARD_SHARE = 0.3


def drawing(side: int, scale: int, random: Random) -> Pixels8:
    """A drawing [side, side, 3], uint8 RGB, whose sizes suit an image that is then made `scale` times smaller: letters
    and lines have those that they would have in the small image, times the scale.

    Half of them are black on white or white on black, the others of two to four colours of any contrast; three in ten
    have hard edges, the others smooth ones.

    Raises RuntimeError if matplotlib, whose fonts are used, is not installed.
    """
    finer = 1 if random.random() < _HARD_SHARE else _SUPERSAMPLING
    inks = random_inks(random)
    image = Image.new("RGB", (side * finer, side * finer), inks[0])
    draw = ImageDraw.Draw(image)
    draw.fontmode = "1" if finer == 1 else "L"
    canvas = Canvas(image, draw, side * finer, scale * finer, inks, random)
    _KINDS[random.integers(len(_KINDS))](canvas)
    return np.asarray(image.reduce(finer) if finer > 1 else image)


def extreme(side: int, random: Random, photograph: Pixels8) -> Pixels8:
    """A low-resolution image [side, side, 3], uint8 RGB, of full contrast at the highest frequencies, which no
    high-resolution image has when it is made smaller: noise of 0 and 255; noise above a threshold; checkers and stripes
    of 1 to 4 pixels; the `photograph` [side, side, 3], dithered at random; and a drawing with hard edges, made
    at this size."""
    kind = random.integers(5)
    if kind == 0:
        bits = random.integers(0, 2, (side, side, random.choice((1, 3))), dtype=np.uint8)
        return np.broadcast_to(bits * np.uint8(255), (side, side, 3))
    if kind == 1:
        noise = random.random((side, side, 3))
        return np.where(noise > random.random(), (noise * 255).round(), 0).astype(np.uint8)
    if kind == 2:
        y, x = np.indices((side, side)) // random.integers(1, 5)
        index = (x + y, x, y)[random.integers(3)] % 2
        first, second = random.integers(0, 256, (2, 3)) if random.random() < 0.5 else np.array([[0] * 3, [255] * 3])
        return np.where(index[..., None], first, second).astype(np.uint8)
    if kind == 3:
        threshold = random.random((side, side, 1)) * 255
        return ((photograph > threshold) * 255).astype(np.uint8)
    inks = random_inks(random)
    image = Image.new("RGB", (side, side), inks[0])
    draw = ImageDraw.Draw(image)
    draw.fontmode = "1"
    _KINDS[random.integers(len(_KINDS))](Canvas(image, draw, side, 1, inks, random))
    return np.asarray(image)


def _page(canvas: Canvas) -> None:
    """Lines of text in one font."""
    size = canvas.length(6, 40)
    font = load_font(random_face(canvas.random), size)
    x = round(canvas.random.uniform(-4, 1) * size)
    for y in range(round(-size * canvas.random.random()), canvas.side, round(size * canvas.random.uniform(1.1, 1.6))):
        text = random_words(canvas.random, 3 + 2 * canvas.side // size)
        canvas.draw.text((x, y), text[: 8 + 3 * canvas.side // size], fill=canvas.inks[1], font=font)


def _labels(canvas: Canvas) -> None:
    """Words of all sizes and colours, anywhere, some turned."""
    for _ in range(canvas.random.integers(3, 10)):
        size = canvas.length(6, 60)
        canvas.write(canvas.point(), random_words(canvas.random, 2), size, canvas.ink())
    if canvas.random.random() < 0.5:
        turned = canvas.image.rotate(canvas.random.uniform(-90, 90), Image.Resampling.NEAREST, fillcolor=canvas.inks[0])
        canvas.image.paste(turned)


def _lines(canvas: Canvas) -> None:
    """Straight lines, arcs and curves, half a pixel to five wide."""
    for _ in range(canvas.random.integers(3, 14)):
        width, kind = canvas.length(0.5, 5), canvas.random.integers(3)
        if kind == 0:
            canvas.draw.line([canvas.point(), canvas.point(), canvas.point()], canvas.ink(), width, joint="curve")
        elif kind == 1:
            start, radius = canvas.random.uniform(0, 360), canvas.length(3, 60)
            x, y = canvas.point()
            box = (x - radius, y - radius, x + radius, y + radius)
            canvas.draw.arc(box, start, start + canvas.random.uniform(40, 360), canvas.ink(), width)
        else:
            t = np.linspace(0, 1, 40)[:, None]
            a, b, c, d = (np.array(canvas.point()) for _ in range(4))
            curve = (1 - t) ** 3 * a + 3 * t * (1 - t) ** 2 * b + 3 * t**2 * (1 - t) * c + t**3 * d
            canvas.draw.line([(x, y) for x, y in curve.round().astype(int).tolist()], canvas.ink(), width)


def _hatch(canvas: Canvas) -> None:
    """Parallel lines, once or crossing."""
    for _ in range(canvas.random.integers(1, 3)):
        pitch = canvas.length(2, 12)
        width = max(1, round(pitch * canvas.random.uniform(0.2, 0.6)))
        angle = canvas.random.choice((0, math.pi / 4, math.pi / 2, canvas.random.uniform(0, math.pi)))
        along = np.array([math.cos(angle), math.sin(angle)]) * 2 * canvas.side
        across = np.array([-math.sin(angle), math.cos(angle)])
        for offset in range(-2 * canvas.side, 2 * canvas.side, pitch):
            middle = across * offset + canvas.side / 2
            ends = [tuple(point.round().astype(int).tolist()) for point in (middle - along, middle + along)]
            canvas.draw.line(ends, canvas.inks[1], width)


def _table(canvas: Canvas) -> None:
    """Rules and cells, words and numbers in them."""
    size, rule = canvas.length(6, 16), canvas.length(0.5, 2)
    row, column = round(size * canvas.random.uniform(1.3, 2)), size * int(canvas.random.integers(3, 8))
    for top in range(0, canvas.side, row):
        canvas.draw.line([(0, top), (canvas.side, top)], canvas.inks[2], rule)
        for left in range(0, canvas.side, column):
            canvas.write((left + size // 3, top + rule), random_words(canvas.random, 1), size)
    for left in range(0, canvas.side, column):
        canvas.draw.line([(left, 0), (left, canvas.side)], canvas.inks[2], rule)


def _window(canvas: Canvas) -> None:
    """A window's frame with a title, buttons, fields and icons."""
    size, edge = canvas.length(7, 14), canvas.length(0.6, 1.5)
    canvas.draw.rectangle((0, 0, canvas.side, 2 * size), canvas.inks[2])
    canvas.write((size, size // 2), random_words(canvas.random, 2), size, canvas.inks[0])
    for _ in range(canvas.random.integers(3, 9)):
        x, y = canvas.point()
        width, height = size * int(canvas.random.integers(2, 9)), round(1.7 * size)
        box = (x, y + 2 * size, x + width, y + 2 * size + height)
        rounded = canvas.random.random() < 0.5
        fill = canvas.ink() if canvas.random.random() < 0.4 else canvas.inks[0]
        canvas.draw.rounded_rectangle(box, size // 3 if rounded else 0, fill, canvas.inks[1], edge)
        text = canvas.inks[0] if fill != canvas.inks[0] else canvas.inks[1]
        canvas.write((x + size // 3, y + 2 * size + size // 4), random_words(canvas.random, 1), size, text)
    x, y = canvas.point()
    canvas.draw.ellipse((x, y, x + 2 * size, y + 2 * size), canvas.ink(), canvas.inks[1], edge)


def _map(canvas: Canvas) -> None:
    """Areas, roads with casings, names."""
    for _ in range(canvas.random.integers(1, 4)):
        canvas.draw.polygon([canvas.point() for _ in range(5)], canvas.ink())
    for _ in range(canvas.random.integers(2, 6)):
        road, width = [canvas.point() for _ in range(3)], canvas.length(1, 6)
        canvas.draw.line(road, canvas.inks[1], width + 2 * max(1, canvas.unit // 2), joint="curve")
        canvas.draw.line(road, canvas.inks[0], width, joint="curve")
    for _ in range(3):
        canvas.write(canvas.point(), random_words(canvas.random, 1), canvas.length(6, 14))


def _plot(canvas: Canvas) -> None:
    """Axes with ticks and numbers, and curves, bars or dots."""
    size, width = canvas.length(6, 10), canvas.length(0.5, 1.5)
    left, bottom = 3 * size, canvas.side - 2 * size
    for value in range(0, canvas.side, 4 * size):
        canvas.draw.line([(left, bottom - value), (canvas.side, bottom - value)], canvas.inks[3], max(1, width // 2))
        canvas.write((0, bottom - value - size // 2), str(canvas.random.integers(1000)), size)
    kind, steps = canvas.random.integers(3), np.arange(left, canvas.side, 2 * size)
    heights = bottom - np.abs(np.cumsum(canvas.random.standard_normal(len(steps)))) * canvas.side / 8
    points = [(int(x), int(y)) for x, y in zip(steps, heights, strict=True)]
    if kind == 0 and len(points) > 1:
        canvas.draw.line(points, canvas.inks[2], 2 * width, joint="curve")
    for x, y in points:
        if kind == 1:
            canvas.draw.rectangle((x, min(y, bottom), x + size, bottom), canvas.inks[2], canvas.inks[1])
        else:
            canvas.draw.ellipse((x - size // 3, y - size // 3, x + size // 3, y + size // 3), canvas.ink())
    canvas.draw.line([(left, 0), (left, bottom), (canvas.side, bottom)], canvas.inks[1], width)


def _pixel_art(canvas: Canvas) -> None:
    """Blocks of one to six low-resolution pixels: sprites, or the modules of a matrix code."""
    block = canvas.unit * int(canvas.random.integers(1, 7))
    count = -(-canvas.side // block)
    cells = canvas.random.integers(0, canvas.random.choice((2, 4)), (count, count))
    if canvas.random.random() < 0.5:
        cells = np.maximum(cells[:, ::-1], cells) * (canvas.random.random((count, count)) < 0.7)
    large = np.array(canvas.inks, np.uint8)[cells].repeat(block, 0).repeat(block, 1)
    canvas.image.paste(Image.fromarray(large[: canvas.side, : canvas.side]))


def _gradient(canvas: Canvas) -> None:
    """One colour into another, straight or round."""
    y, x = np.indices((canvas.side, canvas.side)) / canvas.side
    angle = canvas.random.uniform(0, 2 * math.pi)
    straight = x * math.cos(angle) + y * math.sin(angle)
    amount = straight if canvas.random.random() < 0.6 else np.hypot(x - 0.5, y - canvas.random.random())
    amount = (amount - amount.min()) / np.ptp(amount)
    first, second = (np.array(ink) for ink in canvas.inks[:2])
    canvas.image.paste(Image.fromarray((first + (second - first) * amount[..., None]).round().astype(np.uint8)))


def _dither(canvas: Canvas) -> None:
    """A gradient in two colours, by an ordered or a random threshold, its dots one or two low-resolution pixels."""
    dot = canvas.unit * int(canvas.random.integers(1, 3))
    count = -(-canvas.side // dot)
    y, x = np.indices((count, count))
    amount = (x * canvas.random.random() + y * canvas.random.random()) / (2 * count)
    ordered = (_BAYER[y % 4, x % 4] + 0.5) / 16
    threshold = ordered if canvas.random.random() < 0.6 else canvas.random.random((count, count))
    large = np.array(canvas.inks, np.uint8)[(amount > threshold).astype(int)].repeat(dot, 0).repeat(dot, 1)
    canvas.image.paste(Image.fromarray(large[: canvas.side, : canvas.side]))


def _scan(canvas: Canvas) -> None:
    """A page in two colours only, with specks."""
    _page(canvas)
    for _ in range(canvas.random.integers(0, 12)):
        (x, y), size = canvas.point(), canvas.length(0.5, 1.5)
        canvas.draw.rectangle((x, y, x + size, y + size), canvas.inks[1])


def _shapes(canvas: Canvas) -> None:
    """Masks and flat areas: discs, boxes and polygons, few and large."""
    for _ in range(canvas.random.integers(1, 6)):
        (x, y), (width, height) = canvas.point(), (canvas.length(3, 40), canvas.length(3, 40))
        kind = canvas.random.integers(3)
        if kind == 0:
            canvas.draw.ellipse((x, y, x + width, y + height), canvas.ink())
        elif kind == 1:
            canvas.draw.rectangle((x, y, x + width, y + height), canvas.ink())
        else:
            canvas.draw.polygon([canvas.point() for _ in range(canvas.random.integers(3, 7))], canvas.ink())


_KINDS: tuple[Callable[[Canvas], None], ...] = (
    *(_page, _page, _labels, _lines, _hatch, _table, _window, _map),
    *(_plot, _pixel_art, _dither, _scan, _shapes, _gradient),
)
