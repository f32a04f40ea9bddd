# SPDX-License-Identifier: Apache-2.0
"""Exported programs for processes without Python: operators that choose a backend become the compiled library's."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ditn_kernels._axes import is_map
from ditn_kernels._dispatch import BackendError, reasons_against
from ditn_kernels._op import Op
from ditn_kernels.backends import BACKENDS
from ditn_kernels.backends.native import _libraries
from ditn_kernels.ops import REGISTRY

if TYPE_CHECKING:
    from torch.export import ExportedProgram


# The backend of compiled kernels for each kind of device, and its libraries.
BACKEND = {"cpu": "cpp", "cuda": "cuda"}
NATIVE = {"cpu": ["_C.so"], "cuda": ["_C.so", "_C_cuda.so"]}


def native_libraries(device: str = "cpu") -> list[Path]:
    """Load the compiled libraries that lowered programs call on a kind of device, and return their paths: a C++ program
    opens these files with dlopen, in this order. Raises BackendError with the reasons if there are none.
    """
    if device not in NATIVE:
        raise BackendError(f"there is no compiled library for {device!r}, only for {', '.join(NATIVE)}")
    reasons = BACKENDS[BACKEND[device]].missing(next(iter(REGISTRY.values())), torch.device(device), backward=False)
    if reasons:
        raise BackendError(f"the compiled library {', '.join(reasons)}")
    return [_libraries.FOLDER / name for name in NATIVE[device]]


def lower_to_native(program: ExportedProgram) -> ExportedProgram:
    """The program with every `ditn::*` operator replaced by the compiled library's `ditn_native::*`, and stages that
    the library does not have by their decomposition. What it is given is copied first, so that tensors of any strides
    may be: compiled by AOTInductor it would read all as if they were dense.

    Raises BackendError, with every reason, for an operator that the library cannot run with the program's shapes, dtype
    and device, or if there is no library.
    """
    native_libraries()
    _register_fakes()
    table = {getattr(torch.ops.ditn, op.name).default: _call(op) for op in REGISTRY.values()}
    # Otherwise the graph, which is traced again, would assume that no size is 1.
    with torch.fx.experimental._config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        lowered: ExportedProgram = program.run_decompositions(table)
    graph = lowered.graph
    for given in [node for node in graph.nodes if node.name in lowered.graph_signature.user_inputs]:
        with graph.inserting_after(given):
            dense = graph.call_function(torch.ops.ditn_native.dense.default, (given,))
        dense.meta = dict(given.meta)
        given.replace_all_uses_with(dense, delete_user_cb=lambda user, own=dense: user is not own)
    lowered.graph_module.recompile()
    return lowered


def _call(op: Op) -> Callable[..., Tensor]:
    def call(*args: Any, **options: Any) -> Tensor:
        options.pop("backend", None)
        named = op.named(args, options)
        backend = BACKEND[next(iter(named.values())).device.type]
        reasons = reasons_against(op, backend, named)
        if reasons and op.decomposition is not None:
            return op.decomposed(*named.values())
        if reasons:
            raise BackendError(f"{op.name} cannot be lowered: {backend} {', '.join(reasons)}")
        y: Tensor = BACKENDS[backend].kernel(op, backward=False)(*named.values())
        return y

    return call


@functools.cache
def _register_fakes() -> None:
    torch.library.register_fake("ditn_native::dense", lambda x: x.new_empty(x.shape))
    for op in REGISTRY.values():
        torch.library.register_fake(f"ditn_native::{op.name}", _fake(op))


def _fake(op: Op) -> Callable[..., Tensor]:
    """The result's shape by the operator's own definition. The compiled library takes maps as [B, H, W, C] and a norm
    as a number; the definition takes [B, C, H, W] and a name, on which no shape depends."""

    def fake(*args: Any) -> Tensor:
        axes = list(op.axes.values())
        tensors = [t.permute(0, 3, 1, 2) if is_map(a) else t for a, t in zip(axes, args, strict=False)]
        named = op.named([*tensors, *args[len(axes) :]])
        if "norm" in named:
            named["norm"] = "none"
        batch, channels, height, width = op.output_shape(op.check(named), named)
        return args[0].new_empty(batch, height, width, channels)  # type: ignore[no-any-return]

    return fake
