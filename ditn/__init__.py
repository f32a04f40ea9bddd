# SPDX-License-Identifier: Apache-2.0
"""DITN, the super-resolution transformer of "Unfolding Once is Enough" (ACM MM 2023), on fused kernels."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ditn.export.export import export
    from ditn.export.formats import ExportError
    from ditn.inference.graphs import CudaGraphRunner
    from ditn.inference.upscaler import Upscaler
    from ditn.model.accelerate import accelerate
    from ditn.model.checkpoint import load, models, save
    from ditn.model.config import DITNConfig
    from ditn.model.network import DITN, DITN_Real, DITN_Tiny
    from ditn.model.tensor_file import CheckpointError

__all__ = [
    "DITN",
    "CheckpointError",
    "CudaGraphRunner",
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

# Where each name is from. Each is imported when it is first asked for: `ditn --help` need not wait for torch.
_PLACES = {
    "DITN": "ditn.model.network",
    "CheckpointError": "ditn.model.tensor_file",
    "CudaGraphRunner": "ditn.inference.graphs",
    "DITNConfig": "ditn.model.config",
    "DITN_Real": "ditn.model.network",
    "DITN_Tiny": "ditn.model.network",
    "ExportError": "ditn.export.formats",
    "Upscaler": "ditn.inference.upscaler",
    "accelerate": "ditn.model.accelerate",
    "export": "ditn.export.export",
    "load": "ditn.model.checkpoint",
    "models": "ditn.model.checkpoint",
    "save": "ditn.model.checkpoint",
}


class _Package(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name not in _PLACES:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        value = getattr(import_module(_PLACES[name]), name)
        setattr(self, name, value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        # `export` is the function, though the room of this name, too, would become an attribute when it is imported.
        if name not in _PLACES or not isinstance(value, ModuleType):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Package
