# SPDX-License-Identifier: Apache-2.0
"""DITN, the super-resolution transformer of "Unfolding Once is Enough" (ACM MM 2023), on fused kernels."""

from __future__ import annotations

from ditn.accelerate import accelerate
from ditn.checkpoint import CheckpointError, load, models, save
from ditn.config import DITNConfig
from ditn.export import export
from ditn.formats import ExportError
from ditn.model import DITN, DITN_Real, DITN_Tiny
from ditn.upscale import Upscaler

__all__ = [
    "DITN",
    "CheckpointError",
    "DITNConfig",
    "DITN_Real",
    "DITN_Tiny",
    "ExportError",
    "Upscaler",
    "accelerate",
    "export",
    "load",
    "models",
    "save",
]
