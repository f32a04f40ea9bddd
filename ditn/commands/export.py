# SPDX-License-Identifier: Apache-2.0
"""`ditn export`: a model as one file for other runtimes."""

from __future__ import annotations

import argparse
from pathlib import Path

from ditn.export.export import DTYPES, SIZES, export
from ditn.export.formats import FORMATS, OPSETS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    formats = "; ".join(f"{name}: {one.summary}" for name, one in FORMATS.items())
    parser.add_argument("model", help="a shipped model or a file")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--format", choices=FORMATS, help=f"{formats} (default: by the suffix of FILE)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of weights, image and result (%(default)s)")
    parser.add_argument("--uint8", action="store_true", help="take and give uint8 [B, H, W, C]")
    parser.add_argument("--opset", type=int, default=OPSETS[0], help="of ONNX (%(default)s)")
    parser.add_argument("--device", default="cpu", help="where a .pt2 is to run (%(default)s)")
    parser.add_argument("--no-verify", action="store_true", help="do not compare the file with the float64 reference")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")


def run(args: argparse.Namespace) -> int:
    done = export(
        args.model,
        args.output,
        format=args.format,
        dtype=DTYPES[args.dtype],
        uint8=args.uint8,
        opset=args.opset,
        device=args.device,
        verify=not args.no_verify,
        overwrite=args.overwrite,
    )
    sizes = ", ".join(f"{height}x{width}" for height, width in SIZES)
    checked = "not checked" if done.error is None else f"checked at {sizes}: largest error {done.error:.1e}"
    print(f"{done.path}: {done.size / 1e6:.1f} MB, {checked}")
    return 0
