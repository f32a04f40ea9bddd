# SPDX-License-Identifier: Apache-2.0
"""What `Upscaler`'s guard costs on a picture that needs none, with shipped weights.

    python -m benchmarks.guard --model ditn-tiny-x4 --sizes 128x128 320x180

Calls with and without it take turns in one process; printed and, with --json, written is the ratio of the two in each
round, median and quartiles.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import ditn
from benchmarks.harness import outputs
from benchmarks.harness.machine import machine
from benchmarks.harness.timing import in_turns
from ditn.imaging.resize import bicubic


def cost(model: str, size: str, rounds: int) -> dict[str, Any]:
    """Raises SystemExit if the guard finds anything, for then it also repairs."""
    width, height = map(int, size.split("x"))
    coarse = np.random.default_rng(0).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    image = bicubic(coarse, height, width)
    without, guarded = (ditn.Upscaler(model, guard=guard, tile=0) for guard in ("off", "repair"))
    if findings := guarded.stream(image, lambda top, left, part: None):
        raise SystemExit(f"the guard of {model} repairs a smooth picture: {findings[0]}; nothing timed")
    calls: dict[str, Callable[[], object]] = {"off": partial(without, image), "repair": partial(guarded, image)}
    seconds = in_turns(calls, rounds)
    ratios = [more / less for more, less in zip(seconds["repair"], seconds["off"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {"model": model, "size": size, "ratio": middle, "quartiles": [low, high]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=ditn.models(), default="ditn-real-x4")
    parser.add_argument("--sizes", nargs="+", default=["128x128", "320x180"], metavar="WIDTHxHEIGHT")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=outputs.file)
    args = parser.parse_args()
    rows = [cost(args.model, size, args.rounds) for size in args.sizes]
    for row in rows:
        low, high = row["quartiles"]
        print(f"{row['size']:>9} guard: {row['ratio'] - 1:+.1%} ({low - 1:+.1%}..{high - 1:+.1%})")
    if args.json:
        result = {"machine": machine(), "rounds": args.rounds, "guard": rows}
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
