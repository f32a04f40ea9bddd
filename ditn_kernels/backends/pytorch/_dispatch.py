# SPDX-License-Identifier: Apache-2.0
"""How plain PyTorch is reached: it is the operator's own definition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ditn_kernels._support import Support
from ditn_kernels.backends.pytorch._limits import EVERYTHING

if TYPE_CHECKING:
    from ditn_kernels._op import Op


class PyTorch:
    """Plain PyTorch: the operator's own definition."""

    def support(self, operator: str) -> Support:
        return EVERYTHING

    def missing(self, op: Op, device: torch.device, *, backward: bool, dtype: torch.dtype | None = None) -> list[str]:
        return ["is for inference only"] if backward and op.backward is None else []

    def auto_selectable(self, device: torch.device) -> bool:
        return True

    def kernel(self, op: Op, *, backward: bool) -> Callable[..., Any]:
        return op.backward if backward and op.backward else op.reference

    def prepared(self, op: Op, arguments: Sequence[Any]) -> Callable[..., Tensor]:
        return lambda *maps: op.definition(*maps, *arguments)

    def fall_back(self, op: Op, device: torch.device, dtype: torch.dtype) -> bool:
        return False

    def identity(self, op: Op, device: torch.device) -> None:
        return None
