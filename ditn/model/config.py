# SPDX-License-Identifier: Apache-2.0
"""The shape of a network: everything that its weights alone do not say."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real

# Those that a network can have; traiNNer-redux trains x1, x2, x3, x4 and x8.
UPSCALES = range(1, 9)
# What the published code pads to, whatever the patch size is.
_PADDING_GRID = 8
# A pixel of a SAL sees 2 pixels further by dw5x5, 9 by the dilated dw7x7 and 1 by the FFN's dw3x3.
_SAL_RADIUS = 2 + 9 + 1
# Images are padded to whole patches: of this side, to 16 million pixels, a map of which takes gigabytes.
_LARGEST_PATCH = 4096
# The fields that count something.
_LEAST = {
    **dict.fromkeys(("upscale", "dim", "patch_size", "in_channels", "out_channels"), 1),
    **dict.fromkeys(("ufones", "itls", "sals"), 0),
}


@dataclass(frozen=True, kw_only=True)
class DITNConfig:
    """The hyper-parameters of a DITN network. Defaults are the paper's DITN at x4.

    upscale     1 to 8
    norm        "layernorm" (DITN, DITN-Tiny) or "tanh" (DITN-Real: tanh, then a 1x1 convolution with bias)
    dim         channels of the residual stream
    ufones, itls, sals   UFONEs; inner-patch layers and spatial-aware layers in each
    patch_size  side of a patch in input pixels, at most 4096. No weight's shape depends on it
    expansion   hidden channels of the FFN over dim (each of the gate's two halves)
    bias        whether the FFN's convolutions and the attention's output have a bias
    in_channels, out_channels   of the images
    ufone_conv  a 3x3 convolution at the end of each UFONE: drawn in the paper's figure, absent from the published code

    Raises ValueError that names the field and its value.
    """

    upscale: int = 4
    norm: str = "layernorm"
    dim: int = 60
    ufones: int = 3
    itls: int = 4
    sals: int = 4
    patch_size: int = 8
    expansion: float = 2
    bias: bool = False
    in_channels: int = 3
    out_channels: int = 3
    ufone_conv: bool = False

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if not isinstance(value, Integral) or value < least:
                raise ValueError(f"{name} is {value!r}, must be a whole number, at least {least}")
        if self.patch_size > _LARGEST_PATCH:
            raise ValueError(f"patch_size is {self.patch_size}, must be at most {_LARGEST_PATCH}")
        if self.upscale not in UPSCALES:
            raise ValueError(f"upscale is {self.upscale}, must be {UPSCALES[0]} to {UPSCALES[-1]}")
        if self.norm not in ("layernorm", "tanh"):
            raise ValueError(f"norm is {self.norm!r}, must be 'layernorm' or 'tanh'")
        if not (isinstance(self.expansion, Real) and math.isfinite(self.expansion)):
            raise ValueError(f"expansion is {self.expansion!r}, must be a finite number")
        if self.hidden < 1:
            raise ValueError(f"expansion is {self.expansion}, which leaves the FFN no channel at dim {self.dim}")

    @property
    def hidden(self) -> int:
        """Channels of each half of the FFN's hidden map."""
        return int(self.dim * self.expansion)

    @property
    def grid(self) -> int:
        """Images are padded, and tiles are cut, to multiples of this many input pixels."""
        return math.lcm(_PADDING_GRID, self.patch_size)

    @property
    def receptive_radius(self) -> int:
        """How many input pixels away from its place an output pixel sees at most, followed from the output back to the
        image."""
        radius = 2  # the tail's two 3x3 convolutions
        for _ in range(self.ufones):
            radius += _SAL_RADIUS * self.sals + self.ufone_conv
            if self.itls:
                radius = _round_up(radius, self.patch_size)  # whoever sees a pixel of a patch sees the patch
        return radius + 1  # the head's 3x3 convolution

    @property
    def overlap(self) -> int:
        """Input pixels, a multiple of `grid`, that a tile on the grid needs around it to give the same output as the
        whole image."""
        return _round_up(self.receptive_radius, self.grid)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
