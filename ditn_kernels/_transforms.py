# SPDX-License-Identifier: Apache-2.0
"""Whether tensors are more than their values: under torch.func, and with tangents, which operators refuse."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def in_forward_mode() -> bool:
    """Whether a tensor may carry a tangent now: it is a dual number of `torch.autograd.forward_ad`."""
    return forward_ad._current_level >= 0


def is_transforming() -> bool:
    """Whether a tensor may carry a tangent or be what a transform of torch.func makes of it, by no attribute to see."""
    return in_forward_mode() or torch._C._functorch.peek_interpreter_stack() is not None


def refuse_tangents(name: str, args: Iterable[Any]) -> None:
    """Raise NotImplementedError if there are any. PyTorch would drop them without a word, unless a gradient is wanted
    besides."""
    if any(isinstance(arg, Tensor) and forward_ad.unpack_dual(arg).tangent is not None for arg in args):
        raise NotImplementedError(
            f"{name} has no derivative in forward mode (torch.func.jvp, jacfwd, dual numbers); use fused=False, "
            f"or {name}.reference, which is plain PyTorch"
        )
