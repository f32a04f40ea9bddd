# SPDX-License-Identifier: Apache-2.0
"""`ditn warmup`: compile ahead what the first image would wait for."""

from __future__ import annotations

import argparse
import re
import time

import torch

from ditn.commands.device import choose_device
from ditn.model.checkpoint import load
from ditn.model.variants import DEFAULT_WEIGHTS
from ditn_kernels import compilations

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", default=DEFAULT_WEIGHTS, help="a shipped model (see `ditn info`) or a file of weights (%(default)s)")
    add("--dtype", nargs="+", choices=DTYPES, help="(default: float16 on a GPU, float32 on a CPU)")
    add("--size", nargs="+", type=_size, default=[(960, 540)], metavar="WIDTHxHEIGHT", help="(default: 960x540)")
    add("--training", action="store_true", help="also what training needs")
    add("--device", help="such as cpu or cuda:0 (default: a GPU if there is one)")


def run(args: argparse.Namespace) -> int:
    """Runs the model once for each dtype and size: what is compiled is kept on disk by the backends themselves."""
    device = choose_device(args.device)
    for name in args.dtype or ["float16" if device.type == "cuda" else "float32"]:
        model = load(args.model, device=device, dtype=DTYPES[name])
        for width, height in args.size:
            image = torch.rand(1, 3, height, width, device=device, dtype=DTYPES[name])
            before, start = len(compilations), time.perf_counter()
            if args.training:
                model.train().requires_grad_()(image).square().mean().backward()
            with torch.inference_mode():
                # No element of the result is needed; .cpu() waits until they are there.
                model.eval()(image)[..., :1, :1].cpu()
            seconds = time.perf_counter() - start
            print(f"{args.model} {name} {width}x{height} on {device}: {seconds:.1f} s")
            for one in compilations[before:]:
                how = "was on disk" if one.cached else f"compiled in {one.seconds:.1f} s"
                print(f"  {one.kernel:34} {how}")
            if len(compilations) == before:
                print("  nothing had to be compiled")
    return 0


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write 960x540")
    return int(match[1]), int(match[2])
