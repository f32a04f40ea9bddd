# SPDX-License-Identifier: Apache-2.0
"""A tensor core that multiplies float32 as TF32, for kernels that are interpreted.

It reads only the upper 10 bits of a factor's mantissa. One instruction takes eight terms; their products are exact, and
so is their sum with the accumulator, but the new accumulator is that sum cut to float32, towards zero, and not rounded.
So the error of a long sum grows with the number of instructions instead of with its root. An H200 was seen to be wrong
by 4.2e-5 where this predicts 4.5e-5 (image_tail, x4).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

DEPTH = 8  # terms of an instruction: mma.m16n8k8 and wgmma.m64nNk8

Floats = NDArray[np.float32]


def as_tf32(x: Floats) -> Floats:
    """What the tensor core reads of float32: the 13 lowest bits are ignored."""
    return (np.ascontiguousarray(x).view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


def towards_zero(x: NDArray[np.float64]) -> Floats:
    """float64 cut to float32."""
    nearest = x.astype(np.float32)
    too_large = np.abs(nearest.astype(np.float64)) > np.abs(x)
    return (nearest.view(np.int32) - too_large).view(np.float32)  # one unit in the last place less


def multiplied(a: Floats, b: Floats, accumulator: Floats) -> Floats:
    """accumulator + a b [..., M, N], of a [..., M, K] and b [..., K, N]."""
    depth = a.shape[-1]
    for first in range(0, depth, DEPTH):
        terms = slice(first, first + DEPTH)
        products = as_tf32(a[..., terms]).astype(np.float64) @ as_tf32(b[..., terms, :]).astype(np.float64)
        accumulator = towards_zero(accumulator.astype(np.float64) + products)
    return accumulator


def multiplied_by_thirds(a: Floats, b: Floats, accumulator: Floats) -> Floats:
    """What Triton makes of the precision "tf32x3": the products of the factors' upper halves and, before it, those of
    an upper and a lower half, all into the same accumulator."""
    a_low, b_low = a - as_tf32(a), b - as_tf32(b)
    return multiplied(a, b, multiplied(a, b_low, multiplied(a_low, b, accumulator)))


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter's `tl.dot` computes as the tensor core does, where it is asked for TF32."""
    from triton._C.libtriton.ir import INPUT_PRECISION
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    exactly: Callable[..., Any] = InterpreterBuilder.create_dot
    by_precision = {INPUT_PRECISION.TF32: multiplied, INPUT_PRECISION.TF32x3: multiplied_by_thirds}

    def create_dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
        if input_precision not in by_precision:
            return exactly(self, a, b, d, input_precision, max_num_imprecise_acc)
        assert a.data.dtype == b.data.dtype == d.data.dtype == np.float32
        return TensorHandle(by_precision[input_precision](a.data, b.data, d.data), d.dtype.scalar)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)
