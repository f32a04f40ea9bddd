# SPDX-License-Identifier: Apache-2.0
"""A training run in progress: everything that a checkpoint has to carry."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from ditn.imaging.metrics import psnr_y
from ditn.model.checkpoint import load
from ditn.model.network import DITN
from ditn.model.variants import VARIANTS
from ditn.training.batches import Batch
from ditn.training.data import PairedImages, to_pixels, to_tensor
from ditn.training.process_group import ProcessGroup
from ditn.training.recipe import Recipe
from ditn.training.update import Update
from ditn.training.warm_start import blended, start_at_interpolation, take_weights

_MAX_BAD_STEPS = 5
# Steps on a GPU between two readings of what became of them.
_READ_EVERY = 10
# Crops for the start of a run: of another seed than any step's.
_START_SEED, _START_BATCHES = 1_000_003, 16


class Trainer:
    """Model, moving average, optimiser and step; `state()` carries all of it, and a run given one goes on from there.

    With several processes each takes its share of the recipe's batch, and the gradient is the mean over all of them:
    the run computes what one process would have computed, to rounding. `cuda_graph` is as for `Update`.

    Raises what `ditn.load` raises for the recipe's `init`, and ValueError if its layers do not fit or the batch cannot
    be shared out evenly.
    """

    def __init__(
        self,
        recipe: Recipe,
        images: PairedImages,
        *,
        device: torch.device | str,
        fused: bool,
        state: dict[str, Any] | None = None,
        processes: ProcessGroup | None = None,
        cuda_graph: bool = True,
    ) -> None:
        self.recipe, self.images, self.device = recipe, images, torch.device(device)
        self.processes = processes or ProcessGroup()
        if recipe.batch % self.processes.size:
            raise ValueError(f"a batch of {recipe.batch} cannot be shared evenly by {self.processes.size} processes")
        torch.manual_seed(recipe.seed)
        self.model = DITN(recipe.upscale, config=VARIANTS[recipe.model], fused=fused)
        self.step, self.bad_steps, self.seconds, self.origin = 0, 0, 0.0, "random"
        if state is None:
            self._start()
        self.model.to(self.device).train()
        network = DistributedDataParallel(self.model) if self.processes.size > 1 else self.model
        self.update = Update(recipe, self.model, network, self.processes, cuda_graph=cuda_graph)
        self._losses: list[tuple[int, float]] = []
        self._unread = 0
        if state:
            self._load_state(state)

    def _start(self) -> None:
        """The weights before the first step, fitted on crops that no step sees."""
        recipe = self.recipe
        pairs = (
            (to_tensor(low), to_tensor(high))
            for low, high in (
                self.images.batch(step, seed=recipe.seed + _START_SEED, size=recipe.batch, patch=recipe.patch)
                for step in range(_START_BATCHES)
            )
        )
        if recipe.init:
            source = load(recipe.init, fused=self.model.fused)
            if recipe.init_share:
                blended(self.model, source, recipe.init_share)  # fails now, not when all is done
            taken = take_weights(self.model, source, pairs)
            self.origin = f"{recipe.init}: {taken}"
        elif recipe.interpolation_start:
            start_at_interpolation(self.model, pairs)
            self.origin = "interpolation"

    @property
    def share(self) -> float:
        """How much of the recipe is done, 0 to 1."""
        return self.recipe.share(self.step, self.seconds)

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        return self.recipe.learning_rate(self.step, self.share)

    def train_step(self, batch: Batch) -> None:
        """One step on this process's crops and image without a target.

        A step whose loss or gradient is not finite leaves the weights alone and is counted in `bad_steps`; RuntimeError
        after 5 in a row, or 20 with float16, whose scale has to settle first. On a GPU, which is not waited for, both
        are found out at every tenth step.
        """
        began = time.monotonic()
        # An average over fewer steps at first, or the random start would stay in it for long.
        decay = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        self.update(batch, rate=self.rate, decay=decay)
        self._unread += 1
        if self.device.type == "cpu" or self._unread == _READ_EVERY:
            self._read()
        self.step += 1
        # The clock is the first process's: all must find the same rate.
        (seconds,) = self.processes.total(time.monotonic() - began if self.processes.first else 0.0)
        self.seconds += seconds

    def mean_loss(self) -> float:
        """Of the steps since the last time, over all processes."""
        self._read()
        steps, total = map(sum, zip(*self._losses, strict=True)) if self._losses else (0, 0.0)
        self._losses = []
        return total / steps if steps else math.nan

    def _read(self) -> None:
        seen = self.update.read()
        self._losses.append((seen.steps, seen.loss))
        self.bad_steps, self._unread = seen.bad_now, 0
        if seen.bad and self.processes.first:
            which = f"skipped, {seen.bad} of {seen.steps} steps" if seen.steps > 1 else "skipped"
            print(f"step {self.step}: loss {seen.bad_loss}, gradient norm {seen.bad_norm}: {which}", file=sys.stderr)
        # float16 starts with a scale of 2^16, which may overflow and is halved until it does not: at most 16 steps.
        allowed = 20 if self.recipe.amp == "float16" else _MAX_BAD_STEPS
        if seen.bad_most >= allowed:
            raise RuntimeError(f"{allowed} steps in a row were not finite; lower lr (now {self.recipe.lr})")

    @torch.no_grad()
    def validate(self, images: PairedImages) -> float:
        """Mean PSNR-Y in dB of the averaged weights, 8-bit output, `scale` pixels shaved."""
        scores = [psnr_y(self.enlarge(low), high, shave=self.recipe.upscale) for high, low in images]
        return sum(scores) / len(scores)

    @torch.no_grad()
    def enlarge(self, low: Any) -> Any:
        """uint8 [H, W, 3] by the averaged weights -> uint8 [sH, sW, 3]."""
        return to_pixels(self.update.average(to_tensor(torch.tensor(low)[None], self.device))[0])

    def result(self) -> DITN:
        """The averaged weights, with the recipe's share of those that they began from. Raises what `ditn.load` raises,
        and ValueError if those are of another network."""
        recipe = self.recipe
        return (
            blended(self.update.average, load(recipe.init), recipe.init_share)
            if recipe.init_share
            else self.update.average
        )

    def state(self) -> dict[str, Any]:
        self._read()
        return {
            "recipe": dataclasses.asdict(self.recipe),
            "step": self.step,
            "bad_steps": self.bad_steps,
            "seconds": self.seconds,
            "origin": self.origin,
            "model": self.model.state_dict(),
            **self.update.state(),
            "rng": torch.get_rng_state(),
        }

    def _load_state(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.step, self.bad_steps = state["step"], state["bad_steps"]
        self.seconds, self.origin = state["seconds"], state["origin"]
        self.update.load_state(state, bad=self.bad_steps)
        torch.set_rng_state(state["rng"])

    def metadata(self) -> dict[str, str]:
        """What the file of weights says about where they come from."""
        recipe = ", ".join(f"{name}={value}" for name, value in dataclasses.asdict(self.recipe).items())
        return {
            "recipe": recipe,
            "origin": self.origin,
            "steps": str(self.step),
            "images": str(len(self.images)),
        }
