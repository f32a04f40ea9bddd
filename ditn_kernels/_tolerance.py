# SPDX-License-Identifier: Apache-2.0
"""The rule by which all results are compared: as good as PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

# The error of a single number is a matter of chance. So a gradient that is one number is compared over this many draws.
DRAWS_OF_A_NUMBER = 8


def why_not_as_good(result: Tensor, exact: Tensor, plain: Tensor, atol_of_max: float) -> str:
    """Empty if the error of `result` against float64 (`exact`) is at most twice that of plain PyTorch in the same dtype
    (`plain`), plus `atol_of_max` times the largest exact value; else what is wrong, as a sentence without its subject.
    """
    if result.shape != exact.shape:
        return f"has shape {list(result.shape)}, expected {list(exact.shape)}"
    if exact.numel() == 0:
        return ""
    error = (result.double() - exact).abs()
    if unknown := int(error.isnan().sum()):
        return f"has {unknown} of {error.numel()} values that are NaN"
    allowed = 2 * (plain.double() - exact).abs().max() + atol_of_max * exact.abs().max().clamp_min(1e-30)
    worst = error.max()
    if worst <= allowed:
        return ""
    position = tuple(int(i) for i in torch.unravel_index(error.argmax(), error.shape))
    return f"has an error of {worst:.3g} at {position} where {allowed:.3g} is allowed"
