# SPDX-License-Identifier: Apache-2.0
"""Where a model runs, and in what, unless it is said."""

from __future__ import annotations

import torch


def default_device() -> torch.device:
    """A CUDA GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def default_dtype(device: torch.device) -> torch.dtype:
    """float16 on a GPU, whose tensor cores want it; float32 elsewhere."""
    return torch.float16 if device.type == "cuda" else torch.float32
