# SPDX-License-Identifier: Apache-2.0
"""The batches of a run: crops made by worker processes, or on the GPU, where all images lie."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ditn.inference.plan import budget
from ditn.training.data import Crop, PairedImages
from ditn.training.recipe import Recipe

# The side of an image without a target: a tenth of the work of four crops of 48.
_EXTREME_SIDE = 32


class Batch(NamedTuple):
    """The images of one training step, uint8 RGB: crops low [b, p, p, 3] and high [b, sp, sp, 3], and the image without
    a target [1, e, e, 3], or [0, e, e, 3] where the recipe wants none."""

    low: Tensor
    high: Tensor
    extreme: Tensor


class Squares(NamedTuple):
    """Crops [b, p, p, 3] of a cache, not yet copied: `table` int64 [b, 6] has for each the place of its first byte, the
    bytes to the pixel below and to the pixel on the right, and the three colours. Those in the rows `others` [n] of the
    batch lie in no cache: they are here, `pixels` uint8 [n, p, p, 3]."""

    table: Tensor
    others: Tensor
    pixels: Tensor

    def cut(self, cache: Tensor, side: int) -> Tensor:
        """The crops, where `cache` uint8 [bytes] lies: what `Crop.copied` gives."""
        place, down, right = (column.view(-1, 1, 1, 1) for column in self.table[:, :3].unbind(1))
        along = torch.arange(side, device=cache.device)
        pixel = place + down * along.view(1, -1, 1, 1) + right * along.view(1, 1, -1, 1)
        return cache[pixel + self.table[:, 3:].view(-1, 1, 1, 3)].index_copy_(0, self.others, self.pixels)

    def to(self, device: torch.device) -> Squares:
        return Squares(*(tensor.to(device, non_blocking=True) for tensor in self))


class Order(NamedTuple):
    """A batch whose crops are made where the images are."""

    low: Squares
    high: Squares
    extreme: Tensor

    def made(self, cache: Tensor, low: int, high: int) -> Batch:
        """The batch, of crops of these sides."""
        device = cache.device
        return Batch(
            self.low.to(device).cut(cache, low),
            self.high.to(device).cut(cache, high),
            self.extreme.to(device, non_blocking=True),
        )


def squares(crops: list[Crop], side: int) -> Squares:
    rows = [[0] * 6 if crop.place is None else [crop.place, *crop.pixels.strides[:2], *crop.colours] for crop in crops]
    others = [row for row, crop in enumerate(crops) if crop.place is None]
    pixels = [torch.tensor(crops[row].copied()) for row in others]
    return Squares(
        torch.tensor(rows),
        torch.tensor(others, dtype=torch.int64),
        torch.stack(pixels) if pixels else torch.empty(0, side, side, 3, dtype=torch.uint8),
    )


class _Steps(Dataset[Batch | Order]):
    """The batches of a run, by step; of each only what the process of this rank trains on."""

    def __init__(self, images: PairedImages, recipe: Recipe, part: slice, *, orders: bool) -> None:
        self._images, self._recipe, self._part, self._orders = images, recipe, part, orders

    def __getitem__(self, step: int) -> Batch | Order:
        images, recipe = self._images, self._recipe
        side = min(recipe.patch, _EXTREME_SIDE)
        extreme = torch.empty(0, side, side, 3, dtype=torch.uint8)
        if recipe.consistency:
            extreme = images.extreme(step, seed=recipe.seed, side=side)
        crops: dict[str, Any] = {
            "seed": recipe.seed,
            "size": recipe.batch,
            "patch": recipe.patch,
            "shuffle": recipe.channel_shuffle,
            "drawn": recipe.drawn,
            "part": self._part,
        }
        if not self._orders:
            return Batch(*images.batch(step, **crops), extreme)
        low, high = map(list, zip(*images.crops(step, **crops), strict=True))
        return Order(squares(low, recipe.patch), squares(high, recipe.patch * images.scale), extreme)


def batches(
    images: PairedImages,
    recipe: Recipe,
    *,
    start: int,
    device: torch.device | str = "cpu",
    part: slice = slice(None),
    workers: int = 0,
    resident: bool | None = None,
) -> Iterator[Batch]:
    """The batches from step `start` on, without end, on a device. `workers` processes make them ahead (0: they are made
    when they are asked for).

    resident   the cache lies on the device, and crops of it are made there, the same ones. By default on a GPU, if it
               takes no more than half of what is free there; never where crops are degraded, which CPUs do.
    """
    device = torch.device(device)
    if resident is None:
        resident = device.type == "cuda" and images.cache.stat().st_size <= budget(None, device)
    resident = resident and not images.made_again
    loader: DataLoader[Any] = DataLoader(
        _Steps(images, recipe, part, orders=resident),
        batch_size=None,
        sampler=itertools.count(start),
        num_workers=workers,
        worker_init_fn=_leave_signals,
        pin_memory=device.type == "cuda",
        # The loader draws a seed for its workers, which use none; it must not come from the run's random numbers.
        generator=torch.Generator(),
    )
    if not resident:
        return (Batch(*(crops.to(device, non_blocking=True) for crops in batch)) for batch in loader)
    cache = torch.from_numpy(np.fromfile(images.cache, dtype=np.uint8)).to(device)
    return (order.made(cache, recipe.patch, recipe.patch * images.scale) for order in loader)


def _leave_signals(_: int) -> None:
    """A signal to the whole group is the trainer's to answer: it ends its step and then its workers."""
    # Windows has no SIGHUP.
    for number in (getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)):
        signal.signal(number, signal.SIG_IGN)
