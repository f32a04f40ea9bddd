# SPDX-License-Identifier: Apache-2.0
"""`ditn warmup`: compile ahead what the first image would wait for."""

from __future__ import annotations

import argparse
import time

import torch

from ditn.commands.device import choose_device
from ditn.inference.placement import default_dtype
from ditn.model.checkpoint import load
from ditn_kernels import compilations


def run(args: argparse.Namespace) -> int:
    """Runs the model once for each dtype and size: what is compiled is kept on disk by the backends themselves."""
    device = choose_device(args.device)
    for dtype in [getattr(torch, name) for name in args.dtype or ()] or [default_dtype(device)]:
        model = load(args.model, device=device, dtype=dtype)
        for width, height in args.size:
            image = torch.rand(1, 3, height, width, device=device, dtype=dtype)
            before, start = len(compilations), time.perf_counter()
            if args.training:
                model.train().requires_grad_()(image).square().mean().backward()
            with torch.inference_mode():
                # No element of the result is needed; .cpu() waits until they are there.
                model.eval()(image)[..., :1, :1].cpu()
            seconds = time.perf_counter() - start
            print(f"{args.model} {str(dtype).removeprefix('torch.')} {width}x{height} on {device}: {seconds:.1f} s")
            for one in compilations[before:]:
                how = "was on disk" if one.cached else f"compiled in {one.seconds:.1f} s"
                print(f"  {one.kernel:34} {how}")
            if len(compilations) == before:
                print("  nothing had to be compiled")
    return 0
