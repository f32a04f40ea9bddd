# SPDX-License-Identifier: Apache-2.0
"""The backend "triton": finds out whether Triton can run here, and imports a kernel file at its first call."""

from __future__ import annotations

import functools
import importlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ditn_kernels._axes import is_map
from ditn_kernels._records import flatten, map_tensors
from ditn_kernels._support import Support
from ditn_kernels.backends.triton import _assembler
from ditn_kernels.backends.triton._limits import LIMITS

if TYPE_CHECKING:
    from ditn_kernels._op import Op

MINIMUM = (3, 6)
# This release of numpy no longer takes an array of one element as an index, which Triton 3.6's interpreter relies on.
_NUMPY_LIMIT = (2, 4)


class Triton:
    """Kernels for NVIDIA GPUs. On a CPU they run in Triton's interpreter, for tests, since it is slow: only if
    TRITON_INTERPRET is set, and only if this backend is forced."""

    def support(self, operator: str) -> Support | None:
        return LIMITS.get(operator)

    def missing(self, op: Op, device: torch.device, *, backward: bool, dtype: torch.dtype | None = None) -> list[str]:
        reasons = list(why_missing())
        if device.type != "cuda":
            if not interpreted():
                reasons.append(f"runs on cuda, the input is on {device.type} (TRITON_INTERPRET=1 would interpret it)")
            elif _release(version("numpy")) >= _NUMPY_LIMIT:
                reasons.append(f"interprets with numpy older than 2.4 only, {version('numpy')} is installed")
        elif not reasons:
            reasons += why_not_assembled(op, torch.cuda.get_device_capability(device))
        return reasons

    def auto_selectable(self, device: torch.device) -> bool:
        return device.type == "cuda"

    def kernel(self, op: Op, *, backward: bool) -> Callable[..., Any]:
        module = kernel_file(op, backward=backward)
        if not backward:
            return lambda *args: module.forward(*op.structured(args))
        return lambda grad, *args: tuple(flatten(module.backward(grad, *op.structured(args))))

    def prepared(self, op: Op, arguments: Sequence[Any]) -> Callable[..., Tensor]:
        from ditn_kernels.backends.triton._plan import planned

        forward = kernel_file(op, backward=False).forward
        return planned(forward, [map_tensors(argument, Tensor.contiguous) for argument in arguments])

    def fall_back(self, op: Op, device: torch.device, dtype: torch.dtype) -> bool:
        return False

    def identity(self, op: Op, device: torch.device) -> Mapping[str, str]:
        if device.type != "cuda" or interpreted():
            assembler = "none: interpreted"
        else:
            major, minor = torch.cuda.get_device_capability(device)
            chosen = _assembler.choose(10 * major + minor).assembler
            assembler = chosen.identity if chosen else "none"
        return {"triton": version("triton"), "assembler": assembler}


def kernel_file(op: Op, *, backward: bool) -> ModuleType:
    """The module with the operator's `forward` or `backward` and its kernels."""
    stem = f"{op.name}_backward" if backward else op.name
    return importlib.import_module(f"ditn_kernels.backends.triton.{stem}")


def interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter. It reads the same variable when a kernel file is imported."""
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


def why_not_assembled(op: Op, capability: tuple[int, int]) -> list[str]:
    """Every reason why no installed assembler makes the operator's kernels for a chip. One whose known fault is in
    matrix products may make kernels without products. Code for sm_90 without wgmma would not show the fault, but takes
    up to a third more instructions (counted), so it is not made instead."""
    choice = _assembler.choose(10 * capability[0] + capability[1])
    return [choice.refusal] if choice.refusal and (choice.assembler is None or _multiplies(op)) else []


def _multiplies(op: Op) -> bool:
    """Whether one of its weights is a matrix between channels."""
    return any(len(re.findall("[A-Z]", axes)) > 1 for axes in op.axes.values() if not is_map(axes))


def _release(text: str) -> tuple[int, int]:
    major, minor = text.split(".")[:2]
    return int(major), int(minor)
