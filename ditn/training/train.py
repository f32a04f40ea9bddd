# SPDX-License-Identifier: Apache-2.0
"""A training run from its first step, or the one where it stopped, to its weights.

It lives in a folder: `checkpoint.pt` and `optimizer-STEP.pt` (everything needed to go on), `log.csv`, `samples.png`,
and `weights.safetensors`, the moving average of the weights. Batches are a function of the seed and the step, so a run
that was stopped goes on exactly as an unbroken one would have.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ditn.imaging import contact_sheet
from ditn.imaging.atomic import atomic_write
from ditn.model.checkpoint import save
from ditn.training.batches import batches
from ditn.training.data import PairedImages
from ditn.training.log import Log, samples
from ditn.training.trainer import Trainer

SAMPLES = "samples.png"


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collects SIGINT, SIGTERM and, but under nohup, SIGHUP instead of dying of them, so that a step can end and be
    saved."""
    received: list[int] = []
    # Windows has no SIGHUP.
    hang_up = [signal.SIGHUP] if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN else []
    previous = {
        number: signal.signal(number, lambda signum, _: received.append(signum))
        for number in (signal.SIGINT, signal.SIGTERM, *hang_up)
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
        with atomic_write(path) as temporary:
            torch.save(content, temporary)
    for path in folder.glob("optimizer-*.pt"):
        if path != optimizer:
            path.unlink()


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """The state of the run in a folder, for `Trainer`. Raises FileNotFoundError or ValueError for a file of it that is
    not there or damaged."""
    state = _load(folder / "checkpoint.pt")
    optimizer = folder / state.pop("optimizer_file")
    return {**state, "optimizer": _load(optimizer)}


def _load(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # of any type: a damaged pickle makes the unpickler stumble anywhere
        reason = f"{type(error).__name__} {error}".splitlines()[0]
        what = f"cannot be read: {reason}" if path.stat().st_size else "is empty, as after a power cut"
        raise ValueError(f"{path} {what}; restore it from a copy, or begin anew in another --output") from error
    return state


def train(
    trainer: Trainer,
    held_out: PairedImages | None,
    folder: Path,
    *,
    time_limit: float = math.inf,
    save_every: float = 5,
    report_every: int = 500,
    workers: int = 0,
    tensorboard: bool = False,
) -> bool:
    """Run until the recipe is finished (true), or until the time limit or a signal to end (false); the run's folder
    then holds a checkpoint of exactly that step.

    time_limit, save_every   minutes, until the run stops and between checkpoints
    report_every   steps between validations on the images held out, each with a row in the log
    workers        processes that make batches; 0 leaves it to this one
    tensorboard    write TensorBoard's files, too
    """
    recipe, processes = trainer.recipe, trainer.processes
    started = saved = time.monotonic()
    source = batches(
        trainer.images,
        recipe,
        start=trainer.step,
        part=slice(processes.rank, None, processes.size),
        workers=workers,
        device=trainer.device,
    )
    bar = tqdm(
        total=None if recipe.minutes else recipe.steps,
        initial=trainer.step,
        unit="step",
        disable=None if processes.first else True,
    )
    log = Log(folder, trainer.step, tensorboard=tensorboard) if processes.first else None
    with _stop_signals() as signals, log or nullcontext(), bar:
        while trainer.share < 1:
            rate = trainer.rate
            trainer.train_step(next(source))
            bar.update()
            now = time.monotonic()
            (stop,) = processes.total(bool(signals) or now - started > time_limit * 60)
            last = trainer.share == 1 or stop > 0
            if log and (last or now - saved > save_every * 60):
                _save_checkpoint(trainer, folder)
                saved = now
            if log and (last or trainer.step % report_every == 0):
                psnr = trainer.validate(held_out) if held_out else math.nan
                loss = trainer.mean_loss()
                log.write(trainer.step, rate, loss, psnr)
                if held_out:
                    image = samples(trainer, held_out)
                    contact_sheet.save(image, folder / SAMPLES)
                    log.image(trainer.step, image)
                said = f"loss {loss:.5f}" + (f", held-out {psnr:.3f} dB" if held_out else "")
                bar.set_postfix_str(said)
                if bar.disable:
                    print(f"step {trainer.step}: {said}", flush=True)
            if last:
                break
    if processes.first:
        save(trainer.result(), folder / "weights.safetensors", metadata=trainer.metadata(), overwrite=True)
    # Nobody leaves before the files are written: torchrun ends the others as soon as one is gone.
    processes.total(0)
    return trainer.share == 1
