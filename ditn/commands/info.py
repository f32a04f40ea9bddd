# SPDX-License-Identifier: Apache-2.0
"""`ditn info`: what is installed, and what can run on what."""

from __future__ import annotations

import argparse
import json

from ditn.commands.device import choose_device
from ditn.inference.chooser import shipped_by_scale
from ditn.model.checkpoint import models
from ditn.model.variants import SUITED
from ditn_kernels import info


def run(args: argparse.Namespace) -> int:
    facts = info(choose_device(args.device)) | {"models": models(), "auto": shipped_by_scale()}
    if args.json:
        print(json.dumps(facts, indent=2))
        return 0
    print(facts["summary"])
    if facts["hint"]:
        print(facts["hint"])
    for name, value in facts["versions"].items():
        print(f"{name:14} {value or 'not installed'}")
    print(f"{'device':14} {facts['device']}, {', '.join(facts['gpus']) or 'no GPU'}, {facts['threads']} CPU threads")
    for chip, found in facts["assemblers"].items():
        print(f"assembler {chip}  {found['line']}")
    print(f"{'models':14} {', '.join(facts['models']) or 'none'}")
    for scale, names in facts["auto"].items():
        chosen = ", ".join(f"{names.get(kind, 'none ships')} for {suited.images}" for kind, suited in SUITED.items())
        print(f"{f'auto at x{scale}':14} {chosen}")
    for operator, directions in facts["operators"].items():
        print(f"\n{operator}")
        for direction, backends in directions.items():
            for backend, reasons in backends.items():
                print(f"  {direction:9} {backend:7} {', '.join(reasons) or 'can run'}")
    for chip, orders in facts["orders"].items():
        print(f"\norder on {chip}, float16")
        for what, order in orders.items():
            print(f"  {what:30} {order}")
    return 0
