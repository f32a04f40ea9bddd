# SPDX-License-Identifier: Apache-2.0
"""Triton's compiler with the assembler of our choice, for our kernels only.

Triton takes its ptxas from a knob, which holds for the whole process, is written to the environment and is not safe
between threads. Triton also remembers that ptxas's version, so that what another one assembled would be cached under
the same key. Here the knob is left alone. A subclass of Triton's backend runs the chosen assembler and has it in its
cache key. A copy of Triton's `compile` gets this backend where it calls `make_backend`; the original, which everybody
else calls, still gets Triton's own. The PTX is the same as with Triton's own ptxas.
"""

from __future__ import annotations

import copy
from types import FunctionType
from typing import Any

import triton
from triton.backends.compiler import BaseBackend, GPUTarget
from triton.backends.nvidia import compiler as nvidia
from triton.compiler import compiler
from triton.knobs import NvidiaTool

from ditn_kernels.backends.triton import _assembler


def _seeing(function: Any, **names: Any) -> Any:
    """A copy of a function that sees these global names in place of its module's."""
    if missing := names.keys() - set(function.__code__.co_names):
        where = f"{function.__module__}.{function.__qualname__}"
        raise RuntimeError(
            f"Triton {triton.__version__} cannot be given an assembler: {where} does not use {', '.join(missing)}; "
            "Triton 3.6 and 3.7 can"
        )
    seen = function.__globals__ | names
    return FunctionType(function.__code__, seen, function.__name__, function.__defaults__, function.__closure__)


class Backend(nvidia.CUDABackend):  # type: ignore[misc]  # Triton has no types
    """For one chip, with one assembler."""

    def __init__(self, target: GPUTarget, assembler: _assembler.Assembler) -> None:
        super().__init__(target)
        self.assembler = assembler
        tool = NvidiaTool(str(assembler.path), _assembler.dotted(assembler.version[:2]))
        self._make_cubin = _seeing(nvidia.CUDABackend.make_cubin, get_ptxas=lambda arch: tool)

    def hash(self) -> str:
        """A part of the key under which Triton caches a kernel."""
        return f"{self.assembler.identity}-{self.target.arch}"

    def parse_options(self, opts: dict[str, Any]) -> Any:
        """An assembler older than Triton's own needs a version of PTX that it knows."""
        own = tuple(map(int, nvidia.get_ptxas(self.target.arch).version.split(".")))
        if self.assembler.version[:2] < own and opts.get("ptx_version") is None:
            opts = opts | {"ptx_version": nvidia.ptx_get_version(_assembler.dotted(self.assembler.version[:2]))}
        return super().parse_options(opts)

    def make_cubin(self, src: Any, metadata: Any, opt: Any, capability: int) -> Any:
        return self._make_cubin(self, src, metadata, opt, capability)


def make_backend(target: GPUTarget) -> Any:
    """Raises RuntimeError if there is no assembler for the chip."""
    if target.backend != "cuda":
        return compiler.make_backend(target)
    choice = _assembler.choose(target.arch)
    if choice.assembler is None:
        raise RuntimeError(f"Triton {choice.refusal}")
    return Backend(target, choice.assembler)


# As `triton.compile`.
compile = _seeing(compiler.compile, make_backend=make_backend)


class _DeviceCaches(dict[Any, Any]):
    """What a kernel keeps for each device, our backend among it. Triton makes it at the first launch on a device."""

    def __init__(self, kernel: Any) -> None:
        super().__init__()
        self._kernel = kernel

    def __missing__(self, device: Any) -> Any:
        # Triton also stores its own `compile` in the kernel: let it do so in a copy, so that no other thread uses that.
        twin = copy.copy(self._kernel)
        parts = twin.create_binder()
        vars(self._kernel).update({**vars(twin), "compile": compile, "device_caches": self})
        (target,) = (part for part in parts if isinstance(part, GPUTarget))
        self[device] = tuple(make_backend(target) if isinstance(part, BaseBackend) else part for part in parts)
        return self[device]


def own(kernel: Any) -> None:
    """Make launches of a kernel compile it with `compile` above."""
    if not isinstance(kernel.device_caches, _DeviceCaches):
        kernel.device_caches = _DeviceCaches(kernel)
