# SPDX-License-Identifier: Apache-2.0
"""The compiled libraries: found and loaded once, when they are first asked for, and never at import.

`setup.py` leaves `_C.so`, `build_info.json` and, where there is CUDA, `_C_cuda.so` in the folder of `ditn_kernels`.
Without them, or where a library does not load, there is a reason instead, which `explain` and `info` show.
"""

from __future__ import annotations

import ctypes
import functools
import json
import re
from pathlib import Path
from typing import Any

import torch

# Where `setup.py` puts them: the package's own folder, `ditn_kernels`.
FOLDER = Path(__file__).parents[2]


@functools.cache
def why_missing() -> str | None:
    """Load the library. None if that worked, else the reason why not."""
    library = FOLDER / "_C.so"
    if not library.exists():
        return str(build_info().get("reason", "is not built: `setup.py` did not run when the package was installed"))
    try:
        torch.ops.load_library(library)
        torch.ops.ditn_native.function("exp", torch.zeros(1, device="cpu"))
    except (OSError, RuntimeError) as error:
        return f"does not load (built with {build_info()}): {str(error).splitlines()[0]}"
    return None


@functools.cache
def why_no_cuda() -> str | None:
    """Load the library for CUDA. None if that worked, else the reason why not."""
    if reason := why_missing():
        return reason
    if torch.version.cuda is None:
        return "needs a PyTorch with CUDA (this one is a build without)"
    library = FOLDER / "_C_cuda.so"
    if not library.exists():
        return str(build_info().get("cuda", {}).get("reason", "is not built: `setup.py` did not find CUDA"))
    try:
        torch.ops.load_library(library)
    except OSError as error:
        return f"does not load (built with {build_info()['cuda']}): {str(error).splitlines()[0]}"
    return None


def runs_on(architectures: list[str], capability: tuple[int, int]) -> bool:
    """Whether code for one of these architectures, written as in DITN_CUDA_ARCHS, runs on a chip: machine code for the
    chip or an earlier one of its generation, or PTX for it or any earlier one."""
    for arch in architectures:
        major, minor, ptx = re.fullmatch(r"(\d+)\.(\d)(\+PTX)?", arch).groups()  # type: ignore[union-attr]
        compiled = (int(major), int(minor))
        if compiled <= capability and (ptx or compiled[0] == capability[0]):
            return True
    return False


@functools.cache
def driver() -> tuple[int, int]:
    """The newest CUDA that the driver supports; (0, 0) without a driver."""
    version = ctypes.c_int()
    try:
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except OSError:
        return 0, 0
    return version.value // 1000, version.value % 1000 // 10


@functools.cache
def build_info() -> dict[str, Any]:
    """What `setup.py` says about the build; empty if it did not run."""
    path = FOLDER / "build_info.json"
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return content
