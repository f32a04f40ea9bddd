# SPDX-License-Identifier: Apache-2.0
"""`ditn train`: from a folder of images to weights.

A run lives in a folder: `checkpoint.pt` and `optimizer-STEP.pt` (everything needed to go on), `log.csv`, `samples.png`,
and `weights.safetensors`, the moving average of the weights. Batches are a function of the seed and the step, so a run
that was stopped goes on exactly as an unbroken one would have. torchrun starts it on several GPUs or machines.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ditn import sheet
from ditn.checkpoint import save
from ditn.data import PairedImages, batches, list_images
from ditn.recipe import add_recipe_arguments, read_recipe
from ditn.train_log import Log, samples
from ditn.trainer import Trainer
from ditn.world import World, joined, local_rank


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
    """The optimiser's state, most of it all, has a file of its own; the checkpoint, which names it, counts from when it
    is in place."""
    state = trainer.state()
    optimizer = folder / f"optimizer-{trainer.step}.pt"
    for path, content in (
        (optimizer, state.pop("optimizer")),
        (folder / "checkpoint.pt", {**state, "optimizer_file": optimizer.name}),
    ):
        partial = path.with_suffix(".partial")
        torch.save(content, partial)
        os.replace(partial, path)
    for path in folder.glob("optimizer-*.pt"):
        if path != optimizer:
            path.unlink()


def _read_checkpoint(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(folder / "checkpoint.pt", map_location="cpu", weights_only=True)
    optimizer = folder / state.pop("optimizer_file")
    return {**state, "optimizer": torch.load(optimizer, map_location="cpu", weights_only=True)}


def train(trainer: Trainer, held_out: PairedImages | None, folder: Path, args: argparse.Namespace) -> bool:
    """Run until the recipe is finished (true), or until the time limit, SIGINT or SIGTERM (false); the run's folder
    then holds a checkpoint of exactly that step."""
    recipe, world, losses = trainer.recipe, trainer.world, []
    started = saved = time.monotonic()
    source = batches(
        trainer.images,
        recipe,
        start=trainer.step,
        part=slice(world.rank, None, world.size),
        workers=args.workers,
        pin=trainer.device.type == "cuda",
    )
    bar = tqdm(
        total=None if recipe.minutes else recipe.steps,
        initial=trainer.step,
        unit="step",
        disable=None if world.first else True,
    )
    log = Log(folder, trainer.step, tensorboard=args.tensorboard) if world.first else None
    with _stop_signals() as signals, log or nullcontext(), bar:
        while trainer.share < 1:
            rate = trainer.rate
            losses.append(trainer.train_step(next(source)))
            bar.update()
            now = time.monotonic()
            (stop,) = world.total(bool(signals) or now - started > args.time_limit * 60)
            last = trainer.share == 1 or stop > 0
            if log and (last or now - saved > args.save_every * 60):
                _save_checkpoint(trainer, folder)
                saved = now
            if log and (last or trainer.step % args.report_every == 0):
                psnr = trainer.validate(held_out) if held_out else math.nan
                loss = sum(losses) / len(losses)
                log.write(trainer.step, rate, loss, psnr)
                if held_out:
                    picture = samples(trainer, held_out)
                    sheet.save(picture, folder / "samples.png")
                    log.picture(trainer.step, picture)
                said = f"loss {loss:.5f}" + (f", held-out {psnr:.3f} dB" if held_out else "")
                bar.set_postfix_str(said)
                if bar.disable:
                    print(f"step {trainer.step}: {said}", flush=True)
                losses = []
            if last:
                break
    if world.first:
        save(trainer.result(), folder / "weights.safetensors", metadata=trainer.metadata(), overwrite=True)
    # Nobody leaves before the files are written: torchrun ends the others as soon as one is gone.
    world.total(0)
    return trainer.share == 1


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
    parser.add_argument(
        "--workers", type=int, default=0, help="processes that make batches; 0 leaves it to the trainer (%(default)s)"
    )
    parser.add_argument("--tensorboard", action="store_true", help="write TensorBoard's files, too")
    parser.add_argument("--device", help="default: cuda if there is one, else cpu")
    parser.add_argument("--fused", action=argparse.BooleanOptionalAction, default=True, help="train on fused operators")
    add_recipe_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """`ditn train`. 0 when the recipe is finished, 3 when stopped before (go on with --resume).

    Raises FileExistsError, FileNotFoundError or ValueError for arguments that cannot be followed, RuntimeError if
    training diverges.
    """
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", local_rank())
    with joined(device) as world:
        return _run(args, device, world)


def _run(args: argparse.Namespace, device: torch.device, world: World) -> int:
    folder: Path = args.output
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists() and not args.resume:
        raise FileExistsError(f"{checkpoint} exists; go on with --resume or choose another --output")
    if args.resume and not checkpoint.exists():
        raise FileNotFoundError(f"{checkpoint} does not exist; there is nothing to resume")
    state = _read_checkpoint(folder) if args.resume else None
    recipe = read_recipe(args, args.config, state["recipe"] if state else {})
    paths = list_images(args.data)
    held_out = paths[:: recipe.held_out] if recipe.held_out else []
    rest = [path for path in paths if path not in held_out]
    folder.mkdir(parents=True, exist_ok=True)
    cache = args.cache or folder
    with world.one_first():
        validation = PairedImages(held_out, recipe.upscale, cache, recipe.degradation) if held_out else None
        images = PairedImages(rest, recipe.upscale, cache, recipe.degradation)
    trainer = Trainer(recipe, images, device=device, fused=args.fused, state=state, world=world)
    if world.first:
        if not state:
            print(f"start: {trainer.origin}")
        name = f"{recipe.model} x{recipe.upscale}"
        print(f"{name}: {len(images)} images, {len(held_out)} held out, from step {trainer.step}")
    return 0 if train(trainer, validation, folder, args) else 3
