# SPDX-License-Identifier: Apache-2.0
"""An image to try a network on, the same everywhere."""

from __future__ import annotations

import torch
from torch import Tensor


def sample_image(height: int = 45, width: int = 66) -> Tensor:
    """A small image with edges, a gradient and texture, [1, 3, height, width] in 0..1; not on the patch grid."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    rings = 0.5 + 0.5 * torch.sin(60 * ((x - 0.4) ** 2 + (y - 0.6) ** 2))
    stripes = ((x + 2 * y) * 9 % 1 > 0.5).float()
    return torch.stack([rings, 0.3 * stripes + 0.6 * x, y])[None]
