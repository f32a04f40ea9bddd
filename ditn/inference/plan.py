# SPDX-License-Identifier: Apache-2.0
"""Into which tiles an image is cut, so that each fits into memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from ditn.inference.memory import free_memory, pixels_within, predicted_peak
from ditn.inference.tiles import Region, cut, round_up
from ditn.model.network import DITN

_SHARE_OF_FREE_MEMORY = 0.5

Tile = int | Literal["auto"]


def budget(max_memory: int | None, device: torch.device) -> int:
    """Bytes for the network: `max_memory`, by default half of what is free on the device now."""
    return max_memory or int(_SHARE_OF_FREE_MEMORY * free_memory(device))


@dataclass(frozen=True)
class TilePlan:
    """The regions, without their overlap, that cover an image of height x width, row by row; and the bytes that the
    forward pass of the largest, with its overlap, is predicted to take besides the weights, as a CUDA graph where there
    are any."""

    height: int
    width: int
    regions: tuple[Region, ...]
    predicted_peak: int


def plan_tiles(
    model: DITN,
    height: int,
    width: int,
    *,
    tile: Tile,
    max_memory: int | None,
    device: torch.device,
    graph: bool = False,
    ensemble: bool = False,
    align: int = 1,
    at_most: int | None = None,
) -> TilePlan:
    """The tiles for an image of height x width: of side `tile`, rounded up to the grid (0: the whole image), or, with
    "auto", the largest whose forward pass is predicted to take no more than `max_memory` bytes, by default half of what
    is free on the device. `graph`: it may become a CUDA graph; `ensemble`: it is one of eight. `align`: all edges
    inside the image are multiples of it; `at_most`: the longest side that "auto" takes.

    Raises ValueError for an image without pixels, MemoryError if the smallest tile would take more.
    """
    if height == 0 or width == 0:
        raise ValueError(f"expected at least one pixel, got an image of {height}x{width}")
    grid, overlap = model.config.grid, model.config.overlap
    # The network is given the image padded to its grid.
    padded = round_up(height, grid), round_up(width, grid)
    step = math.lcm(grid, align)
    whole = round_up(max(padded), step)
    kept = {"graph": graph, "ensemble": ensemble}

    def largest(regions: list[Region]) -> int:
        return max(region.grown(overlap, *padded).pixels for region in regions)

    if tile != "auto":
        regions = cut(*padded, round_up(tile, step) or whole, step)
        return TilePlan(height, width, tuple(regions), predicted_peak(model, largest(regions), **kept))
    allowed = pixels_within(model, most := budget(max_memory, device), **kept)
    longest = min(whole, round_up(at_most, step)) if at_most else whole
    for side in range(longest, 0, -step):
        regions = cut(*padded, side, step)
        pixels = largest(regions)
        if pixels <= allowed:
            return TilePlan(height, width, tuple(regions), predicted_peak(model, pixels, **kept))
    raise MemoryError(
        f"max_memory is {most / 2**20:.0f} MiB, but the smallest tile needs "
        f"{predicted_peak(model, pixels, **kept) / 2**20:.0f} MiB"
    )
