# SPDX-License-Identifier: Apache-2.0
"""Names of files: on Unix they are bytes, where they are no UTF-8 lone surrogates to Python, and a file has several."""

from __future__ import annotations

import codecs
import io
import os
import sys
from pathlib import Path


def print_names_as_they_are() -> None:
    """From now on a name is printed in its own bytes, and what else the terminal's encoding lacks as an escape."""
    codecs.register_error("names-as-they-are", _as_they_are)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="names-as-they-are")


def ignore_standard_output() -> None:
    """Whoever read it has seen enough; the interpreter must not fail again when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _as_they_are(error: UnicodeError) -> tuple[str | bytes, int]:
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)


def utf8(text: str) -> bytes:
    """UTF-8, in which a name's byte that is not, 0xE9 for example, is written as the escape \\udce9. In JSON that is
    valid, and `os.fsencode` makes the name itself of what `json.loads` gives."""
    # Where the locale's encoding is not UTF-8, Python has lone surrogates for bytes, too, that are UTF-8.
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    return text.encode("utf-8", "backslashreplace")


def place_of(path: Path) -> str:
    """The name that a file is renamed to, whatever the links to its folder."""
    return os.path.join(os.path.realpath(path.parent), path.name)


def identity(path: Path) -> tuple[int, int] | None:
    """The file behind a name, whatever the name's case and the links on its way; None where there is none."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino
