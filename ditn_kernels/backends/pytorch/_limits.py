# SPDX-License-Identifier: Apache-2.0
"""What plain PyTorch can run: everything."""

from __future__ import annotations

import torch

from ditn_kernels._support import Support

EVERYTHING = Support(backward=(torch.float64, torch.float32, torch.float16, torch.bfloat16))
