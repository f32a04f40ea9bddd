# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels on a machine without a GPU: the same source, compiled by g++ with tests/cuda_shim.

Run by itself, it puts every sample of every operator through the kernels, and a small one of a stage that runs its
layers' kernels; the tests do that under sanitizers.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ditn_kernels import REGISTRY, Op
from ditn_kernels._op import NORMS, Sample

PROJECT = Path(__file__).parent.parent
SHIM = PROJECT / "tests" / "cuda_shim"
KERNELS = [PROJECT / "csrc" / "cuda" / name for name in ("kernels.cu", "hopper.cu")]
SOURCES = [*KERNELS, *(SHIM / name for name in ("block.cpp", "races.cpp", "operators.cpp", "faults.cpp"))]
FLAGS = [
    "-std=c++20",
    "-O2",
    "-fPIC",
    "-shared",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unknown-pragmas",
    # As nvcc compiles it: a register's bits are read as another type wherever halves come in pairs.
    "-fno-strict-aliasing",
    "-DDITN_HOPPER",
    f"-I{SHIM}",
    f"-I{PROJECT / 'csrc' / 'cuda'}",
]
# To GCC getcontext, of which the fibers are made, is a function that may return twice.
SANITIZE = ["-O1", "-g", "-Wno-clobbered", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
_NORM_CODES = {"none": 0, "tanh": 1, "layernorm": 2}
assert set(_NORM_CODES) == set(NORMS)
_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
# Of a stage that runs its layers' kernels, small: those are tried by themselves.
STAGE = Sample("stage", {"B": 1, "L": 2, "C": 12, "E": 20, "H": 9, "W": 13}, {"norm": "tanh"})


class _Shape(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("batch", "height", "width")] + [("channels", ctypes.c_int)]


class _Launch(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("threads", "shared_bytes", "blocks")]


@functools.cache
def build(arch: int, *, sanitized: bool = False) -> Path:
    """The library for __CUDA_ARCH__ `arch`, kept in build/cuda_host until a source changes."""
    command = ["g++", *FLAGS, f"-D__CUDA_ARCH__={arch}", *(SANITIZE if sanitized else [])]
    sources = sorted(path for folder in (PROJECT / "csrc", SHIM) for path in folder.rglob("*") if path.is_file())
    content = repr(command).encode() + b"".join(path.read_bytes() for path in sources)
    library = PROJECT / "build" / "cuda_host" / f"{hashlib.sha256(content).hexdigest()[:16]}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        partial = library.with_suffix(f".{os.getpid()}")
        inputs = [word for path in SOURCES for word in ("-x", "c++", str(path))]
        subprocess.run([*command, *inputs, "-o", str(partial)], check=True)
        partial.replace(library)
    return library


class HostKernels:
    """The kernels as a chip of compute capability `arch` would run them. `reverse` runs warps and lanes backwards. With
    `hopper` they find a chip of compute capability 9.0, which has kernels beside those that were compiled for `arch`.
    """

    def __init__(self, arch: int, *, sanitized: bool = False, reverse: bool = False, hopper: bool = False) -> None:
        self.library = ctypes.CDLL(str(build(arch, sanitized=sanitized)))
        self.library.reverse(reverse)
        self.library.capability(90 if hopper else arch // 10)
        self.library.fault.restype = ctypes.c_char_p

    def fault(self, name: str) -> str:
        """What the shim finds wrong with one of the kernels in faults.cpp."""
        found: bytes = self.library.fault(name.encode())
        return found.decode()

    def launches(self) -> list[tuple[int, int]]:
        """Threads and bytes of shared memory of each launch of the last call."""
        found = ctypes.POINTER(_Launch)()
        number = self.library.launches(ctypes.byref(found))
        return [(found[i].threads, found[i].shared_bytes) for i in range(number)]

    def scratch(self) -> int:
        """Bytes that the last call asked for, besides its result and packed weights."""
        self.library.scratch_bytes.restype = ctypes.c_int64
        return int(self.library.scratch_bytes())

    def blocks(self) -> int:
        """How many blocks the last launch of the last call had."""
        found = ctypes.POINTER(_Launch)()
        return int(found[self.library.launches(ctypes.byref(found)) - 1].blocks)

    def __call__(self, op: Op, args: dict[str, Any]) -> Tensor:
        """The operator's result for arguments on the CPU, channels-last. Raises RuntimeError if a launch fails."""
        tensors = [_dense(axes, args[name]) for name, axes in op.axes.items()]
        batch, channels, height, width = op.output_shape(op.check(args), args)
        result = torch.full((batch, height, width, channels), torch.nan, dtype=tensors[0].dtype)
        shape = _Shape(*tensors[0].shape)
        pointers = (ctypes.c_void_p * (len(tensors) + 1))(*(tensor.data_ptr() for tensor in (*tensors, result)))
        function = getattr(self.library, op.name)
        function.restype = ctypes.c_char_p
        type_ = ctypes.c_int64(_TYPES[result.dtype])
        error = function(type_, ctypes.byref(shape), pointers, *self._numbers(op, args))
        if error is not None:
            raise RuntimeError(error.decode())
        return result.permute(0, 3, 1, 2)

    @staticmethod
    def _numbers(op: Op, args: dict[str, Any]) -> list[Any]:
        """The sizes that the shape of the first tensor does not tell, then the options."""
        sizes = op.check(args)
        told = next(iter(op.axes.values())).split()
        numbers = [ctypes.c_int64(sizes[axis]) for axis in ("L", "E", "D", "C") if axis in sizes and axis not in told]
        for option in list(args.values())[len(op.axes) :]:
            code = _NORM_CODES.get(option, option) if isinstance(option, str) else option
            numbers.append(ctypes.c_double(code) if isinstance(code, float) else ctypes.c_int64(code))
        return numbers


def _dense(axes: str, tensor: Tensor) -> Tensor:
    return (tensor.permute(0, 2, 3, 1) if axes.startswith("B ") else tensor).contiguous()


def main() -> None:
    kernels = HostKernels(int(sys.argv[1]), sanitized=True)
    operators = [op for op in REGISTRY.values() if "cuda" in op.backends]
    for op in operators:
        cuda = op.backends["cuda"]
        for dtype in cuda.dtypes:
            for sample in [STAGE] if cuda.as_layers else op.samples:
                kernels(op, op.inputs(sample, dtype=dtype))
            print(op.name, dtype)
    hopper = HostKernels(int(sys.argv[1]), sanitized=True, hopper=True)
    for op in operators:
        as_layers = op.backends["cuda"].as_layers
        if as_layers or hopper.library.ditn_cuda_hopper_is_on(op.name.encode()):
            for dtype in (torch.float16, torch.bfloat16):
                hopper(op, op.inputs(STAGE if as_layers else op.samples[1], dtype=dtype))
                print(op.name, "sm_90a", dtype)


if __name__ == "__main__":
    main()
