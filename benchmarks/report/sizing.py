# SPDX-License-Identifier: Apache-2.0
"""How many pictures an hour and what they cost, from what `benchmarks.gpu` and `benchmarks.files` measured."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path

from benchmarks.files import BY_ROWS, FORMATS
from benchmarks.report.results import NOT_MEASURED, Content, find, folder, load, load_if_there

# What is assumed, and said: dollars an hour for a GPU with its share of a machine, and how many cores that share has.
PRICE, CORES = 4.0, 16
_MODEL, _SIZE, _SCALE, _MILLION = "ditn-real-x4-float16.json", (960, 540), 4, 1_000_000
_SCAN = 100_000


def per_picture(project: Path) -> str:
    """A row for each format: a GPU's time and a core's for a picture, and what follows from them."""
    found = _measured(project)
    if not found:
        return NOT_MEASURED
    gpu, files = found
    small, large = math.prod(_SIZE) / 1e6, math.prod(_SIZE) / 1e6 * _SCALE**2
    network = _network_seconds(gpu)
    lines = [
        "| output, from JPEG | network, ms of a GPU | decode + encode, ms of a core | cores that keep a GPU busy "
        f"| pictures an hour with {CORES} cores | written, MB/s | a million: hours, dollars, TB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in FORMATS:
        written = find(files, what="encode", format=name)
        core = small * _seconds(files, "decode", "jpg") + large * written["seconds_per_megapixel"]
        each = max(network, core / CORES)
        size = large * written["bytes_per_pixel"]
        hours = _MILLION * each / 3600
        lines.append(
            f"| {name} | {network * 1e3:.1f} | {core * 1e3:,.0f} | {core / network:.0f} | {3600 / each:,.0f} "
            f"| {size / each:,.0f} | {hours:.1f}, {hours * PRICE:.0f}, {_MILLION * size / 1e6:.1f} |"
        )
    return "\n".join([*lines, "", _said(gpu, files)])


def scan(project: Path) -> str:
    """A scan of 100,000 x 100,000 pixels, on paper."""
    found = _measured(project)
    if not found:
        return NOT_MEASURED
    gpu, files = found
    inside, around = 1024, 1024 + 2 * 64
    into, out = _SCAN**2 / 1e6, _SCAN**2 * _SCALE**2 / 1e6
    tiles = math.ceil(_SCAN / inside)
    # Tiles overlap: so much more is computed than there is.
    network = into * (around / inside) ** 2 / (math.prod(_SIZE) / 1e6) * _network_seconds(gpu)
    by_rows = find(files, what="encode", format=BY_ROWS)
    core = out * by_rows["seconds_per_megapixel"] + into * _seconds(files, "decode", "tif")
    written = out * by_rows["bytes_per_pixel"] / 1e3
    rows = [
        ("input, RGB of 8 bits", f"{3 * into / 1e3:,.0f} GB of samples"),
        ("output, x4", f"{3 * out / 1e3:,.0f} GB of samples, {written:,.0f} GB in the file"),
        ("disk meanwhile", f"{2 * written:,.0f} GB: the rows until they are joined, and the file"),
        ("items", f"{tiles} rows of {tiles} tiles; a row reads {around * _SCAN * 3 / 1e6:,.0f} MB, by tiles"),
        (
            "memory of a process",
            "the network's (`--max-memory`), and two tiles of "
            f"{3 * (inside * _SCALE) ** 2 / 2**20:.0f} MiB that are compressed",
        ),
        ("one GPU", f"{network / 60:.1f} minutes of the network"),
        (
            "compression and reading",
            f"{core / 3600:.1f} hours of one core, {core / 3600 / 128 * 60:.0f} minutes of 128",
        ),
        (
            "joining",
            f"{written:,.0f} GB read and written once more, by one process: {written / 60:.0f} minutes at 1 GB/s",
        ),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows), "", _said(gpu, files)])


def _measured(project: Path) -> tuple[Content, Content] | None:
    gpus = sorted(folder(project).glob(f"*/{_MODEL}"))
    files = load_if_there(folder(project) / "files.json")
    return (load(gpus[0]), files) if gpus and files else None


def _network_seconds(gpu: Content) -> float:
    width, height = _SIZE
    rows = [row for row in gpu["rows"] if row["what"] == f"{width}x{height}"]
    return float(min(row["median_ms"] for row in rows) / 1e3)


def _seconds(files: Content, what: str, name: str) -> float:
    return float(find(files, what=what, format=name)["seconds_per_megapixel"])


def _said(gpu: Content, files: Content) -> str:
    network, cpu = gpu["machine"], files["machine"]
    text = (
        f"Network: {network['gpu']}, {gpu['dtype']}, {network['date']}; files: one core of {cpu['cpu']}, "
        f"{cpu['date']}. "
        f"Assumed: {PRICE:g} dollars an hour for a GPU with {CORES} cores."
    )
    return textwrap.fill(text, 120, break_on_hyphens=False)
