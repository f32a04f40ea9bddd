# SPDX-License-Identifier: Apache-2.0
"""The backends. Each is a folder with its dispatch side (`_dispatch.py`), its limits (`_limits.py`) and its kernels or
what finds them, and one line here. Importing them loads no library and no Triton."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from ditn_kernels._support import Support
from ditn_kernels.backends.native._dispatch import CPlusPlus, Cuda
from ditn_kernels.backends.pytorch._dispatch import PyTorch
from ditn_kernels.backends.triton._dispatch import Triton

if TYPE_CHECKING:
    from ditn_kernels._op import Op


class Backend(Protocol):
    """How to reach one backend's kernels. `missing` is about this machine and installation; what an operator's
    arguments allow is said by its `Support`."""

    def support(self, operator: str) -> Support | None:
        """What its kernels for an operator can run; None if it has none."""

    def missing(self, op: Op, device: torch.device, *, backward: bool, dtype: torch.dtype | None = None) -> list[str]:
        """Every reason why this backend has no kernel for the operator on the device, in this dtype if one is given;
        empty if it has."""

    def auto_selectable(self, device: torch.device) -> bool:
        """Whether it may be chosen on this device automatically, without being forced."""

    def kernel(self, op: Op, *, backward: bool) -> Callable[..., Any]:
        """The function that takes the operator's arguments (the gradient first, for a backward)."""

    def prepared(self, op: Op, arguments: Sequence[Any]) -> Callable[..., Tensor]:
        """The function that takes an operator's maps only. The other arguments, as its definition takes them, stay the
        same: whatever depends on them alone is done here."""

    def identity(self, op: Op, device: torch.device) -> Mapping[str, str] | None:
        """What its results depend on besides GPU, driver and this package's Python code; None if they need no proof."""

    def fall_back(self, op: Op, device: torch.device, dtype: torch.dtype) -> bool:
        """Once an operator's kernel was found wrong in a dtype: whether there is another, which serves from now on."""


# Fastest first, as far as no GPU has said otherwise (`_order.py`). Plain PyTorch, which can run everything, is last.
BACKENDS: dict[str, Backend] = {
    "triton": Triton(),
    "cuda": Cuda(),
    "cpp": CPlusPlus(),
    "torch": PyTorch(),
}
# Names that were given to a backend before.
FORMER_NAMES = {"cpu": "cpp"}
