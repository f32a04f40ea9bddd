# SPDX-License-Identifier: Apache-2.0
"""Tiles that give the whole image's output: cut on the patch grid, overlapping by the network's receptive radius."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Region:
    """A rectangle of input pixels, in the image padded to the grid."""

    top: int
    left: int
    height: int
    width: int

    @property
    def pixels(self) -> int:
        return self.height * self.width

    def grown(self, margin: int, height: int, width: int) -> Region:
        """This and `margin` pixels on every side, as far as the padded image of height x width goes."""
        top, left = max(self.top - margin, 0), max(self.left - margin, 0)
        bottom = min(self.top + self.height + margin, height)
        right = min(self.left + self.width + margin, width)
        return Region(top, left, bottom - top, right - left)

    def halves(self, grid: int) -> tuple[Region, Region] | None:
        """Two halves along the longer side, cut on the grid; None for a single grid cell."""
        if max(self.height, self.width) <= grid:
            return None
        if self.height >= self.width:
            first = round_up(self.height // 2, grid)
            return (
                Region(self.top, self.left, first, self.width),
                Region(self.top + first, self.left, self.height - first, self.width),
            )
        first = round_up(self.width // 2, grid)
        return (
            Region(self.top, self.left, self.height, first),
            Region(self.top, self.left + first, self.height, self.width - first),
        )


def cut(height: int, width: int, side: int, grid: int) -> list[Region]:
    """Regions of at most side x side that cover a padded image of height x width, row by row, all of nearly one size.

    The side is a multiple of the grid, and so is every edge inside the image.
    """
    regions = []
    rows, columns = _split(height, side, grid), _split(width, side, grid)
    for top, bottom in rows:
        regions += [Region(top, left, bottom - top, right - left) for left, right in columns]
    return regions


def reflected(size: int, start: int, stop: int) -> npt.NDArray[np.intp]:
    """The source of each padded pixel start..stop of an axis of `size`: reflection without the edge, repeated."""
    period = max(2 * size - 2, 1)
    index = np.arange(start, stop) % period
    return np.minimum(index, (period - index) % period) if size > 1 else index


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _split(length: int, side: int, grid: int) -> list[tuple[int, int]]:
    count = max(-(-length // side), 1)
    edges = [min(round_up(length * i // count, grid), length) for i in range(count)] + [length]
    return [(start, stop) for start, stop in pairwise(edges) if stop > start]
