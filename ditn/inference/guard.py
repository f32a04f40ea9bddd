# SPDX-License-Identifier: Apache-2.0
"""A guard against enlargements that have nothing to do with their image.

Whatever a network invents, its output averaged back to the input's size is nearly the input. DITN-Real's stream is not
bounded, though: weights trained on photographs alone answer edges of full contrast, which text and line art are made
of, with values of 100 and more. Such places are found block by block and taken from an interpolation instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Input pixels of a block's side. Large enough for noise to average out, small enough that a single bad stroke shows.
BLOCK = 4
# How far a block's mean may move, and how far its pixels on average, in units of the image's range, 1. On pages of text
# that were blurred the model for photographs at x4 moves them by 0.26 and 0.46 at most, which is right there: gray
# strokes become black again. What was black and white and becomes gray moves by 0.5. Text that explodes is up to 10
# away.
_MEAN, _PIXELS = 0.35, 0.48
# And where the output goes beyond -1 .. 2 somewhere, which no shipped model's does on text: -0.7 .. 1.7. The official
# weights of DITN-Real answer checkers and stripes, of which they make blots, with 4 to 14.
_MEAN_OF_WILD, _PIXELS_OF_WILD = 0.25, 0.4


@dataclass(frozen=True)
class Finding:
    """A tile, in input pixels, in which `blocks` blocks of 4 x 4 part from the input. `error` is the largest difference
    of a block's pixels, averaged, in units of the image's range; `repaired` says whether they were replaced."""

    top: int
    left: int
    height: int
    width: int
    blocks: int
    error: float
    repaired: bool

    def __str__(self) -> str:
        place = f"{self.blocks * BLOCK**2:,} pixels of the {self.width}x{self.height} at ({self.left}, {self.top})"
        what = "replaced by an interpolation" if self.repaired else "left as they are"
        return f"{place} were wrong by up to {self.error:.2g} of the range and {what}"


def compare(output: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """How far each block of an enlargement [1, C, sH, sW] parts from its image [1, C, H, W]: [1, 1, H / 4, W / 4] each,
    whether that is more than any sane enlargement does, and the mean difference of its pixels, averaged over the boxes
    of s x s that they became.

    Values are in 0..1; where the image has larger ones, all is in units of the largest. H and W are multiples of 4.
    """
    unit = image.abs().amax().clamp(min=1)
    back = (_means(output, output.shape[-1] // image.shape[-1]) - image) / unit
    mean, pixels = _means(back, BLOCK).abs(), _means(back.abs(), BLOCK)
    low, high = torch.aminmax(output)
    tame = (low >= -unit) & (high <= 2 * unit)
    sane = (mean <= torch.where(tame, _MEAN, _MEAN_OF_WILD)) & (pixels <= torch.where(tame, _PIXELS, _PIXELS_OF_WILD))
    return ~sane.all(1, keepdim=True), pixels.amax(1, keepdim=True)


def repaired(output: Tensor, image: Tensor, wrong: Tensor) -> Tensor:
    """The enlargement with its wrong blocks (bool [1, 1, H / 4, W / 4]) and those around them taken from `bounded`, and
    a smooth passage to the rest over five blocks."""
    scale = output.shape[-1] // image.shape[-1]
    around = F.max_pool2d(wrong.float(), 7, stride=1, padding=3)
    # A mean over 5 x 5 blocks is 1 in the wrong blocks and their neighbours, and 0 six blocks away.
    padded = F.pad(around, (2, 2, 2, 2), mode="replicate")
    share = F.avg_pool2d(padded, 5, stride=1)
    share = F.interpolate(share, scale_factor=BLOCK * scale, mode="bilinear").to(output.dtype)
    safe = bounded(image, scale)
    # Not lerp: where the share is 1 the output may be anything, infinity too.
    return torch.where(share == 1, safe, output + share * (safe - output))


def bounded(image: Tensor, scale: int) -> Tensor:
    """Bicubic interpolation of [B, C, H, W], `within_neighbours`, so that it cannot ring."""
    enlarged = F.interpolate(image, scale_factor=scale, mode="bicubic")
    return within_neighbours(enlarged, image)


def within_neighbours(enlarged: Tensor, image: Tensor) -> Tensor:
    """[B, C, sH, sW], each pixel clamped to the range of the 3 x 3 pixels of the image [B, C, H, W] nearest to it."""
    scale = enlarged.shape[-1] // image.shape[-1]
    high = F.max_pool2d(image, 3, stride=1, padding=1)
    low = -F.max_pool2d(-image, 3, stride=1, padding=1)
    return enlarged.clamp(_spread(low, scale), _spread(high, scale))


def _means(image: Tensor, side: int) -> Tensor:
    """The means of boxes of side x side. A convolution: for three channels, channels-last, a CPU takes a tenth of
    avg_pool2d's time."""
    channels = image.shape[1]
    weight = image.new_full((channels, 1, side, side), 1 / side**2)
    return F.conv2d(image, weight, stride=side, groups=channels)


def _spread(image: Tensor, scale: int) -> Tensor:
    return image.repeat_interleave(scale, -2).repeat_interleave(scale, -1)
