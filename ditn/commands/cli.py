# SPDX-License-Identifier: Apache-2.0
"""The command line: a table of sub-commands, each in a module of its own that is imported when it is called."""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from collections.abc import Sequence
from importlib import import_module

from ditn.commands import arguments as command_arguments
from ditn.commands.names import ignore_standard_output, print_names_as_they_are
from ditn.commands.signals import interrupted_by_signals

COMMANDS = {
    "upscale": ("ditn.commands.upscale", "enlarge images"),
    "export": ("ditn.commands.export", "write a model for ONNX Runtime, OpenVINO, torch.export or AOTInductor"),
    "info": ("ditn.commands.info", "versions, devices, models, backends and why each one can or cannot run"),
    "verify": ("ditn.commands.verify", "compare this machine's backends with the float64 reference"),
    "warmup": ("ditn.commands.warmup", "compile the kernels that a model needs, before its first image has to wait"),
    "train": ("ditn.commands.train", "train a model on a folder of images"),
    "evaluate": ("ditn.commands.evaluate", "PSNR and SSIM of a model on folders of images"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 all well, 1 something failed (said on standard error), 2 wrong usage, 3 training stopped before its
    last step, 130 interrupted."""
    with interrupted_by_signals():
        try:
            return _run(sys.argv[1:] if arguments is None else arguments)
        except KeyboardInterrupt:
            with contextlib.suppress(OSError):  # of a terminal that has gone
                print("interrupted", file=sys.stderr)
            return 130


def _run(arguments: Sequence[str]) -> int:
    print_names_as_they_are()
    arguments = _suffixes_joined(arguments)
    parser = argparse.ArgumentParser(prog="ditn", description="The DITN super-resolution transformer.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (_, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        if name in arguments[:1]:
            getattr(command_arguments, name)(command)
    args = parser.parse_args(arguments)
    try:
        command_arguments.check(args)
        code: int = import_module(COMMANDS[args.command][0]).run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        ignore_standard_output()
        return 0
    except (OSError, ValueError, RuntimeError, MemoryError) as error:
        print(f"ditn {args.command}: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError | OSError) or _is_of_backends(error) else 1
    return code


def _is_of_backends(error: Exception) -> bool:
    """Whether it is a BackendError. Asked only of errors for which torch was imported."""
    from ditn_kernels import BackendError

    return isinstance(error, BackendError)


def _suffixes_joined(arguments: Sequence[str]) -> list[str]:
    """`--suffix -x4` as `--suffix=-x4`: argparse would take a value that begins with a dash for another option."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] == "--suffix" and re.fullmatch("-[^-].*", argument) and argument not in ("-o", "-h"):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined
