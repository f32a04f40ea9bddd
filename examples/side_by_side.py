# SPDX-License-Identifier: Apache-2.0
"""Lay enlargements of a picture beside its bicubic one, with captions.

python examples/side_by_side.py SMALL OUTPUT CAPTION=LARGE [CAPTION=LARGE ...]
"""

from __future__ import annotations

import sys

from PIL import Image, ImageDraw

CAPTION, GAP = 18, 4


def main(small: str, output: str, *enlarged: str) -> None:
    panels = []
    for one in enlarged:
        caption, _, path = one.partition("=")
        with Image.open(path) as large:
            panels.append((caption, large.convert("RGB")))
    width, height = panels[0][1].size
    with Image.open(small) as given:
        panels.insert(0, ("bicubic", given.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)))
    sheet = Image.new("RGB", (len(panels) * (width + GAP) - GAP, height + CAPTION), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (caption, picture) in enumerate(panels):
        left = number * (width + GAP)
        draw.text((left + 4, 3), caption, fill="black")
        sheet.paste(picture, (left, CAPTION))
    sheet.save(output)
    print(f"{output} shows {', '.join(caption for caption, _ in panels)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
