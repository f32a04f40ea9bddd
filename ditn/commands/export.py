# SPDX-License-Identifier: Apache-2.0
"""`ditn export`: a model as one file for other runtimes."""

from __future__ import annotations

import argparse

from ditn.commands.device import choose_device
from ditn.export.export import DTYPES, SIZES, export


def run(args: argparse.Namespace) -> int:
    done = export(
        args.model,
        args.output,
        format=args.format,
        dtype=DTYPES[args.dtype],
        uint8=args.uint8,
        opset=args.opset,
        device=choose_device(args.device),
        verify=not args.no_verify,
        overwrite=args.overwrite,
    )
    sizes = ", ".join(f"{height}x{width}" for height, width in SIZES)
    checked = "not checked" if done.error is None else f"checked at {sizes}: largest error {done.error:.1e}"
    print(f"{done.path}: {done.size / 1e6:.1f} MB, {checked}")
    return 0
