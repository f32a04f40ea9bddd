# SPDX-License-Identifier: Apache-2.0
"""Lay a bicubic enlargement and another one of the same picture side by side, with captions.

python examples/side_by_side.py SMALL LARGE OUTPUT
"""

from __future__ import annotations

import sys

from PIL import Image, ImageDraw

CAPTION = 18


def main(small: str, large: str, output: str) -> None:
    with Image.open(small) as given, Image.open(large) as enlarged:
        width, height = enlarged.size
        sheet = Image.new("RGB", (2 * width + 4, height + CAPTION), "white")
        bicubic = given.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        draw = ImageDraw.Draw(sheet)
        for left, caption, picture in ((0, "bicubic", bicubic), (width + 4, "DITN", enlarged)):
            draw.text((left + 4, 3), caption, fill="black")
            sheet.paste(picture, (left, CAPTION))
        sheet.save(output)
    print(f"{large} is the result; {output} shows it beside bicubic interpolation")


if __name__ == "__main__":
    main(*sys.argv[1:])
