# SPDX-License-Identifier: Apache-2.0
"""The backend "triton": finds out whether Triton can run here, and imports a kernel file at its first call."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from ditn_kernels._op import Op

MINIMUM = (3, 6)
# From this release on a one-element array is no index, and Triton 3.6's interpreter takes it for one.
_NUMPY_LIMIT = (2, 4)


class Triton:
    """Kernels for NVIDIA GPUs. On a CPU they run through Triton's interpreter, which proves them and is slow: so
    only if TRITON_INTERPRET is set, and only if this backend is asked for."""

    def missing(self, op: Op, device: torch.device, *, backward: bool) -> list[str]:
        reasons = list(why_missing())
        if device.type != "cuda":
            if not interpreted():
                reasons.append(f"runs on cuda, the input is on {device.type} (TRITON_INTERPRET=1 would interpret it)")
            elif _release(version("numpy")) >= _NUMPY_LIMIT:
                reasons.append(f"interprets with numpy older than 2.4 only, {version('numpy')} is installed")
        return reasons

    def volunteers(self, device: torch.device) -> bool:
        return device.type == "cuda"

    def kernel(self, op: Op, *, backward: bool) -> Callable[..., Any]:
        stem = f"{op.name}_backward" if backward else op.name
        module = importlib.import_module(f"ditn_kernels.triton.{stem}")
        function: Callable[..., Any] = module.backward if backward else module.forward
        return function


def interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter; it reads the same variable when a kernel file is imported."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "y", "yes", "on", "true")


@functools.cache
def why_missing() -> tuple[str, ...]:
    """Every reason why Triton cannot be imported here, or is too old."""
    try:
        found = version("triton")
    except PackageNotFoundError:
        return ("needs Triton, which is not installed",)
    if _release(found) < MINIMUM:
        return (f"needs Triton {'.'.join(map(str, MINIMUM))} or newer, {found} is installed",)
    return ()


def _release(text: str) -> tuple[int, int]:
    major, minor = text.split(".")[:2]
    return int(major), int(minor)
