# SPDX-License-Identifier: Apache-2.0
"""TensorRT's plugins without TensorRT or a GPU: built with tests/tensorrt_shim, on the CUDA kernels' host library."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cuda_host
import torch
from cuda_host import PROJECT
from torch import Tensor

from ditn_kernels import Op
from ditn_kernels._interface import headers

PLUGINS = sorted((PROJECT / "csrc" / "tensorrt").glob("*.cpp"))
SHIM = PROJECT / "tests" / "tensorrt_shim"
ARCH = 800
FLAGS = ["-std=c++20", "-O1", "-fPIC", "-Wall", "-Wextra", "-Werror", f"-D__CUDA_ARCH__={ARCH}", f"-I{cuda_host.SHIM}"]
BUILD, RUNTIME = 0, 1
FLOAT, HALF, INT8, BF16 = 0, 1, 2, 7  # TensorRT's numbers of types
TYPES = {torch.float32: FLOAT, torch.float16: HALF}
LINEAR = 0
FORMATS = range(13)
_CHAR, _INT32 = 6, 5
_MAX_DIMS = 8
_GUARD = 4096


class Field(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("type", ctypes.c_int32),
        ("length", ctypes.c_int32),
    ]


class Fields(ctypes.Structure):
    _fields_ = [("count", ctypes.c_int32), ("fields", ctypes.POINTER(Field))]


class Described(ctypes.Structure):
    """A tensor as a plugin is told about it. Where `least` and `most` differ, its shape is not known yet."""

    _fields_ = [
        ("type", ctypes.c_int32),
        ("format", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("least", ctypes.c_int64 * _MAX_DIMS),
        ("most", ctypes.c_int64 * _MAX_DIMS),
        ("data", ctypes.c_void_p),
    ]


@functools.cache
def interface() -> Path:
    """The folder of the headers that are written from the operators' definitions."""
    folder = PROJECT / "build" / "tensorrt_host" / "interface"
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in headers().items():
        partial = folder / f"{name}.{os.getpid()}"
        partial.write_text(content, encoding="utf-8")
        partial.replace(folder / name)
    return folder


@functools.cache
def library() -> ctypes.CDLL:
    """The plugins and who calls them, kept in build/tensorrt_host until a source changes."""
    kernels = cuda_host.build(ARCH)
    sources = [*PLUGINS, SHIM / "harness.cpp"]
    included = sorted([*SHIM.glob("*.h"), *(PROJECT / "csrc" / "tensorrt").glob("*.h"), *interface().glob("*.h")])
    includes = [f"-I{SHIM}", f"-I{interface()}"]
    command = ["g++", *FLAGS, "-shared", *includes, *map(str, sources), str(kernels), f"-Wl,-rpath,{kernels.parent}"]
    content = repr(command).encode() + b"".join(path.read_bytes() for path in (*sources, *included))
    path = PROJECT / "build" / "tensorrt_host" / f"{hashlib.sha256(content).hexdigest()[:16]}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        subprocess.run([*command, "-o", str(partial)], check=True)
        partial.replace(path)
    loaded = ctypes.CDLL(str(path))
    for name in ("last_error", "creator_text", "plugin_text"):
        getattr(loaded, name).restype = ctypes.c_char_p
    for name in ("creator_fields", "serialized"):
        getattr(loaded, name).restype = ctypes.POINTER(Fields)
    for name in ("create", "clone", "attach"):
        getattr(loaded, name).restype = ctypes.c_void_p
    loaded.workspace.restype = ctypes.c_size_t
    loaded.supports.restype = ctypes.c_bool
    loaded.start()
    return loaded


def creators() -> list[tuple[str, ...]]:
    """Name, version, namespace and kind of every creator."""
    found = library()
    return [tuple(found.creator_text(i, what).decode() for what in range(4)) for i in range(found.creator_count())]


def unpacked(fields: Any) -> dict[str, tuple[int, int, bytes | None]]:
    """Type, length and data of every field."""
    sizes = {_CHAR: 1, _INT32: 4}
    return {
        field.name.decode(): (
            field.type,
            field.length,
            ctypes.string_at(field.data, field.length * sizes[field.type]) if field.data else None,
        )
        for field in fields.contents.fields[: fields.contents.count]
    }


def packed(options: Mapping[str, Any]) -> tuple[Fields, list[Any]]:
    """The fields for a creator, and what they point to."""
    kept: list[Any] = []
    fields = (Field * len(options))()
    for field, (name, value) in zip(fields, options.items(), strict=True):
        data = ctypes.create_string_buffer(value.encode()) if isinstance(value, str) else ctypes.c_int32(value)
        kept.append(data)
        field.name, field.data = name.encode(), ctypes.addressof(data)
        field.type, field.length = (_CHAR, len(value)) if isinstance(value, str) else (_INT32, 1)
    kept.append(fields)
    return Fields(len(options), fields), kept


class Plugin:
    """One plugin object. Raises ValueError with what TensorRT's log would say."""

    def __init__(self, name: str, options: Mapping[str, Any], phase: int = BUILD) -> None:
        fields, self._kept = packed(options)
        index = [creator[0] for creator in creators()].index(name)
        self._own(library().create(index, ctypes.byref(fields), phase))

    @classmethod
    def of(cls, handle: int | None) -> Plugin:
        plugin = cls.__new__(cls)
        plugin._own(handle)
        return plugin

    def _own(self, handle: int | None) -> None:
        self._handle = None
        if not handle:
            raise ValueError(library().last_error().decode())
        self._handle = ctypes.c_void_p(handle)

    def destroy(self) -> None:
        library().destroy(self._handle)

    def clone(self) -> Plugin:
        return Plugin.of(library().clone(self._handle))

    def attach(self) -> Plugin:
        return Plugin.of(library().attach(self._handle))

    def texts(self) -> list[str]:
        """Name, version, namespace, and under what its timings are kept."""
        return [library().plugin_text(self._handle, what).decode() for what in range(4)]

    def serialized(self) -> dict[str, tuple[int, int, bytes | None]]:
        return unpacked(library().serialized(self._handle))

    def call(self, what: str, *args: Any) -> Any:
        return getattr(library(), what)(self._handle, *args)

    def check(self, what: str, *args: Any) -> None:
        if self.call(what, *args):
            raise ValueError(library().last_error().decode())

    def enqueue(self, tensors: ctypes.Array[Described], size: int, shift: int = 0) -> int:
        """Runs it with so much memory, `shift` bytes behind a multiple of 256; returns how much was written to. Raises
        AssertionError if something was written before or behind it."""
        memory = ctypes.create_string_buffer(b"\xa5" * (size + 2 * _GUARD))
        start = -ctypes.addressof(memory) % 256 + 256 + shift
        self.check("enqueue", tensors, len(tensors), ctypes.byref(memory, start))
        content = memory.raw[:-1]
        used = content[start : start + size]
        assert not content[:start].strip(b"\xa5"), "written before the workspace"
        assert not content[start + size :].strip(b"\xa5"), "written behind the workspace"
        return len(used.rstrip(b"\xa5"))


def describe(tensors: Mapping[str, Tensor], most: tuple[int, int, int] | None = None) -> ctypes.Array[Described]:
    """Tensors for a plugin, the result last: maps [B, C, H, W] as channels-last. `most`: batch, height and width of the
    largest maps that there may be."""
    described = (Described * len(tensors))()
    for target, tensor in zip(described, tensors.values(), strict=True):
        shape, largest = _shapes(tensor, most)
        target.type, target.format, target.rank = TYPES[tensor.dtype], LINEAR, len(shape)
        target.least[: len(shape)], target.most[: len(shape)] = shape, largest
        target.data = tensor.data_ptr()
    return described


def _shapes(tensor: Tensor, most: tuple[int, int, int] | None) -> tuple[list[int], list[int]]:
    if tensor.dim() != 4:
        return list(tensor.shape), list(tensor.shape)
    batch, channels, height, width = tensor.shape
    return [batch, height, width, channels], [*(most or (batch, height, width)), channels]


def tensors_of(op: Op, args: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a call, and NaN for the result. Maps are channels-last, which is what a plugin reads."""
    tensors = {name: args[name] for name in op.axes}
    return tensors | {"result": torch.full_like(tensors["x"], torch.nan)}
