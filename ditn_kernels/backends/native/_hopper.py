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
# Operators that run the kernels of others.
_RUNS = {"spatial_stage": ("dilated_gate", "gated_ffn")}


def whose(operator: str) -> tuple[str, ...]:
    """The operators whose kernels an operator runs: its own, mostly."""
    return _RUNS.get(operator, (operator,))


def serves(operator: str, device: torch.device) -> bool:
    """Whether there are such kernels for all that an operator runs, and calls on the device that they can compute are
    theirs."""
    library = _library(device)
    return library is not None and all(library.ditn_cuda_hopper_is_on(name.encode()) for name in whose(operator))


def turn(operator: str, device: torch.device, *, on: bool) -> None:
    """Have the kernels of one operator serve, or leave their work to those for all chips; in this process."""
    if library := _library(device):
        library.ditn_cuda_hopper_turn(operator.encode(), on)


@contextmanager
def without(operators: Iterable[str], device: torch.device) -> Iterator[None]:
    """The kernels for all chips serve."""
    turned = [name for operator in operators for name in whose(operator) if serves(name, device)]
    for name in turned:
        turn(name, device, on=False)
    try:
        yield
    finally:
        for name in turned:
            turn(name, device, on=True)


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
