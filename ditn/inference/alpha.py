# SPDX-License-Identifier: Apache-2.0
"""Transparency: what of an image with alpha goes through the network, and how it is put together again.

Alpha that is the same everywhere stays what it is. Any other goes through the network like a gray image, so that its
edges stay where the colours' are.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ditn.imaging.arrays import Pixels, Samples


def split_alpha(pixels: Samples) -> tuple[list[Samples], Any]:
    """[H, W, bands] samples -> what goes through the network, the colours [H, W, 1 or 3] and, if it varies, alpha
    [H, W, 1]; and the alpha of all pixels if that is one number, else None."""
    if pixels.shape[2] not in (2, 4):
        return [pixels], None
    colours, alpha = pixels[..., :-1], pixels[..., -1:]
    if alpha.size and (alpha == alpha.flat[0]).all():
        return [colours], alpha.flat[0]
    return [bleed(colours, alpha), alpha], None


def with_alpha(colours: Pixels, alpha: Any) -> Pixels:
    """Colours [H, W, C] and one alpha for all of them -> [H, W, C + 1]."""
    return np.concatenate([colours, np.full_like(colours[..., :1], alpha)], axis=2)


def bleed(colours: Pixels, alpha: Pixels) -> Pixels:
    """Colours [H, W, C] in which every wholly transparent pixel has taken the mean colour of the visible ones in the
    smallest block of 2, 4, 8 ... pixels that holds any, so that no dark fringe grows in."""
    visible = alpha > 0
    if not visible.any():
        return colours
    return _fill(colours.astype(np.float32), visible).astype(colours.dtype)


def _fill(colours: Pixels, visible: Pixels) -> Pixels:
    if visible.all():
        return colours
    height, width = colours.shape[:2]
    even = ((0, height % 2), (0, width % 2), (0, 0))
    weights = _sum_of_blocks(np.pad(visible, even).astype(np.float32))
    means = _sum_of_blocks(np.pad(np.where(visible, colours, 0), even)) / np.maximum(weights, 1)
    coarse = _fill(means, weights > 0)
    return np.where(visible, colours, coarse.repeat(2, axis=0).repeat(2, axis=1)[:height, :width])


def _sum_of_blocks(values: Pixels) -> Pixels:
    height, width, bands = values.shape
    return np.asarray(values.reshape(height // 2, 2, width // 2, 2, bands).sum((1, 3)))
