# SPDX-License-Identifier: Apache-2.0
"""What a picture costs beside the network: decoding and encoding it. Writes `results/files.json`, of which, with what a
GPU measured, `benchmarks.report` makes the sizing in docs/clusters.md.

    python -m benchmarks.files [--rounds N] [--json FILE]

CPU seconds of one core per megapixel, the least of the rounds, and bytes per pixel; of a photograph's enlargement by
DITN-Real, as `ditn upscale` reads and writes files.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyvips

import ditn
from benchmarks.harness import outputs
from benchmarks.harness.machine import machine
from benchmarks.harness.outputs import PROJECT, RESULTS
from ditn.imaging.arrays import Pixels
from ditn.imaging.files import Page, read
from ditn.imaging.output import write_raw
from ditn.imaging.tiled_tiff import TiledTiff

PHOTOGRAPH, MODEL = PROJECT / "examples" / "house.png", "ditn-real-x4"
FORMATS = ("jpg", "png", "webp", "tif")
BY_ROWS = "tif, by rows"


def seconds(call: Callable[[], object], rounds: int) -> float:
    """CPU seconds of this process, all threads together: what else the machine does counts little."""
    taken = []
    for _ in range(rounds):
        start = time.process_time()
        call()
        taken.append(time.process_time() - start)
    return min(taken)


def rows(photograph: Path, rounds: int) -> list[dict[str, object]]:
    """Of each format what decoding and encoding the photograph's enlargement take."""
    pyvips.cache_set_max(0)  # each round does all of it
    page = read(photograph)
    larger = ditn.Upscaler(ditn.load(MODEL))(page.pixels)
    found: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in FORMATS:
            path = Path(folder) / f"large.{name}"
            encoding = seconds(partial(_encode, larger, page, path), rounds)
            decoding = seconds(partial(read, path), rounds)
            for what, taken in (("decode", decoding), ("encode", encoding)):
                found.append(_row(what, name, larger, taken, path.stat().st_size))
    form = TiledTiff(larger.shape[1], larger.shape[0], larger.shape[2], larger.dtype.name, 256)
    corners = [(y, x) for y in range(0, form.height, form.side) for x in range(0, form.width, form.side)]

    def tiles() -> int:
        return sum(len(form.compressed(larger[y : y + form.side, x : x + form.side])) for y, x in corners)

    found.append(_row("encode", BY_ROWS, larger, seconds(tiles, rounds), tiles()))
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=outputs.file, default=RESULTS / "files.json")
    args = parser.parse_args(arguments)
    result = {"machine": machine(), "photograph": PHOTOGRAPH.name, "rows": rows(PHOTOGRAPH, args.rounds)}
    args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


def _encode(pixels: Pixels, page: Page, path: Path) -> None:
    """As `ditn upscale` does, from a file of raw samples."""
    height, width, bands = pixels.shape
    with tempfile.TemporaryFile(dir=path.parent) as raw:
        raw.write(np.ascontiguousarray(pixels).tobytes())
        raw.flush()
        write_raw(raw, (height, width, bands), pixels.dtype.name, path, page, size=(width, height), quality=92)


def _row(what: str, name: str, pixels: Pixels, taken: float, size: int) -> dict[str, object]:
    count = pixels.shape[0] * pixels.shape[1]
    return {
        "what": what,
        "format": name,
        "seconds_per_megapixel": round(taken / count * 1e6, 5),
        "bytes_per_pixel": round(size / count, 3),
    }


if __name__ == "__main__":
    raise SystemExit(main())
