# SPDX-License-Identifier: Apache-2.0
"""The compiled libraries: found and loaded once, at the first question about them, and never at import.

`setup.py` leaves `_C.so`, `build_info.json` and, where there is CUDA, `_C_cuda.so` beside this file. Without them, or
where a library does not load, there is a reason instead, which `explain` and `info` show.
"""

from __future__ import annotations

import ctypes
import functools
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ditn_kernels._op import NORMS, Op
from ditn_kernels._proof import digest

FOLDER = Path(__file__).parent
_NORM_CODES = {"none": 0, "tanh": 1, "layernorm": 2}
assert set(_NORM_CODES) == set(NORMS)


@functools.cache
def why_missing() -> str | None:
    """Load the library. None if it is there, else the reason why not."""
    library = FOLDER / "_C.so"
    if not library.exists():
        return str(build_info().get("reason", "is not built: `setup.py` did not run when the package was installed"))
    try:
        torch.ops.load_library(library)
        torch.ops.ditn_native.function("exp", torch.zeros(1))
    except (OSError, RuntimeError) as error:
        return f"does not load (built with {build_info()}): {str(error).splitlines()[0]}"
    return None


@functools.cache
def why_no_cuda() -> str | None:
    """Load the library for CUDA. None if it is there, else the reason why not."""
    if reason := why_missing():
        return reason
    if torch.version.cuda is None:
        return "needs a PyTorch with CUDA, this one is a build without"
    library = FOLDER / "_C_cuda.so"
    if not library.exists():
        return str(build_info().get("cuda", {}).get("reason", "is not built: `setup.py` did not find CUDA"))
    try:
        torch.ops.load_library(library)
    except OSError as error:
        return f"does not load (built with {build_info()['cuda']}): {str(error).splitlines()[0]}"
    return None


def runs_on(architectures: list[str], capability: tuple[int, int]) -> bool:
    """Whether one of these, written as DITN_CUDA_ARCHS is, was compiled for a chip: machine code for an earlier one of
    its generation, or PTX for an earlier one."""
    for arch in architectures:
        major, minor, ptx = re.fullmatch(r"(\d+)\.(\d)(\+PTX)?", arch).groups()  # type: ignore[union-attr]
        compiled = (int(major), int(minor))
        if compiled <= capability and (ptx or compiled[0] == capability[0]):
            return True
    return False


@functools.cache
def driver() -> tuple[int, int]:
    """The newest CUDA that the driver is for; (0, 0) without a driver."""
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


class _Compiled:
    """Kernels that are reached through `torch.ops.ditn_native`, which has an implementation for each device."""

    def volunteers(self, device: torch.device) -> bool:
        return True

    def kernel(self, op: Op, *, backward: bool) -> Callable[..., Any]:
        overload = getattr(torch.ops.ditn_native, f"{op.name}_backward" if backward else op.name).default

        def forward(*args: Any) -> Tensor:
            y: Tensor = overload(*map(_dense, op.axes.values(), args), *map(_code, args[len(op.axes) :]))
            return y.permute(0, 3, 1, 2)

        def gradients(grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
            tensors = map(_dense, op.axes.values(), args)
            found = overload(_dense("B C H W", grad), *tensors, *map(_code, args[len(op.axes) :]))
            return tuple(
                g.permute(0, 3, 1, 2) if _is_map(axes) else g for axes, g in zip(op.axes.values(), found, strict=True)
            )

        return gradients if backward else forward


class CPlusPlus(_Compiled):
    """The backend "cpu": vectorised C++."""

    def identity(self, device: torch.device) -> None:
        return None

    def missing(self, op: Op, device: torch.device, *, backward: bool) -> list[str]:
        reason = why_missing()
        return [reason] if reason else []


class Cuda(_Compiled):
    """The backend "cuda": CUDA C++, for chips that Triton serves badly and for where there is no Triton."""

    def missing(self, op: Op, device: torch.device, *, backward: bool) -> list[str]:
        if reason := why_no_cuda():
            return [reason]
        if device.type != "cuda":
            return []
        reasons, build = [], build_info()["cuda"]
        capability, compiled = torch.cuda.get_device_capability(device), build["architectures"]
        if not runs_on(compiled, capability):
            reasons.append(f"is built for {', '.join(compiled)}, the GPU is {capability[0]}.{capability[1]}")
        # It brings its own CUDA runtime, which may be newer than the one that torch and the driver are for.
        major, minor = driver()
        if major < int(build["toolkit"].split(".")[0]):
            reasons.append(f"is built with CUDA {build['toolkit']}, the driver is for CUDA {major}.{minor}")
        return reasons

    def identity(self, device: torch.device) -> Mapping[str, str]:
        return {"library": digest(FOLDER / "_C_cuda.so")}


def _dense(axes: str, tensor: Tensor) -> Tensor:
    """What the kernels read: activations as [B, H, W, C], everything contiguous."""
    return (tensor.permute(0, 2, 3, 1) if _is_map(axes) else tensor).contiguous()


def _is_map(axes: str) -> bool:
    return axes.startswith("B ")


def _code(option: Any) -> Any:
    return _NORM_CODES.get(option, option)
