# SPDX-License-Identifier: Apache-2.0
"""Where results go. As types of command-line arguments: a missing folder is made before anything is measured."""

from __future__ import annotations

from pathlib import Path

PROJECT = Path(__file__).parents[2]
RESULTS = PROJECT / "benchmarks" / "results"


def file(text: str) -> Path:
    """The path, whose folder exists. Raises OSError if it cannot be made."""
    path = Path(text)
    folder(str(path.parent))
    return path


def folder(text: str) -> Path:
    """The folder, which exists. Raises OSError if it cannot be made."""
    path = Path(text)
    path.mkdir(parents=True, exist_ok=True)
    return path
