# SPDX-License-Identifier: Apache-2.0
"""Self-ensemble: the mean over the eight flips and rotations of an image (Timofte et al., CVPR 2016)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def self_ensemble(upscale: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    """[B, C, H, W] -> the mean of `upscale` over the eight orientations of `image`, each turned back.

    Eight times the work; rotated images have height and width exchanged.
    """
    total: Tensor | None = None
    for mirrored in (False, True):
        for turns in range(4):
            view = image.flip(-1) if mirrored else image
            output = upscale(view.rot90(turns, (-2, -1))).rot90(-turns, (-2, -1))
            output = output.flip(-1) if mirrored else output
            # Each is a copy, even that which was not turned: nothing of the caller's is added to.
            total = output if total is None else total.add_(output)
    assert total is not None
    return total / 8
