# SPDX-License-Identifier: Apache-2.0
"""Text with names of files, which on Unix are bytes of any kind. Python has such a byte as a lone surrogate."""

from __future__ import annotations

import codecs
import io
import sys


def print_names_as_they_are() -> None:
    """From now on a name is printed in its own bytes, and what else the terminal's encoding lacks as an escape."""
    codecs.register_error("names-as-they-are", _as_they_are)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="names-as-they-are")


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
