# SPDX-License-Identifier: Apache-2.0
"""`ditn train`: from a folder of images to weights (see `ditn.training.train`). torchrun starts it on several GPUs or
machines."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ditn.commands.device import choose_device
from ditn.inference.placement import default_device
from ditn.training.data import PairedImages, list_images
from ditn.training.process_group import ProcessGroup, joined, local_rank
from ditn.training.recipe import Recipe, read_recipe
from ditn.training.train import SAMPLES, read_checkpoint, train
from ditn.training.trainer import Trainer


def run(args: argparse.Namespace) -> int:
    """`ditn train`. 0 when the recipe is finished, 3 when stopped before (go on with --resume).

    Raises FileExistsError, FileNotFoundError or ValueError for arguments that cannot be followed, RuntimeError if
    training diverges.
    """
    if args.report_every < 1:
        raise ValueError(f"--report-every is {args.report_every}, must be at least 1")
    name = args.device or default_device().type
    device = choose_device(f"cuda:{local_rank()}" if name == "cuda" else name)
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
    if any(path.name == SAMPLES and path.parent.samefile(folder) for path in paths if folder.is_dir()):
        raise ValueError(f"{folder / SAMPLES} is one of the images of --data and would be overwritten; move the output")
    folder.mkdir(parents=True, exist_ok=True)
    cache = args.cache or folder
    with processes.one_first():
        given = PairedImages(paths, recipe.upscale, cache, recipe.degradation)
    held_out, images = _split(given, recipe)
    trainer = Trainer(
        recipe, images, device=device, fused=args.fused, state=state, processes=processes, cuda_graph=args.cuda_graph
    )
    if processes.first:
        if not state:
            print(f"start: {trainer.origin}")
        name = f"{recipe.model} x{recipe.upscale}"
        print(f"{name}: {len(images)} images, {len(held_out)} held out, from step {trainer.step}")
        if small := given.too_small(recipe.patch):
            side = recipe.patch * recipe.upscale
            more = f" and {len(small) - 1} more" if len(small) > 1 else ""
            print(f"not used, since a patch of {side}x{side} pixels does not fit into them: {paths[small[0]]}{more}")
        if recipe.amp == "float16" and device.type == "cpu" and args.fused:
            print("amp float16 is slower than none on a CPU, whose fused gradients are of float32 and bfloat16")
        if trainer.share == 1:
            print(f"finished at step {trainer.step} already; more {'--minutes' if recipe.minutes else '--steps'} go on")
    finished = train(
        trainer,
        held_out,
        folder,
        time_limit=args.time_limit,
        save_every=args.save_every,
        report_every=args.report_every,
        workers=args.workers,
        tensorboard=args.tensorboard,
    )
    return 0 if finished else 3


def _split(images: PairedImages, recipe: Recipe) -> tuple[PairedImages, PairedImages]:
    """Of the images into which a patch fits, those that are held out and those to train on. Raises ValueError if there
    are none to train on."""
    fitting = sorted(set(range(len(images))) - set(images.too_small(recipe.patch)))
    if not fitting:
        side = recipe.patch * recipe.upscale
        raise ValueError(
            f"a patch of {side}x{side} pixels fits into none of the {len(images)} images of --data; give larger ones, "
            f"or a --patch below {recipe.patch}"
        )
    held_out = fitting[:: recipe.held_out] if recipe.held_out else []
    rest = sorted(set(fitting) - set(held_out))
    if not rest:
        raise ValueError(
            f"--held-out {recipe.held_out} keeps one image in {recipe.held_out} from training, beginning with the "
            f"first, and of {len(fitting)} none is left; give more, or hold none out with --held-out 0"
        )
    return images.only(held_out), images.only(rest)
