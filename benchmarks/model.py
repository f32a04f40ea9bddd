# SPDX-License-Identifier: Apache-2.0
"""Latency of whole networks: this package against the published formula, interleaved, in one process.

    python -m benchmarks.model --model ditn-real --sizes 128x128 320x180
    python -m benchmarks.model --model ditn-tiny --guard    # what Upscaler's guard costs, on a picture that needs none

Each contestant is first checked against the published formula in float64. A round times every contestant once, so that
a machine whose speed drifts drifts for all; medians, quartiles and the ratio to the published formula are printed and,
with --json, written down together with what they were measured on.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import ditn
from benchmarks import outputs, published
from ditn.resize import bicubic
from ditn_kernels import explain, gated_ffn

MODELS = {"ditn": ditn.DITN, "ditn-tiny": ditn.DITN_Tiny, "ditn-real": ditn.DITN_Real}
# Against float64, relative to the largest value: what float32 loses in a network of this depth, with room for the
# order of summation.
TOLERANCE = 1e-4


def contestants(model: ditn.DITN, *, compiled: bool) -> dict[str, Callable[[Tensor], Tensor]]:
    state = model.state_dict()
    unfused = ditn.DITN(config=model.config, fused=False).eval().requires_grad_(False)
    unfused.load_state_dict(state)
    found: dict[str, Callable[[Tensor], Tensor]] = {
        "published": lambda x: published.network(state, x),
        "folded": unfused,
        "fused": model,
    }
    if compiled:
        found["torch.compile"] = torch.compile(lambda x: published.network(state, x))
    return found


def measure(calls: Mapping[str, Callable[[Any], Any]], image: Any, rounds: int) -> dict[str, list[float]]:
    """Seconds of each contestant in each round, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call(image)
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def check(calls: dict[str, Callable[[Tensor], Tensor]], model: ditn.DITN, image: Tensor) -> None:
    exact = published.network({key: value.double() for key, value in model.state_dict().items()}, image.double())
    for name, call in calls.items():
        error = float((call(image).double() - exact).abs().max() / exact.abs().max())
        if not error <= TOLERANCE:
            raise SystemExit(f"{name} is wrong: relative error {error:.2g}, at most {TOLERANCE} allowed; nothing timed")


def guard_cost(model: str, size: tuple[int, int], rounds: int) -> dict[str, Any]:
    """What `Upscaler`'s guard takes of a call with shipped weights: the ratio of calls with and without it, in each
    round. Raises SystemExit if it finds anything, for then it also repairs."""
    width, height = size
    coarse = np.random.default_rng(0).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    image = bicubic(coarse, height, width)
    calls = {guard: ditn.Upscaler(model, guard=guard, tile=0) for guard in ("off", "repair")}
    if findings := calls["repair"].stream(image, lambda top, left, part: None):
        raise SystemExit(f"the guard of {model} repairs a smooth picture: {findings[0]}; nothing timed")
    seconds = measure(calls, image, rounds)
    ratios = [guarded / plain for guarded, plain in zip(seconds["repair"], seconds["off"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {"model": model, "size": f"{width}x{height}", "ratio": middle, "quartiles": [low, high]}


def machine() -> dict[str, Any]:
    facts = dict(line.replace("\t", "").split(": ", 1) for line in _lines("/proc/cpuinfo") if ": " in line)
    cpu = facts.get("model name", platform.processor())
    if {"cpu family", "model"} <= facts.keys():  # a virtual machine's name for its CPU leaves the generation out
        cpu += f" (family {facts['cpu family']}, model {facts['model']})"
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="ditn-real")
    parser.add_argument("--upscale", type=int, default=4)
    parser.add_argument("--sizes", nargs="+", default=["128x128", "320x180"], metavar="WIDTHxHEIGHT")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--compile", action="store_true", help="torch.compile of the published formula, too")
    parser.add_argument("--guard", action="store_true", help="only the cost of the guard, of shipped weights")
    parser.add_argument("--json", type=outputs.file)
    args = parser.parse_args()
    sizes = [tuple(map(int, size.split("x"))) for size in args.sizes]
    if args.guard:
        rows = [guard_cost(f"{args.model}-x{args.upscale}", (size[0], size[1]), args.rounds) for size in sizes]
        for row in rows:
            low, high = row["quartiles"]
            print(f"{row['size']:>9} guard: {row['ratio'] - 1:+.1%} ({low - 1:+.1%}..{high - 1:+.1%})")
        if args.json:
            result = {"machine": machine(), "rounds": args.rounds, "guard": rows}
            args.json.write_text(json.dumps(result, indent=2) + "\n")
        return 0
    torch.manual_seed(0)
    model = MODELS[args.model](args.upscale).eval().requires_grad_(False)
    for parameter in model.parameters():  # a new SAL's scale is 0; nothing may be free to compute
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    ffn = gated_ffn.inputs(gated_ffn.samples[0])
    backend = explain(gated_ffn, *ffn.values()).chosen
    rows = []
    for size, (width, height) in zip(args.sizes, sizes, strict=True):
        image = torch.rand(1, 3, height, width)
        calls = contestants(model, compiled=args.compile)
        with torch.inference_mode():
            check(calls, model, image)
            seconds = measure(calls, image, args.rounds)
        base = statistics.median(seconds["published"])
        for name, values in seconds.items():
            low, middle, high = statistics.quantiles(values, n=4)
            rows.append({"size": size, "contestant": name, "median_s": middle, "quartiles_s": [low, high]})
            print(f"{size:>9} {name:14} {middle:8.3f} s ({low:.3f}..{high:.3f})  {base / middle:5.2f} x published")
    if args.json:
        result = {"machine": machine(), "model": args.model, "upscale": args.upscale, "fused_backend": backend}
        args.json.write_text(json.dumps(result | {"rounds": args.rounds, "rows": rows}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
