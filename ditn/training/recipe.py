# SPDX-License-Identifier: Apache-2.0
"""What a training run computes, as flags and as a TOML file."""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ditn.model.variants import VARIANTS

# What makes low-resolution images (see `degradation`, which imports torch; `ditn train --help` does not).
DEGRADATIONS = ("bicubic", "jpeg", "photo")

_CHOICES = {
    "model": tuple(VARIANTS),
    "upscale": (2, 3, 4),
    "loss": ("l1", "charbonnier"),
    "optimizer": ("adamw", "adam"),
    "schedule": ("constant", "cosine", "steps"),
    "amp": ("none", "bfloat16", "float16"),
    "degradation": DEGRADATIONS,
}
_MILESTONES = (0.5, 0.8, 0.9, 0.95)
_POSITIVE = ("steps", "batch", "lr", "clip")
_KINDS = {str: "text in quotes", bool: "true or false", int: "a whole number", float: "a number", tuple: "two numbers"}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides what a run computes, apart from its images. A TOML file holds the same names, and
    `ditn train --help` says what follows.

    model      the network
    upscale    its factor
    steps      how many; each has one batch
    batch      crops in a step, of all processes together
    patch      side of a training crop in low-resolution pixels, a multiple of 8
    loss       "l1", the mean absolute difference, or "charbonnier", smooth at 0
    frequency  weight of the loss of the images' Fourier transforms beside that of their pixels; 0 for none
    optimizer  which of PyTorch's
    lr         its learning rate, after the warmup
    betas      its decays of the means of the gradient and of its square
    weight_decay   its own
    warmup     steps of linearly rising learning rate, up to lr
    schedule   what follows the warmup: "constant", lr until the last share `decay` of the run, over which it falls to 0
               (1 - sqrt of the way); "cosine", half a cosine down to 0; "steps", halved after 50, 80, 90 and 95 % of
               the run
    decay      share of the run over which the schedule "constant" falls
    ema        decay of the moving average of the weights that is validated and saved
    clip       largest norm of the gradient; longer ones are shortened to it
    amp        autocast of the forward pass
    minutes    ends the run by training time instead of by steps; 0 leaves it to steps. The learning rate then follows
               the clock, so no two such runs are the same
    channel_shuffle   exchange the colours of each crop at random
    degradation   what made the low-resolution images: "bicubic", "jpeg" or "photo" (see `degradation`)
    drawn      share of the crops that are drawn by code, text and line art and such, not cut from images (see `drawn`)
    consistency   weight of the loss of one image without a target in each step, of full contrast and the highest
               frequencies, whose output is to average back to it and to stay near 0..1 (see `trainer`); 0 for none
    interpolation_start   begin at the best 3x3 interpolation (see `warm_start`)
    init       begin at other weights, a file or a shipped name: every tensor that fits (see `warm_start`); "" for none
    init_share   share of init's weights, which then have to fit all, in those that are saved: a mean keeps more of what
               init could do than its part in it (Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022)
    held_out   every held_out-th image is not trained on but validated on; 0 for none
    seed       of crops, drawings and random weights

    Raises ValueError that names the field and its value.
    """

    model: str = "ditn-real"
    upscale: int = 4
    steps: int = 100_000
    minutes: float = 0.0
    batch: int = 16
    patch: int = 64
    loss: str = "l1"
    frequency: float = 0.0
    optimizer: str = "adamw"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    warmup: int = 200
    schedule: str = "constant"
    decay: float = 0.4
    ema: float = 0.999
    clip: float = 1.0
    amp: str = "none"
    channel_shuffle: bool = False
    degradation: str = "bicubic"
    drawn: float = 0.15
    consistency: float = 0.1
    interpolation_start: bool = True
    init: str = ""
    init_share: float = 0.0
    held_out: int = 40
    seed: int = 0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if not _is_like(value := getattr(self, field.name), field.default):
                raise ValueError(f"{field.name} is {value!r}, must be {_KINDS[type(field.default)]}")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}, must be one of {', '.join(map(str, allowed))}")
        for name in _POSITIVE:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}, must be positive")
        if self.patch < 8 or self.patch % 8:
            raise ValueError(f"patch is {self.patch}, must be a positive multiple of 8")
        for name in ("minutes", "frequency", "consistency", "warmup", "held_out", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, must not be negative")
        for name in ("decay", "drawn", "init_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, must be a share from 0 to 1")
        if self.init_share and not self.init:
            raise ValueError(f"init_share is {self.init_share}, but there is no init")

    def share(self, step: int, seconds: float) -> float:
        """How much of the run is done after `step` steps and `seconds` of training: 0 to 1."""
        return min(1.0, seconds / (60 * self.minutes) if self.minutes else step / self.steps)

    def learning_rate(self, step: int, share: float) -> float:
        """The rate of a step, counted from 0, before which `share` of the run was done."""
        rate = self.lr * min(1.0, (step + 1) / max(self.warmup, 1))
        if self.schedule == "cosine":
            return rate * (1 + math.cos(math.pi * share)) / 2
        if self.schedule == "steps":
            return rate * 0.5 ** sum(share >= milestone for milestone in _MILESTONES)
        begin = 1 - self.decay
        return rate * (1 - math.sqrt((share - begin) / self.decay)) if share > begin else rate


def _is_like(value: Any, default: Any) -> bool:
    """Whether a value is of the default's type. A whole number is a number, too; true and false are none."""
    if isinstance(default, tuple):
        return isinstance(value, tuple) and len(value) == len(default) and all(map(_is_like, value, default))
    kind = (int, float) if isinstance(default, float) else type(default)
    return isinstance(value, kind) and isinstance(value, bool) == isinstance(default, bool)


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """One flag for each field; a flag that is not given is None."""
    group, meanings = parser.add_argument_group("recipe (over the TOML file)"), _meanings()
    for field in dataclasses.fields(Recipe):
        flag, default = f"--{field.name.replace('_', '-')}", field.default
        words = f"{meanings.get(field.name, '')} (default: {default})".strip().replace("%", "%%")
        if isinstance(default, bool):
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=words)
        elif isinstance(default, tuple):
            group.add_argument(flag, nargs=len(default), type=float, help=words)
        else:
            group.add_argument(flag, type=type(default), choices=_CHOICES.get(field.name), help=words)


def _meanings() -> dict[str, str]:
    """What Recipe's docstring says of its fields, without what it refers to there."""
    listed = re.findall(r"^    (\w+) {2,}(.*?)(?=^    \w|^$)", Recipe.__doc__ or "", re.MULTILINE | re.DOTALL)
    return {name: re.sub(r" \(see `[^)]*\)", "", " ".join(words.split())) for name, words in listed}


def read_recipe(args: argparse.Namespace, config: Path | None, base: Mapping[str, Any]) -> Recipe:
    """`base` (the recipe of a run that goes on), overridden by the TOML file, overridden by the flags.

    Raises ValueError for a name that no recipe has, a file that is not TOML and a bad value.
    """
    flags = {name: value for name in _FIELDS if (value := getattr(args, name)) is not None}
    return _recipe({**base, **(_read_toml(config) if config else {}), **flags})


def load_recipe(path: Path) -> Recipe:
    """The recipe of a TOML file. Raises ValueError as `read_recipe` does."""
    return _recipe(_read_toml(path))


def _recipe(values: Mapping[str, Any]) -> Recipe:
    # TOML and flags have lists.
    frozen: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return Recipe(**frozen)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not TOML: {error}") from error
    if unknown := set(values) - set(_FIELDS):
        raise ValueError(f"{path}: unknown names {', '.join(sorted(unknown))}; known: {', '.join(sorted(_FIELDS))}")
    return values


_FIELDS = [field.name for field in dataclasses.fields(Recipe)]
