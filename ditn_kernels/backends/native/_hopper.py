# SPDX-License-Identifier: Apache-2.0
"""The kernels for compute capability 9.0 in the library for CUDA, beside those for all chips (csrc/cuda/hopper.h):
whether they serve, and how to do without them. DITN_CUDA_HOPPER=0 turns them off from the start."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from ditn_kernels.backends.native import _libraries

CAPABILITY = (9, 0)
# On trial, so that each takes patches several times.
_FEW_BLOCKS = 3


def serves(operator: str, device: torch.device) -> bool:
    """Whether an operator has such kernels, and calls on the device that they can compute are theirs."""
    library = _library(device)
    return library is not None and bool(library.ditn_cuda_hopper_is_on(operator.encode()))


def turn(operator: str, device: torch.device, *, on: bool) -> None:
    """Have an operator's kernels serve, or leave their work to those for all chips; in this process."""
    if library := _library(device):
        library.ditn_cuda_hopper_turn(operator.encode(), on)


@contextmanager
def without(operators: Iterable[str], device: torch.device) -> Iterator[None]:
    """The kernels for all chips serve."""
    turned = [operator for operator in operators if serves(operator, device)]
    for operator in turned:
        turn(operator, device, on=False)
    try:
        yield
    finally:
        for operator in turned:
            turn(operator, device, on=True)


@contextmanager
def few_blocks(device: torch.device) -> Iterator[None]:
    """Launches of this thread have a few blocks."""
    library = _library(device)
    if library is None:
        yield
        return
    library.ditn_cuda_hopper_blocks(_FEW_BLOCKS)
    try:
        yield
    finally:
        library.ditn_cuda_hopper_blocks(0)


def _library(device: torch.device) -> ctypes.CDLL | None:
    """The library, if it is loaded and has such kernels for the device."""
    if _libraries.why_no_cuda() or torch.cuda.get_device_capability(device) != CAPABILITY:
        return None
    library = ctypes.CDLL(str(_libraries.FOLDER / "_C_cuda.so"))
    return library if hasattr(library, "ditn_cuda_hopper_is_on") else None
