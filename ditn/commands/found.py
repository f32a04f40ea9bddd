# SPDX-License-Identifier: Apache-2.0
"""The images that `ditn upscale` was given: files, folders, globs; and what it found there and left out."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ditn.imaging.files import READABLE

_FOLDERS, _LINKS = "sub-folders, which need --recursive", "links to folders"


@dataclass(frozen=True)
class Image:
    """A file that is to be read, and its place below the output folder."""

    path: Path
    place: Path


@dataclass(frozen=True)
class Missing:
    """Where no image was found, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class LeftOut:
    """What a folder holds besides: no image by its name, or a folder that is not looked into."""

    input: str
    kind: str


def find(
    inputs: Sequence[str], output: Path | None, *, recursive: bool, left_out: list[LeftOut]
) -> Iterator[Image | Missing]:
    """Every image of the inputs; those of a folder by name. `output`, where it lies in a folder, is passed over."""
    for given in inputs:
        path = Path(given)
        # os.path, unlike pathlib, takes what may not be looked at for a file.
        if os.path.isdir(path):
            here: list[LeftOut] = []
            found = list(_walk(path, path, output, recursive, here))
            left_out += here
            yield from found or [Missing(path, _nothing(here))]
        elif os.path.lexists(path):
            yield _image(path, Path(path.name))
        elif names := sorted(glob.glob(given, recursive=True)):
            files = [Path(name) for name in names if os.path.isfile(name) or not os.path.exists(name)]
            yield from (_image(file, Path(file.name)) for file in files)
            if not files:
                yield Missing(path, "fits folders only; name them without the pattern's last part")
        else:
            yield Missing(path, absent(path) or "does not exist")


def absent(path: Path) -> str:
    """Why there is no such file, or none that may be looked at; empty if there is one."""
    try:
        path.stat()
    except FileNotFoundError:
        return "does not exist"
    except OSError as error:
        return f"cannot be looked at: {error.strerror}"
    return ""


def _image(path: Path, place: Path) -> Image | Missing:
    if os.path.islink(path) and not os.path.exists(path):
        return Missing(path, f"is a link to {os.readlink(path)}, which does not exist")
    return Image(path, place)


def _walk(
    folder: Path, root: Path, output: Path | None, recursive: bool, left_out: list[LeftOut]
) -> Iterator[Image | Missing]:
    """Without hidden files, which are no images (macOS' ._ twins, our own unfinished ones); without linked folders,
    which may lead in circles; without the output folder, whose images would be enlarged again."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        yield Missing(folder, f"cannot be listed: {error.strerror}")
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if os.path.isdir(entry):
            if output and entry.resolve() == output.resolve():
                continue
            if os.path.islink(entry) or not recursive:
                left_out.append(LeftOut(str(entry), _LINKS if os.path.islink(entry) else _FOLDERS))
            else:
                yield from _walk(entry, root, output, recursive, left_out)
        elif entry.suffix.lower() in READABLE:
            yield _image(entry, entry.relative_to(root))
        else:
            left_out.append(LeftOut(str(entry), entry.suffix.lower() or "without a suffix"))


def counted(left_out: Sequence[LeftOut]) -> str:
    """ ".txt (3), .psd (1)": how many of each kind, the most frequent first."""
    return ", ".join(f"{kind} ({count})" for kind, count in Counter(one.kind for one in left_out).most_common())


def _nothing(left_out: Sequence[LeftOut]) -> str:
    return "no images found" + (f", only {counted(left_out)}" if left_out else ": it is empty or all of it is hidden")
