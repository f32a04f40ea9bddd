# SPDX-License-Identifier: Apache-2.0
"""For spandrel, with which chaiNNer and ComfyUI load models: the DITN networks that its own class cannot hold, above
all those with LayerNorm. Needs spandrel; nothing else in this package does.

    import ditn.spandrel
    ditn.spandrel.register()
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from spandrel import MAIN_REGISTRY, Architecture, ArchRegistry, ArchSupport, ImageModelDescriptor

from ditn.model.checkpoint import check_fit, infer_config
from ditn.model.config import DITNConfig
from ditn.model.network import DITN

# Spandrel's own, which recognises a DITN by the names that all of them have, and would fail on these.
_THEIRS = "DITN"


def register(registry: ArchRegistry = MAIN_REGISTRY) -> None:
    """Have spandrel load all DITN networks, those of this package by its kernels. Affects every `ModelLoader` without a
    registry of its own; a second call does nothing."""
    registry.add(ArchSupport.from_architecture(DITNArchitecture(), before=(_THEIRS,)), ignore_duplicates=True)


class DITNArchitecture(Architecture):  # type: ignore[misc]
    """DITN with LayerNorm, with convolutions at the ends of UFONEs, without inner-patch layers or with other channels
    out than three. Patches are 8 pixels a side, of which a state dict says nothing."""

    def __init__(self) -> None:
        super().__init__(id="DITN-ditn-kernels", name="DITN (ditn-kernels)", detect=_is_ours)

    def load(self, state_dict: Mapping[str, Any]) -> ImageModelDescriptor:
        """Raises CheckpointError, which names the key, for weights that do not fit together or are not finite."""
        config = infer_config(state_dict)
        with torch.device("meta"):
            model = DITN(config=config)
        check_fit("state dict", state_dict, model.state_dict())
        return ImageModelDescriptor(
            model.to_empty(device="cpu").eval().requires_grad_(False),
            state_dict,
            architecture=self,
            purpose="Restoration" if config.upscale == 1 else "SR",
            tags=[f"{config.dim}dim", f"{config.ufones} UFONE", config.norm],
            supports_half=True,
            supports_bfloat16=True,
            scale=config.upscale,
            input_channels=config.in_channels,
            output_channels=config.out_channels,
        )


def _is_ours(state: Mapping[str, Any]) -> bool:
    try:
        config = infer_config(state)
    except ValueError:
        return False
    return not _fits_theirs(config)


def _fits_theirs(config: DITNConfig) -> bool:
    return config.norm == "tanh" and not config.ufone_conv and config.itls > 0 and config.out_channels == 3
