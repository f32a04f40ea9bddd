# SPDX-License-Identifier: Apache-2.0
"""Compiles a recorded launch for a chip that need not be present."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ditn_kernels.backends.triton import _ptxas
from ditn_kernels.backends.triton._launch import Launch

_TYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.int32: "i32", torch.int64: "i64"}
_THREADS_PER_WARP = 32


@dataclass(frozen=True)
class Ptx:
    """A kernel for maps of any size. It is launched in blocks of `threads` threads with `shared` bytes of dynamic
    shared memory, and takes exactly the launch's arguments."""

    name: str
    text: str
    threads: int
    shared: int


def compiled(launch: Launch, capability: int, *, any_size: bool = False) -> Any:
    """What Triton compiles the launch to for a chip (90 for sm_90). As in a real launch, the code is specialised for
    integers that are 1 or multiples of 16, unless it is for `any_size`."""
    options = {"num_warps": launch.config.num_warps, "num_stages": launch.config.num_stages}
    target = GPUTarget("cuda", capability, 32)
    return _ptxas.compile(source(launch, any_size=any_size), target=target, options=options)


def source(launch: Launch, *, any_size: bool = False) -> Any:
    """The kernel with the arguments' types."""
    names = launch.kernel.arg_names
    constants, attributes, types = dict(launch.constants), {}, {}
    for place, (name, argument) in enumerate(zip(names, launch.args, strict=False)):
        is_integer = isinstance(argument, int)
        if isinstance(argument, torch.Tensor):
            types[name] = "*" + _TYPES[argument.dtype]
        elif isinstance(argument, float):
            types[name] = "fp32"
        elif argument == 1 and not any_size:
            constants[name] = 1
        else:
            types[name] = "i32" if any_size or abs(argument) < 2**31 else "i64"
        if isinstance(argument, torch.Tensor) or (is_integer and argument % 16 == 0 and not any_size):
            attributes[(place,)] = [["tt.divisibility", 16]]
    signature = {name: types.get(name, "constexpr") for name in names}
    return ASTSource(launch.kernel, signature, {(names.index(n),): value for n, value in constants.items()}, attributes)


def ptx(launch: Launch, capability: int) -> Ptx:
    """The launch as PTX. Raises RuntimeError for a kernel that needs memory which Triton's own launcher allocates."""
    with triton.knobs.compilation.scope():
        # Line information would contain this machine's path of the source.
        triton.knobs.compilation.disable_line_info = True
        found = compiled(launch, capability, any_size=True)
    name = found.metadata.name
    text = _without_scratch(found.asm["ptx"], name, len(launch.args))
    return Ptx(name, text, found.metadata.num_warps * _THREADS_PER_WARP, found.metadata.shared)


def _without_scratch(text: str, name: str, count: int) -> str:
    """The PTX with its first `count` parameters only: Triton appends two pointers to scratch memory, which these
    kernels do not use."""
    entry = re.compile(rf"(\.entry {re.escape(name)}\()(.*?)(\n\))(.*)", re.DOTALL).search(text)
    if entry is None:
        raise RuntimeError(f"{name}: Triton's PTX has no entry of that name")
    parameters = entry[2].split(",")
    for parameter in parameters[count:]:
        if re.search(rf"\b{re.escape(parameter.split()[-1])}\b", entry[4]):
            raise RuntimeError(f"{name} uses memory that Triton's launcher allocates ({parameter.strip()})")
    return text[: entry.start(2)] + ",".join(parameters[:count]) + text[entry.end(2) :]
