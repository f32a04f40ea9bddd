# SPDX-License-Identifier: Apache-2.0
"""Gradients of weights: sums over all pixels, with the same bits in every call."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ditn_kernels.backends.triton._launch import cdiv


class PartialGradients:
    """The gradients of weights, summed by each program over its own tiles: a float32 row of memory per program, since
    registers have no room for them. `totals` adds the rows in an order that does not depend on which program was
    faster.

    `rows` are the kernel's arguments: for each weight its columns of all rows. From one program's row to the next it is
    `stride` values.
    """

    def __init__(self, programs: int, *weights: Tensor) -> None:
        # Each part begins at a multiple of 64 bytes.
        sizes = [cdiv(weight.numel(), 16) * 16 for weight in weights]
        self._weights = weights
        self._buffer = weights[0].new_zeros((programs, sum(sizes)), dtype=torch.float32)
        self.rows = self._buffer.split(sizes, dim=1)
        self.stride = sum(sizes)

    def totals(self) -> tuple[Tensor, ...]:
        """The gradients, in the shapes and the dtype of the weights."""
        total = self._buffer.sum(0).to(self._weights[0].dtype)
        parts = total.split([row.shape[1] for row in self.rows])
        return tuple(p[: w.numel()].view(w.shape) for p, w in zip(parts, self._weights, strict=True))


@triton.jit
def add(pointer, offsets, values, inside):
    """Add values to a program's row. Another thread may have stored the old values: two additions to the same place
    need a barrier between them."""
    pointers = pointer + offsets
    tl.store(pointers, tl.load(pointers, inside, 0.0) + values, inside)


@triton.jit
def add_vector(pointer, vector, index, SIZE: tl.constexpr):
    """`add` for the first SIZE values of a vector."""
    add(pointer, index, vector, index < SIZE)


@triton.jit
def add_matrix(pointer, matrix, row, column, stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """`add` for the first ROWS x COLUMNS values of a matrix, whose rows are `stride` values apart in memory."""
    inside = (row < ROWS)[:, None] & (column < COLUMNS)[None, :]
    add(pointer, row[:, None] * stride + column[None, :], matrix, inside)
