# SPDX-License-Identifier: Apache-2.0
"""A step of training that nobody waits for: what it asks of the device, and recorded by a stand-in for CUDA graphs."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import recorded_graphs
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from ditn.training import update
from ditn.training.batches import Batch, Order, batches
from ditn.training.data import PairedImages, list_images, to_tensor
from ditn.training.recipe import Recipe
from ditn.training.trainer import Trainer

RECIPE = Recipe(upscale=2, batch=2, patch=16, steps=10, warmup=5, held_out=0, interpolation_start=False)


@pytest.fixture
def images(tmp_path: Path) -> PairedImages:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, size in (("a", (90, 71)), ("b", (64, 65)), ("c", (200, 40))):
        pixels = np.random.default_rng(ord(name)).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return PairedImages(list_images([folder]), 2, tmp_path / "cache")


@pytest.mark.parametrize("degradation", ["bicubic", "photo"])
def test_crops_that_are_made_where_the_images_lie_are_the_same(
    tmp_path: Path, images: PairedImages, degradation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Turned, mirrored, in exchanged colours, among drawn ones and for each process its part. Degraded ones are still
    made by the host."""
    images = PairedImages(list_images([tmp_path / "pictures"]), 2, tmp_path / "cache", degradation)
    if images.made_again:
        monkeypatch.setattr(Order, "made", None)  # is not called
    recipe = Recipe(upscale=2, batch=12, patch=16, drawn=0.3, channel_shuffle=True, degradation=degradation)
    for part in (slice(None), slice(1, None, 3)):
        made = [batches(images, recipe, start=4, part=part, resident=resident) for resident in (False, True)]
        for _ in range(3):
            host, device = (next(source) for source in made)
            assert all(map(torch.equal, host, device))
            assert [crops.dtype for crops in device] == [torch.uint8] * 3
    everything = Recipe(upscale=2, batch=3, patch=16, drawn=1.0, consistency=0.0)
    host, device = (next(batches(images, everything, start=0, resident=resident)) for resident in (False, True))
    assert all(map(torch.equal, host, device))


def state_of(trainer: Trainer) -> list[torch.Tensor]:
    one = trainer.update
    optimizer = [tensor for state in one.optimizer.state.values() for tensor in state.values()]
    return [*trainer.model.parameters(), *one.average.parameters(), *optimizer, one._seen]


@pytest.mark.parametrize("amp", ["none", pytest.param("float16", marks=pytest.mark.slow)])
def test_a_recorded_step_is_the_step(images: PairedImages, amp: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(RECIPE, amp=amp)
    eager = Trainer(recipe, images, device="cpu", fused=True)
    recorded_graphs.install(monkeypatch)
    monkeypatch.setattr(update, "can_record", lambda device: True)
    recorded = Trainer(recipe, images, device="cpu", fused=True)
    graphs = []

    def record(run, device, pool, stream):
        """A capture runs nothing, the stand-in does: what it changed is put back."""
        before = [tensor.detach().clone() for tensor in state_of(recorded)]
        graph = recorded_graphs.Graph()
        with recorded_graphs.Recorder(graph):
            run()
        with torch.no_grad():
            for tensor, value in zip(state_of(recorded), before, strict=True):
                tensor.copy_(value)
        graphs.append(graph)
        return graph

    monkeypatch.setattr(update, "record", record)
    given = batches(images, recipe, start=0)
    for batch in itertools.islice(given, 7):
        for trainer in (eager, recorded):
            trainer.train_step(batch)
        assert all(map(torch.equal, state_of(eager), state_of(recorded)))
    assert [graph.replays for graph in graphs] == [4]
    assert eager.mean_loss() == recorded.mean_loss()


@pytest.mark.slow  # float16 runs as plain PyTorch on a CPU
def test_a_recording_that_is_broken_off_costs_nothing_but_a_warning(
    images: PairedImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a step, behind the gradient's unscaling: the step is made without a graph, as all others are."""
    recipe = replace(RECIPE, amp="float16")
    eager = Trainer(recipe, images, device="cpu", fused=True)
    recorded_graphs.install(monkeypatch)
    monkeypatch.setattr(update, "can_record", lambda device: True)
    broken = Trainer(recipe, images, device="cpu", fused=True)

    def record(run, device, pool, stream):
        broken.update.scaler.unscale_(broken.update.optimizer)
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(update, "record", record)
    given = list(itertools.islice(batches(images, recipe, start=0), 5))
    for batch in given[:3]:
        broken.train_step(batch)
    with pytest.warns(RuntimeWarning, match="trains without CUDA graphs.*not permitted"):
        broken.train_step(given[3])
    broken.train_step(given[4])
    for batch in given:
        eager.train_step(batch)
    # The gradient that was unscaled once more is of a step that was over.
    assert all(map(torch.equal, state_of(eager), state_of(broken)))
    assert eager.update.scaler.state_dict() == broken.update.scaler.state_dict()


@pytest.mark.parametrize("optimizer", ["adamw", "adam"])
def test_a_resumed_run_follows_the_settings_it_is_given(images: PairedImages, optimizer: str) -> None:
    """Others than before, as the formulas of Adam (Kingma and Ba) and AdamW (Loshchilov and Hutter) have them."""
    before = {"adamw": "adam", "adam": "adamw"}[optimizer]
    first = Trainer(replace(RECIPE, optimizer=before, clip=1e9, consistency=0.0), images, device="cpu", fused=False)
    given = batches(images, RECIPE, start=0)
    first.train_step(next(given))
    settings = {"optimizer": optimizer, "betas": (0.5, 0.7), "weight_decay": 0.3}
    trainer = Trainer(replace(first.recipe, **settings), images, device="cpu", fused=False, state=first.state())
    name, weight = "sft.weight", trainer.model.sft.weight
    x = weight.detach().double().clone()
    m, v = (trainer.update.optimizer.state[weight][key].double() for key in ("exp_avg", "exp_avg_sq"))
    rate = trainer.rate
    batch = next(given)
    loss = F.l1_loss(trainer.model(to_tensor(batch.low)), to_tensor(batch.high))
    gradient = torch.autograd.grad(loss, weight)[0].double()
    if optimizer == "adam":
        gradient = gradient + 0.3 * x
    else:
        x = x * (1 - rate * 0.3)
    m, v = 0.5 * m + 0.5 * gradient, 0.7 * v + 0.3 * gradient.square()
    expected = x - rate * (m / (1 - 0.5**2)) / ((v / (1 - 0.7**2)).sqrt() + 1e-8)
    trainer.train_step(batch._replace(extreme=batch.extreme[:0]))
    torch.testing.assert_close(trainer.model.state_dict()[name].double(), expected, rtol=0, atol=1e-2 * rate)


def test_a_resumed_run_may_turn_to_float16_and_back(images: PairedImages) -> None:
    plain = Trainer(RECIPE, images, device="cpu", fused=False)
    half = Trainer(replace(RECIPE, amp="float16"), images, device="cpu", fused=False, state=plain.state())
    # GradScaler's own start, as PyTorch documents it.
    assert half.update.scaler.state_dict()["scale"] == 2.0**16
    half.update.scaler.load_state_dict({**half.update.scaler.state_dict(), "scale": 2.0**10})
    again = Trainer(half.recipe, images, device="cpu", fused=False, state=half.state())
    assert again.update.scaler.state_dict()["scale"] == 2.0**10
    Trainer(RECIPE, images, device="cpu", fused=False, state=half.state())


class _Asked(TorchDispatchMode):
    """Which operators hand a value to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.found.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("amp", ["none", "float16"])
def test_a_step_asks_the_device_for_nothing(images: PairedImages, amp: str) -> None:
    trainer = Trainer(replace(RECIPE, amp=amp), images, device="cpu", fused=True)
    batch = next(batches(images, trainer.recipe, start=0))
    with _Asked() as asked:
        trainer.update(batch, rate=1e-3, decay=0.9)
    assert not asked.found
    with _Asked() as asked:
        trainer.update.average.sft.bias.sum().item()
    assert asked.found


def test_what_is_read_late_is_complete(images: PairedImages, capsys: pytest.CaptureFixture[str]) -> None:
    """As on a GPU, whose steps are read by tens: five bad ones in a row are found even if good ones followed."""
    trainer = Trainer(RECIPE, images, device="cpu", fused=True)
    good = next(batches(images, RECIPE, start=0))
    bad = Batch(good.low, good.high * math.nan, good.extreme)
    for batch in (good, bad, bad, good):
        trainer.update(batch, rate=1e-3, decay=0.9)
    seen = trainer.update.read()
    assert (seen.steps, seen.bad, seen.bad_now, seen.bad_most) == (4, 2, 0, 2)
    assert math.isnan(seen.bad_loss)
    assert math.isnan(seen.loss)
    for batch in (bad, bad, bad, bad, bad, good):
        trainer.update(batch, rate=1e-3, decay=0.9)
    with pytest.raises(RuntimeError, match="5 steps in a row were not finite; lower lr"):
        trainer.mean_loss()
    assert "skipped, 5 of 6 steps" in capsys.readouterr().err
