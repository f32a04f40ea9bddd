# SPDX-License-Identifier: Apache-2.0
"""Folded weights that are kept from call to call: made in float64, of parameters whose changes are noticed."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

_M = TypeVar("_M", bound=nn.Module)


def widened(module: _M) -> _M:
    """The module with copies of its tensors in float64 on the CPU (on "meta", if there), and all else as it is. A
    deepcopy would stumble over hooks, which may hold anything, and over parameters that are results of others."""

    def wide(values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: _wide(value) if isinstance(value, Tensor) else value for name, value in values.items()}

    twin = module.__new__(type(module))
    twin.__dict__ = wide(vars(module)) | {
        "_parameters": wide(module._parameters),
        "_buffers": wide(module._buffers),
        "_modules": {name: part if part is None else widened(part) for name, part in module._modules.items()},
    }
    return twin


def _wide(tensor: Tensor) -> Tensor:
    dtype = torch.float64 if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to("meta" if tensor.is_meta else "cpu", dtype, copy=True)


def constant(tensor: Tensor) -> Tensor:
    """The tensor, contiguous. torch.compile(dynamic=True) is not to take its sizes for variables: the attribute is all
    that torch._dynamo.mark_static sets, which itself would import the compiler."""
    tensor = tensor.contiguous()
    tensor._dynamo_static_indices = set(range(tensor.dim()))  # type: ignore[attr-defined]
    return tensor


def has_values(tensor: Tensor) -> bool:
    """Whether it is more than a stand-in, as on "meta" or in a FakeTensorMode, where shapes alone are computed."""
    return type(tensor) is Tensor and not tensor.is_meta


class Snapshot:
    """A module's submodules, parameters, buffers and their versions at one time. To see whether any of them is another
    now takes a hundredth of the time that walking the module takes."""

    def __init__(self, module: nn.Module) -> None:
        parts = list(module.modules())
        self._children = [part._modules for part in parts if part._modules]
        self._children_then = [dict(children) for children in self._children]
        # Of buffers there are those of which a parametrization or torch.nn.utils.prune makes a weight.
        held = [slots for part in parts for slots in (part._parameters, part._buffers)]
        self._slots = [(slots, name) for slots in held for name in slots]
        self._tensors = self._now()
        present = [tensor for tensor in self._tensors if tensor is not None]
        self._present = present
        # An inference tensor counts no versions, and cannot be written to outside inference mode.
        self._counting = [tensor for tensor in present if not tensor.is_inference()]
        self._state = self._state_now()

    def is_stale(self) -> bool:
        """Whether a submodule or tensor was exchanged, or a tensor written to or converted."""
        return (
            self._children != self._children_then
            or not all(map(operator.is_, self._now(), self._tensors))
            or self._state_now() != self._state
        )

    def _now(self) -> list[Tensor | None]:
        return [slots.get(name) for slots, name in self._slots]

    def _state_now(self) -> tuple[list[Any], ...]:
        versions = [tensor._version for tensor in self._counting]
        return versions, [tensor.dtype for tensor in self._present], [tensor.device for tensor in self._present]
