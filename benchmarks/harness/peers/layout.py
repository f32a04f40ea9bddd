# SPDX-License-Identifier: Apache-2.0
"""Windows of a map, and maps padded to whole windows."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def padded(image: Tensor, grid: int) -> Tensor:
    """[B, C, H, W] continued by reflection, right and below, to multiples of `grid`."""
    height, width = image.shape[-2:]
    return F.pad(image, (0, -width % grid, 0, -height % grid), mode="reflect")


def to_windows(x: Tensor, window: int) -> Tensor:
    """[B, H, W, C] -> [B windows, T, C]"""
    x = x.unflatten(2, (-1, window)).unflatten(1, (-1, window))  # [B, rows, y, columns, x, C]
    return x.transpose(2, 3).flatten(3, 4).flatten(0, 2)


def from_windows(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """The inverse: [B windows, T, C] -> [B, H, W, C]"""
    x = windows.reshape(-1, height // window, width // window, window, window, windows.shape[-1])
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)
