# SPDX-License-Identifier: Apache-2.0
"""`python -m ditn_kernels [--capability 90]`: versions, assemblers, the table of operators and backends with every
reason against them, and the backends' order on each GPU."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from ditn_kernels._info import info
from ditn_kernels.backends.triton._assembler import AssemblerError


def main(arguments: Sequence[str] | None = None) -> None:
    """Raises SystemExit with what is wrong for a wrong option, and for a TRITON_PTXAS_PATH that is no assembler."""
    parser = argparse.ArgumentParser(prog="python -m ditn_kernels", description="What is installed and what can run.")
    parser.add_argument(
        "--capability",
        type=capability,
        nargs="+",
        default=[],
        metavar="CC",
        help="also assembler and order of backends for these chips, which need not be here: 90 for sm_90",
    )
    args = parser.parse_args(arguments)
    try:
        facts = info(capabilities=args.capability)
    except AssemblerError as error:
        raise SystemExit(f"python -m ditn_kernels: {error}") from error
    print(facts["summary"])
    for name, value in facts["versions"].items():
        print(f"{name:14} {value or 'not installed'}")
    print(f"{'device':14} {facts['device']}, {', '.join(facts['gpus']) or 'no GPU'}, {facts['threads']} CPU threads")
    for chip, found in facts["assemblers"].items():
        print(f"assembler {chip}  {found['line']}", *found["notes"], sep="\n  ")
    for operator, directions in facts["operators"].items():
        for direction, backends in directions.items():
            print(f"\n{operator} {direction}")
            for backend, reasons in backends.items():
                print(f"  {backend:7} {', '.join(reasons) or 'can run'}")
    for chip, orders in facts["orders"].items():
        print(f"\norder on {chip}, float16")
        for what, order in orders.items():
            print(f"  {what:30} {order}")


def capability(text: str) -> int:
    """A compute capability, 90 for sm_90. Raises ArgumentTypeError for anything else."""
    if not (text.isascii() and text.isdecimal() and 50 <= int(text) < 1000):
        raise argparse.ArgumentTypeError(f"{text!r} is no compute capability; write 90 for sm_90, 120 for sm_120")
    return int(text)


if __name__ == "__main__":
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read the output has seen enough; the interpreter must not fail again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
