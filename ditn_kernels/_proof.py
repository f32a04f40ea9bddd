# SPDX-License-Identifier: Apache-2.0
"""Proof on the machine: a kernel for GPUs has to pass a trial (`_trial.py`) before it serves for the first time.

What is proved is one kind of call: an operator, a direction and a backend, with the call's dtype, channels and options,
for which there is machine code of its own. A verdict holds for a GPU, a driver, a PyTorch, this package's code and
whatever else the backend says its results depend on. It is kept on disk (`_verdicts.py`). DITN_PROOF=off trusts all
kernels.
"""

from __future__ import annotations

import functools
import os
import re
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch._subclasses.fake_tensor import FakeTensor

from ditn_kernels import _trial, _verdicts
from ditn_kernels._digest import digest
from ditn_kernels._op import Op

# Kernels of other devices are trusted: their machine code was tested as it is shipped.
DEVICES = {"cuda"}
_FOLDER = Path(__file__).parent


class Provable(Protocol):
    """What a proof needs of a backend."""

    def kernel(self, op: Op, *, backward: bool) -> Callable[..., Any]:
        """The function that takes the operator's arguments (the gradient first, for a backward)."""

    def identity(self, op: Op, device: torch.device) -> Mapping[str, str] | None:
        """What its results depend on besides GPU, driver and this package's Python code; None if they need no proof."""

    def fall_back(self, op: Op, device: torch.device, dtype: torch.dtype) -> bool:
        """Once an operator's kernel was found wrong in a dtype: whether there is another, which serves from now on."""


class LostContextError(RuntimeError):
    """A kernel's trial has left the process without its GPU."""


@dataclass(frozen=True)
class Call:
    """A call of an operator that a backend is to serve."""

    op: Op
    name: str
    backend: Provable
    args: Mapping[str, Any]
    backward: bool

    @property
    def device(self) -> torch.device:
        found: torch.device = next(iter(self.args.values())).device
        return found

    @property
    def dtype(self) -> torch.dtype:
        found: torch.dtype = next(iter(self.args.values())).dtype
        return found

    @property
    def title(self) -> str:
        direction = "backward" if self.backward else "forward"
        return f"{self.op.name} {direction} in {str(self.dtype).removeprefix('torch.')} by {self.name}"

    def facts(self, identity: Mapping[str, str]) -> _verdicts.Facts:
        """All that the verdict depends on."""
        x = next(iter(self.args.values()))
        axes = {axis: size for axis, size in self.op.check(self.args).items() if axis not in ("B", "H", "W")}
        options = {name: self.args[name] for name in self.op.options}
        return {
            "operator": self.op.name,
            "direction": "backward" if self.backward else "forward",
            "backend": self.name,
            "dtype": str(self.dtype).removeprefix("torch."),
            **axes,
            **options,
            **_machine(x.device),
            **identity,
            "torch": torch.__version__,
            "code": _code(),
        }

    def fault(self) -> str:
        """What its trial finds."""
        kernel = self.backend.kernel(self.op, backward=self.backward)
        return _trial.fault(self.op, kernel, self.args, backward=self.backward)


# The faults that this process knows of; empty for kernels that passed.
_faults: dict[tuple[Any, ...], str] = {}
# Held while a kernel is tried, which waits for all that the GPU does. That would break off another thread's recording
# of a CUDA graph; so whoever records one, or waits for a whole GPU, takes it, too.
gpu_lock = threading.RLock()


def reasons_against(
    op: Op, name: str, backend: Provable, args: Mapping[str, Any], *, backward: bool, serving: bool
) -> list[str]:
    """Why a backend must not run a call; empty if it may, or if that is not known.

    If it is about to serve (`serving`) and nothing is known, it is proved now, except while a CUDA graph is captured or
    a graph is traced or exported. Warns once of each kernel that failed or could not be tried. Raises
    ValueError for a DITN_PROOF that is neither "on" nor "off", NotADirectoryError for a cache folder that is a file,
    LostContextError if the trial ended in an illegal memory access.
    """
    x = next(iter(args.values()))
    key = (op.name, name, backward, x.dtype, x.device, _kind(op)(args))
    fault = _faults.get(key)
    if fault is None and _is_capturing():
        # Nothing is proved now, and the lock may be held by a thread that waits for this one, as for a gradient's.
        fault = _look_up(Call(op, name, backend, args, backward), key, serving=False)
    if fault is None:
        with gpu_lock:
            fault = _faults.get(key)
            if fault is None:
                fault = _look_up(Call(op, name, backend, args, backward), key, serving=serving)
    return [_reason(fault)] if fault and is_on() else []


def is_on() -> bool:
    """Whether kernels are proved. Raises ValueError for a DITN_PROOF that is neither "on" nor "off"."""
    value = os.environ.get("DITN_PROOF", "on")
    if value not in ("on", "off"):
        raise ValueError(f"DITN_PROOF is {value!r}, must be 'on' or 'off'")
    return value == "on"


def prove(call: Call, identity: Mapping[str, str]) -> str:
    """Prove a call, whatever is known of it. Returns what is wrong, or an empty string; this is kept as the verdict,
    unless it may pass."""
    fault = call.fault()
    if _trial.may_pass(fault, call.device):
        _verdicts.remove(call.facts(identity))
    else:
        _verdicts.write(call.facts(identity), fault)
    return fault


def _look_up(call: Call, key: tuple[Any, ...], *, serving: bool) -> str:
    on = is_on()
    must = call.device.type in DEVICES
    if must and not on:
        return ""
    identity = call.backend.identity(call.op, call.device) if must else None
    if identity is None:
        _faults[key] = ""
        return ""
    fault = _verdicts.read(call.facts(identity))
    if not serving:
        return fault or ""
    may_pass = False
    if fault is None:
        if not _may_run(call):
            return ""
        try:
            fault = prove(call, identity)
            may_pass = _trial.may_pass(fault, call.device)
        except Exception as error:
            fault = ""
            message = f"{call.title} serves unproved, it could not be tried: {type(error).__name__}: {error}"
            warnings.warn(message, RuntimeWarning, stacklevel=4)
    _faults[key] = fault
    if fault:
        lost = not _trial.alive(call.device)
        facts = ", ".join(f"{name} {value}" for name, value in call.facts(identity).items())
        where = "in this process" if may_pass else "on this machine"
        message = f"{call.title} {fault}. It is not used {where} from now on. Proved for: {facts}"
        if lost:
            raise LostContextError(f"{message}. The GPU is lost to this process; a new one will run without the kernel")
        warnings.warn(message, RuntimeWarning, stacklevel=4)
        if call.backend.fall_back(call.op, call.device, call.dtype):
            # What was found of the operator's kernel before is not about the other one.
            for known in [known for known in _faults if known[:2] == (call.op.name, call.name)]:
                del _faults[known]
            return _look_up(call, key, serving=serving)
    return fault


def _reason(fault: str) -> str:
    return f"{fault} (found on this machine: `ditn verify` tries again, DITN_PROOF=off takes it on trust)"


def _may_run(call: Call) -> bool:
    compiler = torch.compiler
    tracing = compiler.is_compiling() or compiler.is_exporting() or torch._C._get_tracing_state() is not None
    fake = any(isinstance(value, FakeTensor) for value in call.args.values())
    return not (tracing or fake)


def _is_capturing() -> bool:
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


@functools.cache
def _kind(op: Op) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    """A function from arguments to what selects machine code: the sizes of all axes but the map's, and the options."""
    places: dict[str, tuple[str, int]] = {}
    for name, axes in op.axes.items():
        for place, term in enumerate(axes.split()):
            places.setdefault(term.lstrip("0123456789"), (name, place))
    fixed = [place for axis, place in places.items() if axis not in ("B", "H", "W", "")]

    def kind(args: Mapping[str, Any]) -> tuple[Any, ...]:
        return (*[args[name].shape[place] for name, place in fixed], *[args[name] for name in op.options])

    return kind


@functools.cache
def _machine(device: torch.device) -> Mapping[str, str]:
    if device.type != "cuda":
        return {"gpu": f"none, but {device.type}"}
    major, minor = torch.cuda.get_device_capability(device)
    return {"gpu": torch.cuda.get_device_name(device), "capability": f"{major}.{minor}", "driver": _driver()}


def _driver() -> str:
    """The driver's version or, where the system does not give it, the version of CUDA that the driver supports."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        text = ""
    found = re.search(r"\s(\d{3,}\.\d+(?:\.\d+)?)\s", text)
    return found[1] if found else f"for CUDA {torch._C._cuda_getDriverVersion()}"  # type: ignore[attr-defined]


@functools.cache
def _code() -> str:
    """A hash of the package's Python files and launch configurations."""
    return digest(*sorted(_FOLDER.rglob("*.py")), *sorted(_FOLDER.glob("backends/*/configs/*.json")))
