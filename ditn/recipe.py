# SPDX-License-Identifier: Apache-2.0
"""What a training run computes, as flags and as a TOML file."""

from __future__ import annotations

import argparse
import dataclasses
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CHOICES = {
    "model": ("ditn", "ditn-tiny", "ditn-real"),
    "upscale": (2, 3, 4),
    "loss": ("l1", "charbonnier"),
    "optimizer": ("adamw", "adam"),
    "amp": ("none", "bfloat16", "float16"),
}
_POSITIVE = ("steps", "batch", "lr", "clip")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides what a run computes, apart from its images. A TOML file holds the same names.

    patch      side of a training crop in low-resolution pixels, a multiple of 8
    warmup     steps of linearly rising learning rate, then constant at lr
    decay      share of all steps, at the end, over which lr falls to 0 (1 - sqrt of the way)
    ema        decay of the moving average of the weights that is validated and saved
    clip       largest norm of the gradient; longer ones are shortened to it
    amp        autocast of the forward pass
    minutes    ends the run by training time instead of by steps; 0 leaves it to steps. The learning rate then follows
               the clock, so no two such runs are the same
    interpolation_start   begin at the best 3x3 interpolation (see `warm_start`)
    init       begin at other weights, a file or a shipped name: every tensor that fits (see `warm_start`); "" for none
    held_out   every held_out-th image is not trained on but validated on; 0 for none

    Raises ValueError that names the field and its value.
    """

    model: str = "ditn-real"
    upscale: int = 4
    steps: int = 100_000
    minutes: float = 0.0
    batch: int = 16
    patch: int = 64
    loss: str = "l1"
    optimizer: str = "adamw"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    warmup: int = 200
    decay: float = 0.4
    ema: float = 0.999
    clip: float = 1.0
    amp: str = "none"
    interpolation_start: bool = True
    init: str = ""
    held_out: int = 40
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}, must be one of {', '.join(map(str, allowed))}")
        for name in _POSITIVE:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}, must be positive")
        if self.patch < 8 or self.patch % 8:
            raise ValueError(f"patch is {self.patch}, must be a positive multiple of 8")
        if self.minutes < 0:
            raise ValueError(f"minutes is {self.minutes}, must not be negative; 0 leaves the end to steps")
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay is {self.decay}, must be a share from 0 to 1")

    def share(self, step: int, seconds: float) -> float:
        """How much of the run is done after `step` steps and `seconds` of training: 0 to 1."""
        return min(1.0, seconds / (60 * self.minutes) if self.minutes else step / self.steps)

    def learning_rate(self, step: int, share: float) -> float:
        """The rate of a step, counted from 0, before which `share` of the run was done: warm-up, constant, then
        1 - sqrt down to 0."""
        rate = self.lr * min(1.0, (step + 1) / max(self.warmup, 1))
        start = 1 - self.decay
        if share > start:
            rate *= 1 - math.sqrt((share - start) / self.decay)
        return rate


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """One flag for each field; a flag that is not given is None."""
    group = parser.add_argument_group("recipe (over the TOML file)")
    for field in dataclasses.fields(Recipe):
        flag, default = f"--{field.name.replace('_', '-')}", field.default
        if isinstance(default, bool):
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=f"(default: {default})")
        elif isinstance(default, tuple):
            group.add_argument(flag, nargs=len(default), type=float, help=f"(default: {default})")
        else:
            choices = _CHOICES.get(field.name)
            group.add_argument(flag, type=type(default), choices=choices, help=f"(default: {default})")


def read_recipe(args: argparse.Namespace, config: Path | None, base: Mapping[str, Any]) -> Recipe:
    """`base` (the recipe of a run that goes on), overridden by the TOML file, overridden by the flags.

    Raises ValueError for a name that no recipe has, a file that is not TOML and a bad value.
    """
    known = {field.name for field in dataclasses.fields(Recipe)}
    values = dict(base)
    if config:
        try:
            values |= tomllib.loads(config.read_text(encoding="utf-8"))
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{config} is not TOML: {error}") from error
    if unknown := set(values) - known:
        raise ValueError(f"{config}: unknown names {', '.join(sorted(unknown))}; known: {', '.join(sorted(known))}")
    values |= {name: value for name in known if (value := getattr(args, name)) is not None}
    if "betas" in values:
        values["betas"] = tuple(values["betas"])
    return Recipe(**values)
