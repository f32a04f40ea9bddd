# SPDX-License-Identifier: Apache-2.0
"""An operator with constant weights, for inference: everything that can be is done once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ditn_kernels._dispatch import DECOMPOSED, conditions, select
from ditn_kernels._op import Op
from ditn_kernels._records import flatten
from ditn_kernels.backends import BACKENDS


class Prepared:
    """`Prepared(op, *arguments)(*maps)` is `op(*maps, *arguments)`, for weights that nobody writes to any more.

    A call in plain inference finds by one look-up what was decided for maps of this shape, dtype and device: arguments
    are checked, a backend is chosen and weights are brought into the form in which it reads them at the first such
    call. It does not pass through PyTorch's dispatcher. Where somebody else has to see the operator (autograd,
    autocast, torch.compile, torch.export, torch.func, a mode, a subclass of Tensor), it is called as usual.
    """

    def __init__(self, op: Op, *arguments: Any) -> None:
        self._op = op
        self._arguments = list(flatten(arguments))
        self._decided: dict[tuple[Any, ...], Callable[..., Tensor]] = {}

    def __call__(self, *maps: Tensor) -> Tensor:
        if not is_plain(maps):
            return self._op(*maps, *self._arguments)
        key = (conditions(), *[(x.shape, x.dtype, x.device) for x in maps])
        run = self._decided.get(key)
        if run is None:
            run = self._decide(maps)
            if not (maps[0].is_cuda and torch.cuda.is_current_stream_capturing()):  # nothing is proved meanwhile
                self._decided[key] = run
        return run(*maps)

    def _decide(self, maps: tuple[Tensor, ...]) -> Callable[..., Tensor]:
        op = self._op
        named = op.named([*maps, *self._arguments])
        op.check(named)
        name = select(op, named)
        arguments = list(op.structured(named.values()))[len(maps) :]
        if name == DECOMPOSED and op.decomposition is not None:
            # Each of them takes and gives maps like the first.
            return _in_turn([Prepared(link, *given)._decide(maps) for link, given in op.decomposition(*arguments)])
        kernel = BACKENDS[name].prepared(op, arguments)
        return lambda *maps: kernel(*maps).contiguous(memory_format=torch.channels_last)


def _in_turn(steps: list[Callable[..., Tensor]]) -> Callable[..., Tensor]:
    def run(x: Tensor) -> Tensor:
        for step in steps:
            x = step(x)
        return x

    return run


def is_plain(tensors: tuple[Tensor, ...]) -> bool:
    """Whether nobody but a kernel has to see these tensors."""
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return False
    return (
        all(type(x) is Tensor for x in tensors)
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._len_torch_function_stack()
        and not torch.is_autocast_enabled(tensors[0].device.type)
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._get_tracing_state() is None
        and not torch.compiler.is_compiling()
    )
