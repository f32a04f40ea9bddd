# SPDX-License-Identifier: Apache-2.0
"""Which of the weights that ship suits which image, at each scale."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from ditn.imaging.arrays import Samples
from ditn.inference.judge import judge
from ditn.model.checkpoint import models
from ditn.model.variants import SUITED, Kind, weights_name

T = TypeVar("T")


@dataclass(frozen=True)
class Choice:
    """The name of the weights that suit an image, and why, in words for the user."""

    model: str
    reason: str


def shipped_by_scale() -> dict[int, dict[Kind, str]]:
    """What ships, by scale: always a model for clean images, and those for the other kinds that there are."""
    shipped = set(models())
    found: dict[int, dict[Kind, str]] = {}
    for scale in (1, 2, 3, 4):
        names = {kind: weights_name(suited.weights, scale) for kind, suited in SUITED.items()}
        found[scale] = {kind: name for kind, name in names.items() if name in shipped}
    return {scale: names for scale, names in found.items() if "clean" in names}


def of_scale(scale: int | None) -> dict[Kind, str]:
    """The weights at a scale, by default the largest. Raises ValueError, naming the scales, if none ships."""
    table = shipped_by_scale()
    scale = max(table, default=None) if scale is None else scale
    if scale not in table:
        raise ValueError(f"scale is {scale}, but models ship for {', '.join(map(str, table)) or 'none'}")
    return table[scale]


def scale_for(factor: float) -> int:
    """The smallest scale of a shipped model that enlarges at least `factor` times, or else the largest there is; the
    rest is resampling. Raises ValueError if nothing ships."""
    scales = sorted(shipped_by_scale())
    if not scales:
        raise ValueError("no model ships with this installation; name a file of weights")
    return next((scale for scale in scales if scale >= factor), scales[-1])


class Chooser(Generic[T]):
    """Maps an image to what `make` makes of the name of the weights that suit it, once for each name when it is first
    needed."""

    def __init__(self, names: dict[Kind, str], make: Callable[[str], T]) -> None:
        self._names, self._make = names, make
        self._made: dict[str, T] = {}

    def __call__(self, pixels: Samples) -> tuple[T, Choice]:
        """For [H, W, bands] samples (see `ditn.inference.judge`)."""
        choice = choose(pixels, self._names)
        if choice.model not in self._made:
            self._made[choice.model] = self._make(choice.model)
        return self._made[choice.model], choice


def choose(pixels: Samples, names: dict[Kind, str]) -> Choice:
    """The weights that suit [H, W, bands] samples (see `ditn.inference.judge`)."""
    found = judge(pixels)
    if found.kind in names:
        return Choice(names[found.kind], found.reason)
    return Choice(names["clean"], f"{found.reason}; no model for {SUITED[found.kind].images} ships at this scale")
