# SPDX-License-Identifier: Apache-2.0
"""`ditn train`: from a folder of images to weights (see `ditn.training.train`). torchrun starts it on several GPUs or
machines."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ditn.training.data import PairedImages, list_images
from ditn.training.process_group import ProcessGroup, joined, local_rank
from ditn.training.recipe import read_recipe
from ditn.training.train import SAMPLES, read_checkpoint, train
from ditn.training.trainer import Trainer


def run(args: argparse.Namespace) -> int:
    """`ditn train`. 0 when the recipe is finished, 3 when stopped before (go on with --resume).

    Raises FileExistsError, FileNotFoundError or ValueError for arguments that cannot be followed, RuntimeError if
    training diverges.
    """
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", local_rank())
    with joined(device) as processes:
        return _run(args, device, processes)


def _run(args: argparse.Namespace, device: torch.device, processes: ProcessGroup) -> int:
    folder: Path = args.output
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists() and not args.resume:
        raise FileExistsError(f"{checkpoint} exists; go on with --resume or choose another --output")
    if args.resume and not checkpoint.exists():
        raise FileNotFoundError(f"{checkpoint} does not exist; there is nothing to resume")
    state = read_checkpoint(folder) if args.resume else None
    recipe = read_recipe(args, args.config, state["recipe"] if state else {})
    paths = list_images(args.data)
    held_out = paths[:: recipe.held_out] if recipe.held_out else []
    rest = [path for path in paths if path not in held_out]
    if any(path.name == SAMPLES and path.parent.samefile(folder) for path in paths if folder.is_dir()):
        raise ValueError(f"{folder / SAMPLES} is one of the images of --data and would be overwritten; move the output")
    folder.mkdir(parents=True, exist_ok=True)
    cache = args.cache or folder
    with processes.one_first():
        validation = PairedImages(held_out, recipe.upscale, cache, recipe.degradation) if held_out else None
        images = PairedImages(rest, recipe.upscale, cache, recipe.degradation)
    trainer = Trainer(
        recipe, images, device=device, fused=args.fused, state=state, processes=processes, cuda_graph=args.cuda_graph
    )
    if processes.first:
        if not state:
            print(f"start: {trainer.origin}")
        name = f"{recipe.model} x{recipe.upscale}"
        print(f"{name}: {len(images)} images, {len(held_out)} held out, from step {trainer.step}")
        if small := images.too_small(recipe.patch):
            side = recipe.patch * recipe.upscale
            more = f" and {len(small) - 1} more" if len(small) > 1 else ""
            print(f"not used, since a patch of {side}x{side} pixels does not fit into them: {rest[small[0]]}{more}")
        if recipe.amp == "float16" and device.type == "cpu" and args.fused:
            print("amp float16 is slower than none on a CPU, whose fused gradients are of float32 and bfloat16")
        if trainer.share == 1:
            print(f"finished at step {trainer.step} already; more {'--minutes' if recipe.minutes else '--steps'} go on")
    finished = train(
        trainer,
        validation,
        folder,
        time_limit=args.time_limit,
        save_every=args.save_every,
        report_every=args.report_every,
        workers=args.workers,
        tensorboard=args.tensorboard,
    )
    return 0 if finished else 3
