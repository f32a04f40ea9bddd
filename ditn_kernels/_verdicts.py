# SPDX-License-Identifier: Apache-2.0
"""What proofs have found, in the user's cache folder: a small file for each kernel and all that its results depend on.
Files are written under a temporary name and renamed, so any number of processes can share the folder."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

# What a verdict depends on, by name: values that JSON returns unchanged.
Facts = Mapping[str, str | int | float]


def folder() -> Path:
    """Where verdicts are: `ditn-kernels` in $XDG_CACHE_HOME, else in ~/.cache (on Windows in %LOCALAPPDATA%).

    Raises NotADirectoryError that names the path if there is a file in its place, RuntimeError if there is no home.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():  # which the XDG specification says to ignore
        local = os.environ.get("LOCALAPPDATA") if os.name == "nt" else None
        base = Path(local) if local else Path.home() / ".cache"
    path = base / "ditn-kernels"
    for part in (path, *path.parents):
        if os.path.isfile(part):  # false, too, where it may not be looked at
            raise NotADirectoryError(f"the cache folder {part} is a file: remove it, or set XDG_CACHE_HOME to a folder")
    return path


def read(facts: Facts) -> str | None:
    """The fault that was found, "" if there was none; None if there is no verdict, or none that can be read."""
    try:
        content = json.loads((folder() / _name(facts)).read_text(encoding="utf-8"))
    except NotADirectoryError:
        raise
    except (OSError, ValueError, RuntimeError):
        return None
    # A damaged file is no verdict.
    if not isinstance(content, dict) or content.get("facts") != facts or not isinstance(content.get("fault"), str):
        return None
    return str(content["fault"])


def write(facts: Facts, fault: str) -> None:
    """Keep a verdict. Warns once where it cannot be kept."""
    try:
        path = folder()
    except RuntimeError as error:
        return _say_not_kept(str(error))
    text = json.dumps({"facts": dict(facts), "fault": fault}, indent=1)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path) as own:
            new = Path(own) / _name(facts)
            new.write_text(text, encoding="utf-8")
            new.replace(path / new.name)
    except OSError as error:
        _say_not_kept(f"{path}: {error.strerror}")


def remove(facts: Facts) -> None:
    """Forget a verdict, if there is one."""
    with suppress(OSError, RuntimeError):
        (folder() / _name(facts)).unlink()


def _name(facts: Facts) -> str:
    return hashlib.sha256(json.dumps(dict(facts), sort_keys=True).encode()).hexdigest()[:32] + ".json"


@functools.cache
def _say_not_kept(why: str) -> None:
    warnings.warn(f"what is proved of GPU kernels is kept for this process only ({why})", RuntimeWarning, stacklevel=2)
