# SPDX-License-Identifier: Apache-2.0
"""A training run in progress: the step, and everything that a checkpoint has to carry."""

from __future__ import annotations

import copy
import dataclasses
import math
import sys
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ditn.imaging.metrics import psnr_y
from ditn.model.checkpoint import load
from ditn.model.network import DITN
from ditn.model.variants import VARIANTS
from ditn.training.data import Batch, PairedImages, to_pixels, to_tensor
from ditn.training.process_group import ProcessGroup
from ditn.training.recipe import Recipe
from ditn.training.warm_start import blended, start_at_interpolation, take_weights

_MAX_BAD_STEPS = 5
# The enlargement of an image of full contrast may ring by so much.
_RINGING = 0.3
# Crops for the start of a run: of another seed than any step's.
_START_SEED, _START_BATCHES = 1_000_003, 16


class Trainer:
    """Model, moving average, optimiser and step; `state()` carries all of it, and a run given one goes on from there.

    With several processes each takes its share of the recipe's batch, and the gradient is the mean over all of them:
    the run computes what one process would have computed, to rounding.

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
        self.average = copy.deepcopy(self.model).requires_grad_(False).eval()
        kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
        self.optimizer = kind(
            self.model.parameters(), recipe.lr, betas=recipe.betas, weight_decay=recipe.weight_decay, fused=True
        )
        # float16 gradients underflow without a scale; bfloat16's do not.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.amp == "float16")
        if state:
            self._load_state(state)
        self._network = DistributedDataParallel(self.model) if self.processes.size > 1 else self.model

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

    def train_step(self, batch: Batch) -> float:
        """One step on this process's crops and image without a target; the loss over all processes.

        A step whose loss or gradient is not finite leaves the weights alone and is counted in `bad_steps`; RuntimeError
        after 5 in a row, or 20 with float16, whose scale has to settle first.
        """
        began = time.monotonic()
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        loss = self._loss(*(to_tensor(images, self.device) for images in batch))
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip).item()
        # The clock is the first process's: all must find the same rate.
        seconds = time.monotonic() - began if self.processes.first else 0.0
        summed, seconds = self.processes.total(loss.item(), seconds)
        value = summed / self.processes.size
        if math.isfinite(value) and math.isfinite(norm):
            self.scaler.step(self.optimizer)
            self.bad_steps = 0
            self._update_average()
        else:
            self._count_bad(value, norm)
        self.scaler.update()
        self.step += 1
        self.seconds += seconds
        return value

    def _loss(self, low: Tensor, high: Tensor, extreme: Tensor) -> Tensor:
        recipe = self.recipe
        dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(recipe.amp)
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            output = self._network(low)
            untargeted = self._network(extreme) if len(extreme) else None
        loss = pixel_loss(output.float(), high, recipe.loss, frequency=recipe.frequency)
        if untargeted is None:
            return loss
        return loss + recipe.consistency * consistency_loss(untargeted.float(), extreme)

    def _count_bad(self, loss: float, norm: float) -> None:
        self.bad_steps += 1
        if self.processes.first:
            print(f"step {self.step}: loss {loss}, gradient norm {norm}: skipped", file=sys.stderr)
        # float16 starts with a scale of 2^16, which may overflow and is halved until it does not: at most 16 steps.
        allowed = 20 if self.recipe.amp == "float16" else _MAX_BAD_STEPS
        if self.bad_steps == allowed:
            raise RuntimeError(f"{allowed} steps in a row were not finite; lower lr (now {self.recipe.lr})")

    @torch.no_grad()
    def _update_average(self) -> None:
        # An average over fewer steps at first, or the random start would stay in it for long.
        decay = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)

    @torch.no_grad()
    def validate(self, images: PairedImages) -> float:
        """Mean PSNR-Y in dB of the averaged weights, 8-bit output, `scale` pixels shaved."""
        scores = [psnr_y(self.enlarge(low), high, shave=self.recipe.upscale) for high, low in images]
        return sum(scores) / len(scores)

    @torch.no_grad()
    def enlarge(self, low: Any) -> Any:
        """uint8 [H, W, 3] by the averaged weights -> uint8 [sH, sW, 3]."""
        return to_pixels(self.average(to_tensor(torch.tensor(low)[None], self.device))[0])

    def result(self) -> DITN:
        """The averaged weights, with the recipe's share of those that they began from. Raises what `ditn.load` raises,
        and ValueError if those are of another network."""
        recipe = self.recipe
        return blended(self.average, load(recipe.init), recipe.init_share) if recipe.init_share else self.average

    def state(self) -> dict[str, Any]:
        return {
            "recipe": dataclasses.asdict(self.recipe),
            "step": self.step,
            "bad_steps": self.bad_steps,
            "seconds": self.seconds,
            "origin": self.origin,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": torch.get_rng_state(),
        }

    def _load_state(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["rng"])
        self.step, self.bad_steps = state["step"], state["bad_steps"]
        self.seconds, self.origin = state["seconds"], state["origin"]

    def metadata(self) -> dict[str, str]:
        """What the file of weights says about where they come from."""
        recipe = ", ".join(f"{name}={value}" for name, value in dataclasses.asdict(self.recipe).items())
        return {
            "recipe": recipe,
            "origin": self.origin,
            "steps": str(self.step),
            "images": str(len(self.images)),
        }


def pixel_loss(output: Tensor, target: Tensor, kind: str, *, frequency: float = 0.0) -> Tensor:
    """L1 or Charbonnier loss of images [B, C, H, W], plus `frequency` times the mean absolute difference of their
    orthonormal Fourier transforms, over real and imaginary parts (Cho et al., MIMO-UNet, ICCV 2021)."""
    error = output - target
    # Charbonnier's eps is 1e-3.
    loss = error.abs().mean() if kind == "l1" else torch.sqrt(error.square() + 1e-6).mean()
    if frequency:
        loss = loss + frequency * torch.view_as_real(torch.fft.rfft2(error, norm="ortho")).abs().mean()
    return loss


def consistency_loss(output: Tensor, image: Tensor) -> Tensor:
    """How far the output [B, C, sH, sW], averaged over s x s boxes, is from the image [B, C, H, W] (mean absolute
    difference), and how far its values leave -0.3 .. 1.3 (mean).

    What any sane enlargement keeps, whatever the image: without it DITN-Real, in which nothing normalises the stream,
    answers edges of full contrast with values of 100.
    """
    back = F.avg_pool2d(output, output.shape[-1] // image.shape[-1])
    outside = F.relu(output - (1 + _RINGING)) + F.relu(-_RINGING - output)
    return (back - image).abs().mean() + outside.mean()
