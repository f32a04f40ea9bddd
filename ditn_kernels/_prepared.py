# SPDX-License-Identifier: Apache-2.0
"""An operator with constant weights, for inference: everything that can be is done once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from ditn_kernels._axes import is_map
from ditn_kernels._dispatch import DECOMPOSED, conditions, select
from ditn_kernels._op import Op
from ditn_kernels._records import flatten
from ditn_kernels._transforms import is_transforming
from ditn_kernels.backends import BACKENDS

# Decisions that are kept, of a few hundred bytes each: a server meets images of any size.
_KEPT = 1024


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
        self._kernels: dict[str, Callable[..., Tensor]] = {}
        self._decided: dict[tuple[Any, ...], Callable[..., Tensor]] = {}

    def __call__(self, *maps: Tensor) -> Tensor:
        if not is_plain(maps):
            return self._op(*maps, *self._arguments)
        key = (conditions(), *[(x.shape, x.dtype, x.device) for x in maps])
        run = self._decided.get(key)
        if run is None:
            run = self._decide(maps)
            if not (maps[0].is_cuda and torch.cuda.is_current_stream_capturing()):  # nothing is proved meanwhile
                if len(self._decided) >= _KEPT:
                    self._decided.clear()
                self._decided[key] = run
        return run(*maps)

    def _decide(self, maps: tuple[Tensor, ...]) -> Callable[..., Tensor]:
        op = self._op
        named = op.named([*maps, *self._arguments])
        op.check(named)
        name = select(op, named)
        if name == DECOMPOSED:
            # Each of them takes and gives maps like the first.
            return _in_turn([link._decide(maps) for link in self._links])
        return self._kernel(name)

    @functools.cached_property
    def _links(self) -> list[Prepared]:
        """The decomposition, each operator prepared."""
        decomposition = self._op.decomposition
        return [Prepared(link, *given) for link, given in decomposition(*self._structured())] if decomposition else []

    def _kernel(self, backend: str) -> Callable[..., Tensor]:
        """A backend's kernel with the weights as it reads them, which do not depend on the maps."""
        if backend not in self._kernels:
            kernel = BACKENDS[backend].prepared(self._op, self._structured())
            self._kernels[backend] = lambda *maps: kernel(*maps).contiguous(memory_format=torch.channels_last)
        return self._kernels[backend]

    def _structured(self) -> list[Any]:
        """The arguments behind the maps as the operator's definition takes them."""
        op, maps = self._op, sum(map(is_map, self._op.axes.values()))
        return list(op.structured(op.named([None] * maps + self._arguments).values()))[maps:]


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
        and not _is_watched()
        and not torch.is_autocast_enabled(tensors[0].device.type)
        and not is_transforming()
        and torch._C._get_tracing_state() is None
        and not torch.compiler.is_compiling()
    )


def _is_watched() -> bool:
    """Whether a mode sees what is done with tensors. `torch.set_default_device` is a mode as well, but only says where
    new ones are made, which kernels say themselves."""
    return bool(torch._C._len_torch_function_stack()) and not all(
        type(mode) is DeviceContext for mode in _get_current_function_mode_stack()
    )
