# SPDX-License-Identifier: Apache-2.0
"""Lay enlargements of pictures beside their bicubic ones, with captions, a row for each picture.

python examples/side_by_side.py OUTPUT SMALL CAPTION=LARGE [CAPTION=LARGE ...] [SMALL CAPTION=LARGE ...]
"""

from __future__ import annotations

import sys

from PIL import Image, ImageDraw

CAPTION, GAP = 18, 4


def main(output: str, *arguments: str) -> None:
    rows: list[list[tuple[str, Image.Image]]] = []
    for argument in arguments:
        caption, is_large, path = argument.rpartition("=")
        with Image.open(path) as image:
            if is_large and rows:
                rows[-1].append((caption, image.convert("RGB")))
            else:
                rows.append([("bicubic", image.convert("RGB"))])
    if not all(len(panels) > 1 for panels in rows):
        sys.exit(__doc__)
    drawn = [row(panels) for panels in rows]
    sheet = Image.new("RGB", (max(r.width for r in drawn), sum(r.height + GAP for r in drawn) - GAP), "white")
    top = 0
    for one in drawn:
        sheet.paste(one, (0, top))
        top += one.height + GAP
    sheet.save(output)
    print(f"{output} shows {', '.join(caption for caption, _ in rows[0])}")


def row(panels: list[tuple[str, Image.Image]]) -> Image.Image:
    """Captioned panels beside each other; the first is enlarged to the size of the others by interpolation."""
    width, height = panels[1][1].size
    sheet = Image.new("RGB", (len(panels) * (width + GAP) - GAP, height + CAPTION), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (caption, picture) in enumerate(panels):
        left = number * (width + GAP)
        draw.text((left + 4, 3), caption, fill="black")
        sheet.paste(picture.resize((width, height), Image.Resampling.BICUBIC), (left, CAPTION))
    return sheet


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
