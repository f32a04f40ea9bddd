# SPDX-License-Identifier: Apache-2.0
"""The one rule by which results are compared: as good as PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def assert_as_good(result: Tensor, exact: Tensor, plain: Tensor, floor: float, what: str) -> None:
    """The error of `result` against float64 is at most twice that of plain PyTorch in the same dtype, plus a floor
    relative to the largest exact value."""
    assert result.shape == exact.shape, f"{what}: shape {list(result.shape)}, expected {list(exact.shape)}"
    if exact.numel() == 0:
        return
    error = (result.double() - exact).abs()
    allowed = 2 * (plain.double() - exact).abs().max() + floor * exact.abs().max().clamp_min(1e-30)
    worst = error.max()
    position = tuple(int(i) for i in torch.unravel_index(error.argmax(), error.shape))
    assert not error.isnan().any(), f"{what}: {int(error.isnan().sum())} of {error.numel()} values are NaN"
    assert worst <= allowed, f"{what}: error {worst:.3g} at {position} where {allowed:.3g} is allowed"
