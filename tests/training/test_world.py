# SPDX-License-Identifier: Apache-2.0
"""Several processes, started by torchrun as a user would, compute what one computes."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image

import ditn
from ditn.commands import cli
from ditn.training.data import PairedImages, list_images
from ditn.training.process_group import ProcessGroup, joined
from ditn.training.recipe import Recipe
from ditn.training.train import read_checkpoint
from ditn.training.trainer import Trainer

# The gradient is not clipped and the weights do not move far, so that the optimiser's memory tells the gradient.
FLAGS = ("--upscale", "2", "--patch", "16", "--held-out", "2", "--clip", "1e9", "--decay", "0", "--warmup", "1000")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for name in "abcd":
        pixels = np.random.default_rng(ord(name)).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


def _train(processes: int, pictures: Path, output: Path, *flags: str) -> None:
    arguments = ["train", "--data", str(pictures), "--output", str(output), "--device", "cpu", *FLAGS, *flags]
    if processes == 1:
        assert cli.main(arguments) == 0
        return
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(ditn.__file__).parents[1])}
    command = [sys.executable, *launcher, "-m", "ditn", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def _optimizer(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = read_checkpoint(folder)["optimizer"]["state"]
    return state


@pytest.mark.slow
def test_two_processes_have_the_gradient_of_the_doubled_batch(pictures: Path, tmp_path: Path) -> None:
    _train(2, pictures, tmp_path / "two", "--batch", "4", "--steps", "1")
    _train(1, pictures, tmp_path / "one", "--batch", "4", "--steps", "1")
    two, one = _optimizer(tmp_path / "two"), _optimizer(tmp_path / "one")
    assert two.keys() == one.keys()
    for key in one:
        # After one step the first moment is 1 - 0.9 times the gradient.
        a, b = two[key]["exp_avg"], one[key]["exp_avg"]
        # Sums of float32 in another order, through some 40 layers.
        assert (a - b).abs().max() <= 1e-4 * b.abs().max() + 1e-9
    metadata = read_checkpoint(tmp_path / "two")
    assert metadata["step"] == 1


@pytest.mark.slow
def test_two_processes_go_on_exactly(pictures: Path, tmp_path: Path) -> None:
    _train(2, pictures, tmp_path / "whole", "--batch", "2", "--steps", "2")
    _train(2, pictures, tmp_path / "parts", "--batch", "2", "--steps", "1")
    _train(2, pictures, tmp_path / "parts", "--steps", "2", "--resume")
    whole, parts = (read_checkpoint(tmp_path / name) for name in ("whole", "parts"))
    for name, tensor in whole["model"].items():
        assert torch.equal(tensor, parts["model"][name]), name
    assert whole["step"] == parts["step"] == 2


def test_the_others_wait_for_a_day(monkeypatch: pytest.MonkeyPatch) -> None:
    """While one process decodes the images. The group is a real one, of this process alone."""
    alone = functools.partial(dist.init_process_group, store=dist.HashStore(), rank=0, world_size=1)
    monkeypatch.setattr(dist, "init_process_group", alone)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with joined(torch.device("cpu")):
        backend = dist.distributed_c10d._get_default_group()._get_backend(torch.device("cpu"))
        assert backend.options._timeout.total_seconds() == 24 * 60 * 60


def test_a_batch_must_be_shared_evenly(pictures: Path, tmp_path: Path) -> None:
    images = PairedImages(list_images([pictures]), 2, tmp_path)
    with pytest.raises(ValueError, match="a batch of 5 cannot be shared evenly by 2 processes"):
        Trainer(Recipe(upscale=2, batch=5), images, device="cpu", fused=True, processes=ProcessGroup(0, 2, 0))
