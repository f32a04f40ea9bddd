# SPDX-License-Identifier: Apache-2.0
"""The rule for results (`ditn_kernels/_tolerance.py`) as an assertion."""

from __future__ import annotations

from torch import Tensor

from ditn_kernels._tolerance import why_not_as_good


def assert_as_good(result: Tensor, exact: Tensor, plain: Tensor, floor: float, what: str) -> None:
    """Raises AssertionError, which says how wrong `what` is, if it is not as good as plain PyTorch."""
    fault = why_not_as_good(result, exact, plain, floor)
    assert not fault, f"{what} {fault}"
