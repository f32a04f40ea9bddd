# SPDX-License-Identifier: Apache-2.0
"""DITN, the super-resolution transformer of "Unfolding Once is Enough" (ACM MM 2023), on fused kernels."""

from __future__ import annotations

from ditn.export.export import export
from ditn.export.formats import ExportError
from ditn.inference.upscaler import Upscaler
from ditn.model.accelerate import accelerate
from ditn.model.checkpoint import load, models, save
from ditn.model.config import DITNConfig
from ditn.model.network import DITN, DITN_Real, DITN_Tiny
from ditn.model.tensor_file import CheckpointError

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
