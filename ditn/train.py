# SPDX-License-Identifier: Apache-2.0
"""`ditn train`: from a folder of images to weights.

A run lives in a folder: `checkpoint.pt` (everything needed to go on), `log.csv`, and `weights.safetensors`, the moving
average of the weights. Batches are a function of the seed and the step, so a run that was stopped goes on
exactly as an unbroken one would have.
"""

from __future__ import annotations

import argparse
import copy
import csv
import dataclasses
import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ditn.checkpoint import load, save
from ditn.data import PairedImages, list_images, to_pixels, to_tensor
from ditn.metrics import psnr_y
from ditn.model import DITN, DITN_Real, DITN_Tiny
from ditn.recipe import Recipe, add_recipe_arguments, read_recipe
from ditn.warm_start import start_at_interpolation, take_weights

_MODELS: dict[str, type[DITN]] = {"ditn": DITN, "ditn-tiny": DITN_Tiny, "ditn-real": DITN_Real}
_MAX_BAD_STEPS = 5


class Trainer:
    """A run in progress: model, moving average, optimiser and step; `state()` carries all of it, and a run given one
    goes on from there.

    Raises what `ditn.load` raises for the recipe's `init`, and ValueError if its layers do not fit.
    """

    def __init__(
        self,
        recipe: Recipe,
        images: PairedImages,
        *,
        device: str,
        fused: bool,
        state: dict[str, Any] | None = None,
    ) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.images, self.device = recipe, images, torch.device(device)
        self.model = _MODELS[recipe.model](recipe.upscale, fused=fused)
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

    def _start(self) -> None:
        """The weights before the first step, fitted on crops that no step sees."""
        recipe, seed = self.recipe, self.recipe.seed + 1_000_003
        pairs = (self.images.batch(step, seed=seed, size=recipe.batch, patch=recipe.patch) for step in range(1, 17))
        if recipe.init:
            taken = take_weights(self.model, load(recipe.init, fused=self.model.fused), pairs)
            self.origin = f"{recipe.init}: {taken}"
        elif recipe.interpolation_start:
            start_at_interpolation(self.model, pairs)
            self.origin = "interpolation"

    def _batch(self, step: int) -> tuple[Tensor, Tensor]:
        return self.images.batch(step, seed=self.recipe.seed, size=self.recipe.batch, patch=self.recipe.patch)

    @property
    def share(self) -> float:
        """How much of the recipe is done, 0 to 1."""
        return self.recipe.share(self.step, self.seconds)

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        return self.recipe.learning_rate(self.step, self.share)

    def train_step(self) -> float:
        """One step; its loss. A step whose loss or gradient is not finite leaves the weights alone and is counted in
        `bad_steps`; RuntimeError after 5 in a row."""
        recipe, rate, began = self.recipe, self.rate, time.monotonic()
        low, high = (t.to(self.device, non_blocking=True) for t in self._batch(self.step))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(recipe.amp)
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            output = self.model(low)
        loss = _loss(output.float(), high, recipe.loss)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip)
        if math.isfinite(loss.item()) and math.isfinite(norm.item()):
            self.scaler.step(self.optimizer)
            self.bad_steps = 0
            self._update_average()
        else:
            self.bad_steps += 1
            print(f"step {self.step}: loss {loss.item()}, gradient norm {norm.item()}: skipped", file=sys.stderr)
            if self.bad_steps == _MAX_BAD_STEPS and recipe.amp != "float16":
                raise RuntimeError(f"{_MAX_BAD_STEPS} steps in a row were not finite; lower lr (now {recipe.lr})")
        self.scaler.update()
        self.step += 1
        self.seconds += time.monotonic() - began
        return loss.item()

    @torch.no_grad()
    def _update_average(self) -> None:
        # An average over fewer steps at first, or the random start would stay in it for long.
        decay = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)

    @torch.no_grad()
    def validate(self, images: PairedImages) -> float:
        """Mean PSNR-Y in dB of the averaged weights, 8-bit output, `scale` pixels shaved."""
        scores = []
        for high, low in images:
            output = self.average(to_tensor(low[None]).to(self.device))[0]
            scores.append(psnr_y(to_pixels(output), high, shave=self.recipe.upscale))
        return sum(scores) / len(scores)

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


def _loss(output: Tensor, target: Tensor, kind: str) -> Tensor:
    if kind == "l1":
        return F.l1_loss(output, target)
    return torch.sqrt((output - target).square() + 1e-6).mean()  # Charbonnier, eps 1e-3


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM instead of dying of them, so that a step can end and be saved."""
    received: list[int] = []
    previous = {
        number: signal.signal(number, lambda signum, _: received.append(signum))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _save_checkpoint(trainer: Trainer, folder: Path) -> None:
    partial = folder / "checkpoint.pt.partial"
    torch.save(trainer.state(), partial)
    os.replace(partial, folder / "checkpoint.pt")


def train(trainer: Trainer, held_out: PairedImages | None, folder: Path, args: argparse.Namespace) -> bool:
    """Run until the recipe is finished (true), or until the time limit, SIGINT or SIGTERM (false); the run's folder
    then holds a checkpoint of exactly that step."""
    recipe, losses = trainer.recipe, []
    started = saved = time.monotonic()
    bar = tqdm(total=None if recipe.minutes else recipe.steps, initial=trainer.step, unit="step", disable=None)
    with _stop_signals() as signals, _Log(folder / "log.csv", trainer.step) as log, bar:
        while trainer.share < 1:
            rate = trainer.rate
            losses.append(trainer.train_step())
            bar.update()
            now = time.monotonic()
            last = trainer.share == 1 or bool(signals) or now - started > args.time_limit * 60
            if last or now - saved > args.save_every * 60:
                _save_checkpoint(trainer, folder)
                saved = now
            if last or trainer.step % args.report_every == 0:
                psnr = trainer.validate(held_out) if held_out else math.nan
                loss = sum(losses) / len(losses)
                log.write(trainer.step, rate, loss, psnr)
                bar.set_postfix_str(f"loss {loss:.4f}, held-out {psnr:.2f} dB")
                if bar.disable:
                    print(f"step {trainer.step}: loss {loss:.5f}, held-out {psnr:.3f} dB", flush=True)
                losses = []
            if last:
                break
    save(trainer.average, folder / "weights.safetensors", metadata=_metadata(trainer), overwrite=True)
    return trainer.share == 1


class _Log:
    """`log.csv`, continued. Rows after `step` go: a run that was killed may have logged more than it saved."""

    def __init__(self, path: Path, step: int) -> None:
        rows = []
        if path.exists():
            with path.open(newline="") as file:
                rows = [row for row in list(csv.reader(file))[1:] if int(row[0]) <= step]
        self._began = time.monotonic() - (float(rows[-1][-1]) if rows else 0)
        self._file = path.open("w", newline="")
        self._writer = csv.writer(self._file, lineterminator="\n")
        self._writer.writerows([["step", "lr", "loss", "psnr_y", "seconds"], *rows])
        self._file.flush()

    def write(self, step: int, rate: float, loss: float, psnr: float) -> None:
        seconds = time.monotonic() - self._began
        self._writer.writerow([step, f"{rate:.3g}", f"{loss:.5f}", f"{psnr:.3f}", f"{seconds:.0f}"])
        self._file.flush()

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _metadata(trainer: Trainer) -> dict[str, str]:
    recipe = ", ".join(f"{name}={value}" for name, value in dataclasses.asdict(trainer.recipe).items())
    return {
        "recipe": recipe,
        "origin": trainer.origin,
        "steps": str(trainer.step),
        "images": str(len(trainer.images)),
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", nargs="?", type=Path, help="a TOML file with any of the recipe's names")
    parser.add_argument("--data", nargs="+", required=True, help="folders of images, or images")
    parser.add_argument("--output", required=True, type=Path, help="the run's folder")
    parser.add_argument("--cache", type=Path, help="where decoded images are kept (default: the run's folder)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in the folder")
    parser.add_argument(
        "--time-limit", type=float, default=math.inf, metavar="MINUTES", help="save and stop after this"
    )
    parser.add_argument("--save-every", type=float, default=5, metavar="MINUTES", help="checkpoint timer (%(default)s)")
    parser.add_argument("--report-every", type=int, default=500, metavar="STEPS", help="validate and log (%(default)s)")
    parser.add_argument("--device", help="default: cuda if there is one, else cpu")
    parser.add_argument("--fused", action=argparse.BooleanOptionalAction, default=True, help="train on fused operators")
    add_recipe_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """`ditn train`. 0 when the recipe is finished, 3 when stopped before (go on with --resume).

    Raises FileExistsError, FileNotFoundError or ValueError for arguments that cannot be followed, RuntimeError if
    training diverges.
    """
    folder: Path = args.output
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists() and not args.resume:
        raise FileExistsError(f"{checkpoint} exists; go on with --resume or choose another --output")
    if args.resume and not checkpoint.exists():
        raise FileNotFoundError(f"{checkpoint} does not exist; there is nothing to resume")
    state = torch.load(checkpoint, map_location="cpu", weights_only=True) if args.resume else None
    recipe = read_recipe(args, args.config, state["recipe"] if state else {})
    paths = list_images(args.data)
    held_out = paths[:: recipe.held_out] if recipe.held_out else []
    folder.mkdir(parents=True, exist_ok=True)
    cache = args.cache or folder
    validation = PairedImages(held_out, recipe.upscale, cache) if held_out else None
    images = PairedImages([path for path in paths if path not in held_out], recipe.upscale, cache)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    trainer = Trainer(recipe, images, device=device, fused=args.fused, state=state)
    if not state:
        print(f"start: {trainer.origin}")
    print(f"{recipe.model} x{recipe.upscale}: {len(images)} images, {len(held_out)} held out, from step {trainer.step}")
    return 0 if train(trainer, validation, folder, args) else 3
