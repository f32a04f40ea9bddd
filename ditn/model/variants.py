# SPDX-License-Identifier: Apache-2.0
"""The names: of the networks, and of the weights that ship."""

from __future__ import annotations

from typing import Literal, NamedTuple

from ditn.model.config import DITNConfig

# Whether an image is clean or carries what photographs pick up on their way (see `ditn.inference.judge`).
Kind = Literal["clean", "photo"]

# The networks at x4. LayerNorm in the first two; DITN-Real has tanh instead, which is the published code.
VARIANTS = {
    "ditn": DITNConfig(),
    "ditn-tiny": DITNConfig(ufones=1),
    "ditn-real": DITNConfig(ufones=1, norm="tanh"),
}

# What commands take that need some weights, whichever.
DEFAULT_WEIGHTS = "ditn-real-x4"


class Suited(NamedTuple):
    """The weights for a kind of images, without their scale, and those images in words."""

    weights: str
    images: str


# What "auto" chooses between.
SUITED: dict[Kind, Suited] = {
    "clean": Suited("ditn-tiny", "clean images"),
    "photo": Suited("ditn-real-photo", "photographs"),
}


def weights_name(variant: str, scale: int, degradation: str = "bicubic") -> str:
    """The name that weights ship under which were trained on images with that degradation: "photo" for all but one."""
    return f"{variant}{'-photo' * (degradation != 'bicubic')}-x{scale}"
