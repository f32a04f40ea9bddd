# SPDX-License-Identifier: Apache-2.0
"""Training: a run that is stopped goes on exactly, bad steps are skipped, the start is an interpolation."""

from __future__ import annotations

import argparse
import csv
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

import ditn
from ditn.commands import arguments, train
from ditn.imaging.metrics import psnr_y
from ditn.imaging.resize import bicubic
from ditn.training.batches import Batch, batches
from ditn.training.data import PairedImages, list_images, to_pixels, to_tensor
from ditn.training.log import Log
from ditn.training.recipe import Recipe, load_recipe
from ditn.training.train import read_checkpoint
from ditn.training.trainer import Trainer
from ditn.training.update import pixel_loss
from ditn.training.warm_start import start_at_interpolation, take_weights
from ditn_kernels import REGISTRY, explain

SMALL = ("--batch", "1", "--patch", "8", "--held-out", "3", "--warmup", "2")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for name in "abcd":
        coarse = np.random.default_rng(ord(name)).integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((96, 64), Image.Resampling.BICUBIC).save(folder / f"{name}.png")
    return folder


def _arguments(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    arguments.train(parser)
    return parser.parse_args(flags)


def _run(pictures: Path, output: Path, *flags: str) -> int:
    return train.run(_arguments("--data", str(pictures), "--output", str(output), *SMALL, *flags))


def _trainer(pictures: Path, cache: Path, **fields: Any) -> Trainer:
    recipe = Recipe(**{"batch": 1, "patch": 8, "steps": 50, **fields})
    images = PairedImages(list_images([pictures]), recipe.upscale, cache)
    return Trainer(recipe, images, device="cpu", fused=True)


def _batch(trainer: Trainer) -> Batch:
    return next(batches(trainer.images, trainer.recipe, start=trainer.step))


def _checkpoint(folder: Path) -> dict[str, Any]:
    return read_checkpoint(folder)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)


def test_continuing_equals_an_unbroken_run_bit_by_bit(pictures: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert _run(pictures, whole, "--steps", "4", "--report-every", "1") == 0
    flags = ("--steps", "4", "--report-every", "1", "--time-limit", "0")
    assert _run(pictures, parts, *flags) == 3
    # The second part has its batches made by two other processes.
    assert [_run(pictures, parts, *flags, "--resume", "--workers", workers) for workers in "200"] == [3, 3, 0]
    assert len(list(parts.glob("optimizer-*.pt"))) == 1
    states = [_checkpoint(folder) for folder in (whole, parts)]
    assert all(state.pop("seconds") > 0 for state in states)
    assert _same(*states)
    logs = [list(csv.DictReader((folder / "log.csv").open())) for folder in (whole, parts)]
    assert [row["step"] for row in logs[0]] == ["1", "2", "3", "4"]
    for row in (*logs[0], *logs[1]):
        del row["seconds"]
    assert logs[0] == logs[1]
    a, b = (ditn.load(folder / "weights.safetensors").state_dict() for folder in (whole, parts))
    assert _same(a, b)


@pytest.mark.parametrize(
    "number",
    [pytest.param(signal.SIGTERM, id="SIGTERM", marks=pytest.mark.slow), pytest.param(signal.SIGKILL, id="SIGKILL")],
)
def test_a_killed_run_goes_on_exactly(pictures: Path, tmp_path: Path, number: signal.Signals) -> None:
    # Without decay a step does not depend on how many there will be, so the run can be ended anywhere.
    flags = ("--decay", "0", "--save-every", "0", "--report-every", "1")
    arguments = ["--data", str(pictures), "--output", str(tmp_path / "killed"), "--steps", "100000", *SMALL, *flags]
    process = subprocess.Popen(
        [sys.executable, "-m", "ditn", "train", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": str(Path(ditn.__file__).parents[1]),
            "OMP_NUM_THREADS": str(torch.get_num_threads()),
        },
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 2:"):
            break
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == (3 if number == signal.SIGTERM else -number)
    assert (tmp_path / "killed" / "weights.safetensors").is_file() == (number == signal.SIGTERM)
    step = _checkpoint(tmp_path / "killed")["step"]
    assert 2 <= step < 100000
    last = ("--steps", str(step + 2), *flags)
    assert _run(pictures, tmp_path / "killed", *last, "--resume") == 0
    assert _run(pictures, tmp_path / "whole", *last) == 0
    states = [_checkpoint(tmp_path / name) for name in ("killed", "whole")]
    assert all(state.pop("seconds") > 0 for state in states)
    assert _same(*states)


def test_log_forgets_what_was_not_saved(tmp_path: Path) -> None:
    with Log(tmp_path, 0) as log:
        for step in (10, 20, 30):
            log.write(step, 1e-3, 0.5, 30.0)
    with Log(tmp_path, 20) as log:
        log.write(30, 1e-3, 0.25, 31.0)
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert [(row["step"], row["loss"]) for row in rows] == [("10", "0.50000"), ("20", "0.50000"), ("30", "0.25000")]


def test_bad_steps_change_nothing_and_five_in_a_row_stop(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = _trainer(pictures, tmp_path)
    good = _batch(trainer)
    trainer.train_step(good)
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    poisoned = good._replace(high=good.high * math.nan)
    for _ in range(4):
        trainer.train_step(poisoned)
    assert _same(before, trainer.model.state_dict())
    assert "step 4: loss nan" in capsys.readouterr().err
    trainer.train_step(good)
    assert trainer.bad_steps == 0
    assert not _same(before, trainer.model.state_dict())
    for _ in range(4):
        trainer.train_step(poisoned)
    with pytest.raises(RuntimeError, match="5 steps in a row"):
        trainer.train_step(poisoned)


@pytest.mark.parametrize("fused", [True, False])
def test_bfloat16_gradients_are_float32_ones_to_rounding(fused: bool) -> None:
    model = ditn.DITN_Real(fused=fused)
    with torch.no_grad():
        for sal in model.UFONE[0].SALs:
            sal.SDA.scale.fill_(1)
    image = torch.rand(1, 3, 24, 24).contiguous(memory_format=torch.channels_last)
    target = torch.rand(1, 3, 96, 96)
    gradients = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            output = model(image)
        # The squared error: the derivative of the absolute one jumps where bfloat16 rounds across 0.
        loss = (output.float() - target).square().mean()
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    for (name, _), exact, rounded in zip(model.named_parameters(), *gradients, strict=True):
        if exact.numel() == 1:
            continue  # a temperature's gradient is one sum in which nearly everything cancels
        # 8 bits of mantissa through some 40 operations: a few percent of the largest entry.
        assert (rounded - exact).abs().max() <= 0.1 * exact.abs().max(), name


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_start_is_an_interpolation(pictures: Path, tmp_path: Path, scale: int) -> None:
    images = PairedImages(list_images([pictures]), scale, tmp_path)
    model = ditn.DITN_Real(scale)
    start_at_interpolation(model, (map(to_tensor, images.batch(step, seed=0, size=4, patch=16)) for step in range(8)))
    with torch.no_grad():
        for high, low in images:
            ours = to_pixels(model(to_tensor(torch.tensor(low)[None]))[0])
            by_bicubic = psnr_y(bicubic(low, *high.shape[:2]), high, shave=scale)
            # 3x3 taps instead of 4x4, but fitted: as good as bicubic to half a decibel, where noise would be 20 off.
            assert psnr_y(ours, high, shave=scale) > by_bicubic - 0.5


def _detailed(model: ditn.DITN) -> ditn.DITN:
    """Weights that are not at their start, where a SAL's gate is off."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def test_the_same_network_is_taken_whole() -> None:
    source, model = _detailed(ditn.DITN_Tiny(2, itls=1, sals=1)), ditn.DITN_Tiny(2, itls=1, sals=1)
    taken = take_weights(model, source, [])
    assert (taken.missing, taken.other_shape, taken.unused) == ((), (), ())
    assert _same(model.state_dict(), source.state_dict())


def test_deeper_starts_where_the_source_is() -> None:
    source = _detailed(ditn.DITN_Tiny(2, itls=1, sals=1))
    model = ditn.DITN(2, itls=2, sals=1)
    taken = take_weights(model, source, [])
    assert len(taken.fits) == len(source.state_dict())
    assert all(key.startswith(("UFONE.0.ITLs.1.", "UFONE.1.", "UFONE.2.")) for key in taken.missing)
    image = torch.rand(1, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model.double()(image), source.double()(image), rtol=0, atol=1e-12)


def test_the_fitted_convolution_is_the_solution() -> None:
    # Shallower than its source; the targets are made by another convolution behind the same features: that is found.
    source, wanted = _detailed(ditn.DITN_Tiny(2, itls=2, sals=1)), _detailed(ditn.DITN_Tiny(2, itls=1, sals=1))
    body = {key: value for key, value in source.state_dict().items() if not key.startswith("upsample.")}
    wanted.load_state_dict({key: value for key, value in body.items() if ".ITLs.1." not in key}, strict=False)
    model, lows = ditn.DITN_Tiny(2, itls=1, sals=1), torch.rand(24, 3, 16, 16)
    with torch.no_grad():
        taken = take_weights(model, source, [(lows, wanted(lows))])
        assert all(".ITLs.1." in key for key in taken.unused)
        expected = wanted(lows[:2])
        # Exact but for the ridge, which is a millionth of the features' mean square.
        assert (model(lows[:2]) - expected).abs().max() <= 1e-2 * expected.std()
        before = source.state_dict()["upsample.0.weight"]
        assert (model.state_dict()["upsample.0.weight"] - before).abs().max() > 0.1 * before.abs().max()


def test_layernorm_follows_tanh() -> None:
    source, model = _detailed(ditn.DITN_Real(2, itls=1, sals=1)), ditn.DITN_Tiny(2, itls=1, sals=1)
    lows = torch.rand(4, 3, 16, 16)
    with torch.no_grad():
        taken = take_weights(model, source, [(lows, source(lows))])
        assert {key.split(".")[4] for key in taken.missing} == {"norm1", "norm2"}
        assert {key.split(".")[4] for key in taken.unused} == {"conv1", "conv2"}
        x = source.sft(lows).movedim(1, -1).flatten(0, -2).numpy()
    ours, theirs = model.UFONE[0].ITLs[0], source.UFONE[0].ITLs[0]
    unit = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    matrix, bias = (parameter.detach().numpy().squeeze() for parameter in theirs.conv1.parameters())
    shift = np.linalg.solve(matrix, bias)
    for channel in (0, 31, 59):
        slope, offset = np.polyfit(unit[:, channel], np.tanh(x[:, channel]), 1)
        assert ours.norm1.weight[channel].item() == pytest.approx(slope, rel=1e-3)
        assert ours.norm1.bias[channel].item() == pytest.approx(offset + shift[channel], rel=1e-3, abs=1e-3)
    wanted = theirs.attn.qkv.weight.detach().numpy() @ matrix
    np.testing.assert_allclose(ours.attn.qkv.weight.detach().numpy(), wanted, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_another_norm_starts_above_bicubic(shared: Path, tmp_path: Path) -> None:
    images = PairedImages(list_images([shared / "data" / "train"])[:160:40], 4, tmp_path)
    recipe = Recipe(model="ditn-tiny", init="ditn-real-x4", batch=4, patch=32, held_out=0)
    trainer = Trainer(recipe, images, device="cpu", fused=True)
    by_bicubic = [psnr_y(bicubic(low, *high.shape[:2]), high, shave=4) for high, low in images]
    # Measured 1.7 above; 0.7 with identities for the layers.
    assert trainer.validate(images) > np.mean(by_bicubic) + 1


@pytest.mark.slow
@pytest.mark.parametrize("scale", [2, 3])
def test_another_scale_starts_above_bicubic(shared: Path, tmp_path: Path, scale: int) -> None:
    paths = list_images([shared / "data" / "train"])[:160:40]
    images = PairedImages(paths, scale, tmp_path)
    recipe = Recipe(upscale=scale, init="ditn-real-x4", batch=4, patch=32, held_out=0)
    trainer = Trainer(recipe, images, device="cpu", fused=True)
    assert "120 tensors; of another shape: upsample.0.weight, upsample.0.bias" in trainer.origin
    by_bicubic = [psnr_y(bicubic(low, *high.shape[:2]), high, shave=scale) for high, low in images]
    # Measured 2.5 above; a start without the fitted convolution is noise.
    assert trainer.validate(images) > np.mean(by_bicubic) + 1


def test_start_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="weights with dim 60 cannot start a model with dim 48"):
        take_weights(ditn.DITN_Real(dim=48), ditn.DITN_Real(), [])


def test_start_is_named_in_the_weights(pictures: Path, tmp_path: Path) -> None:
    assert _run(pictures, tmp_path / "a", "--steps", "1", "--upscale", "2") == 0
    assert _run(pictures, tmp_path / "b", "--steps", "1", "--init", str(tmp_path / "a" / "weights.safetensors")) == 0
    assert _checkpoint(tmp_path / "b")["origin"].endswith("of another shape: upsample.0.weight, upsample.0.bias")
    with safe_open(tmp_path / "b" / "weights.safetensors", framework="pt") as file:
        assert file.metadata()["origin"] == _checkpoint(tmp_path / "b")["origin"]
    with pytest.raises(
        FileNotFoundError, match=f"nowhere is no file and no shipped model; there are {', '.join(ditn.models())}"
    ):
        _run(pictures, tmp_path / "c", "--init", "nowhere")


def test_saved_weights_keep_a_share_of_those_they_began_from(pictures: Path, tmp_path: Path) -> None:
    flags = ("--model", "ditn-tiny", "--init", "ditn-tiny-x4", "--steps", "1", "--warmup", "0", "--ema", "0.1")
    assert _run(pictures, tmp_path / "run", *flags, "--init-share", "0.75") == 0
    saved = ditn.load(tmp_path / "run" / "weights.safetensors").state_dict()
    trained, start = _checkpoint(tmp_path / "run")["average"], ditn.load("ditn-tiny-x4").state_dict()
    for key, tensor in saved.items():
        expected = 0.75 * start[key].double() + 0.25 * trained[key].double()
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-7)
    with pytest.raises(ValueError, match="cannot be blended into"):
        _run(pictures, tmp_path / "other", "--init", "ditn-tiny-x2", "--init-share", "0.5")
    with pytest.raises(ValueError, match=r"init_share is 0\.5, but there is no init"):
        Recipe(init_share=0.5)


@pytest.mark.parametrize(("optimizer", "loss"), [("adamw", "l1"), ("adam", "charbonnier")])
def test_training_lowers_the_loss(pictures: Path, tmp_path: Path, loss: str, optimizer: str) -> None:
    trainer = _trainer(
        pictures, tmp_path, loss=loss, optimizer=optimizer, interpolation_start=False, lr=2e-3, warmup=1, decay=0.0
    )
    source = batches(trainer.images, trainer.recipe, start=0)
    losses = []
    for _ in range(30):
        trainer.train_step(next(source))
        losses.append(trainer.mean_loss())
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:2])


def test_average_follows_the_weights(pictures: Path, tmp_path: Path) -> None:
    trainer = _trainer(pictures, tmp_path, ema=0.9)
    expected = {name: p.detach().double().clone() for name, p in trainer.model.named_parameters()}
    for step in range(3):
        trainer.train_step(_batch(trainer))
        decay = min(0.9, (1 + step) / (10 + step))
        for name, parameter in trainer.model.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * parameter.detach().double()
    for name, parameter in trainer.update.average.named_parameters():
        torch.testing.assert_close(parameter.double(), expected[name], rtol=1e-5, atol=1e-7)


def test_learning_rate() -> None:
    recipe = Recipe(steps=1000, lr=1e-2, warmup=10, decay=0.4)
    assert recipe.learning_rate(0, 0) == pytest.approx(1e-3)
    assert recipe.learning_rate(9, 0.1) == recipe.learning_rate(600, 0.6) == pytest.approx(1e-2)
    assert recipe.learning_rate(700, 0.7) == pytest.approx(0.5e-2)
    assert 0 < recipe.learning_rate(999, 0.999) < 1e-4
    assert recipe.share(250, seconds=1e9) == 0.25
    by_time = Recipe(steps=1000, minutes=2)
    assert [by_time.share(5000, seconds) for seconds in (0, 30, 120, 500)] == [0, 0.25, 1, 1]


def test_other_schedules() -> None:
    cosine, steps = (Recipe(lr=1e-2, warmup=10, schedule=name) for name in ("cosine", "steps"))
    for recipe in (cosine, steps):
        assert recipe.learning_rate(0, 0) == pytest.approx(1e-3)
    assert [cosine.learning_rate(10, share) for share in (0, 1 / 3, 0.5, 1)] == pytest.approx([1e-2, 7.5e-3, 5e-3, 0])
    halved = [steps.learning_rate(10, share) for share in (0.49, 0.5, 0.8, 0.9, 0.95)]
    assert halved == pytest.approx([1e-2, 5e-3, 2.5e-3, 1.25e-3, 0.625e-3])


def test_frequency_loss() -> None:
    # One wave of amplitude 1 over 8 pixels: the transform is 8 / 2 in one place (of 8 x 5, each real and imaginary).
    wave = torch.cos(2 * math.pi * torch.arange(8, dtype=torch.float64) / 8).expand(1, 1, 8, 8)
    zero = torch.zeros_like(wave)
    plain = pixel_loss(wave, zero, "l1")
    assert plain.item() == pytest.approx(2 * (1 + math.sqrt(2)) / 8)
    assert (pixel_loss(wave, zero, "l1", frequency=0.1) - plain).item() == pytest.approx(0.1 * 4 / 80)


def test_run_tells_what_it_does(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ("--steps", "1", "--report-every", "1")
    assert _run(pictures, tmp_path / "run", *flags) == 0
    with Image.open(tmp_path / "run" / "samples.png") as picture:
        # Two held-out images, each whole, by bicubic, by the model and in the original.
        assert (picture.width, picture.height) == (4 * 246 - 6, 2 * 266 - 6)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(RuntimeError, match=r"pip install 'ditn-kernels\[train\]'"):
        _run(pictures, tmp_path / "board", *flags, "--tensorboard")


def test_tensorboard_has_the_numbers(pictures: Path, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="no tensorboard")
    assert _run(pictures, tmp_path, "--steps", "2", "--report-every", "1", "--tensorboard") == 0
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    for name in ("lr", "loss", "psnr_y"):
        logged = [(event.step, event.value) for event in events.Scalars(name)]
        # The CSV has three digits of the rate and five places of the loss.
        assert logged == [(int(row["step"]), pytest.approx(float(row[name]), rel=5e-3, abs=1e-5)) for row in rows]
    assert [event.step for event in events.Images("samples")] == [1, 2]


def test_run_by_time_ends_decayed(pictures: Path, tmp_path: Path) -> None:
    flags = ("--minutes", "0.02", "--report-every", "1", "--warmup", "1", "--decay", "1", "--held-out", "0")
    assert _run(pictures, tmp_path, *flags) == 0
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    rates = [float(row["lr"]) for row in rows]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == 1e-3
    assert rates[-1] < 0.5e-3
    assert 1.2 <= _checkpoint(tmp_path)["seconds"] < 20


def test_what_is_slow_on_a_cpu_is_said(pictures: Path, tmp_path: Path, capsys) -> None:
    assert _run(pictures, tmp_path, "--steps", "1", "--amp", "float16") == 0
    assert "amp float16 is slower than none on a CPU" in capsys.readouterr().out
    ffn = REGISTRY["gated_ffn"]
    for dtype, backend in ((torch.float16, "torch"), (torch.bfloat16, "cpp"), (torch.float32, "cpp")):
        assert explain(ffn, *ffn.inputs(ffn.samples[0], dtype=dtype).values(), backward=True).chosen == backend


def test_flags_go_over_the_file_and_the_file_over_the_run(pictures: Path, tmp_path: Path, capsys) -> None:
    config = tmp_path / "recipe.toml"
    config.write_text("lr = 5e-4\nsteps = 1\nbetas = [0.8, 0.9]\n")
    assert _run(pictures, tmp_path, str(config), "--lr", "3e-4") == 0
    recipe = _checkpoint(tmp_path)["recipe"]
    assert (recipe["lr"], recipe["steps"], recipe["betas"], recipe["patch"]) == (3e-4, 1, (0.8, 0.9), 8)
    assert _run(pictures, tmp_path, "--steps", "2", "--resume") == 0
    assert "finished" not in capsys.readouterr().out
    assert _checkpoint(tmp_path)["step"] == 2
    assert _run(pictures, tmp_path, "--resume") == 0
    assert "finished at step 2 already; more --steps go on" in capsys.readouterr().out
    assert _checkpoint(tmp_path)["recipe"]["lr"] == 3e-4


def _given_to_training(monkeypatch: pytest.MonkeyPatch, data: Path, output: Path, *flags: str) -> list[list[Any]]:
    """The images in high resolution that are held out, and those that are trained on."""
    seen: list[list[Any]] = []

    def end(trainer: Trainer, held_out: PairedImages, *_: Any, **__: Any) -> bool:
        seen.extend([pair.high for pair in images] for images in (held_out, trainer.images))
        return True

    monkeypatch.setattr(train, "train", end)
    assert _run(data, output, "--no-interpolation-start", *flags) == 0
    return seen


def _decoded(folder: Path, names: str) -> list[Any]:
    """As Pillow reads them; none has a side that 4 does not divide."""
    return [np.asarray(Image.open(folder / f"{name}.png").convert("RGB")) for name in names]


def test_every_third_image_is_held_out_of_those_large_enough(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out, images = _given_to_training(monkeypatch, pictures, tmp_path / "plain")
    assert all(map(np.array_equal, held_out, _decoded(pictures, "ad")))
    assert all(map(np.array_equal, images, _decoded(pictures, "bc")))
    assert "not used" not in capsys.readouterr().out
    # Smaller ones beside them, before, between and behind, change nothing.
    mixed = tmp_path / "mixed"
    shutil.copytree(pictures, mixed)
    for name, size in (("0", (3, 3)), ("ab", (28, 90)), ("e", (31, 31))):
        Image.new("RGB", size, "red").save(mixed / f"{name}.png")
    held_out, images = _given_to_training(monkeypatch, mixed, tmp_path / "run")
    assert (len(held_out), len(images)) == (2, 2)
    assert all(map(np.array_equal, held_out, _decoded(pictures, "ad")))
    assert all(map(np.array_equal, images, _decoded(pictures, "bc")))
    said = capsys.readouterr().out
    assert "2 images, 2 held out" in said
    assert f"a patch of 32x32 pixels does not fit into them: {mixed / '0.png'} and 2 more\n" in said


def test_images_that_leave_nothing_to_train_on_are_refused_in_words(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"--held-out 3 keeps one image in 3 from .* of 1 none is left; .*--held-out 0"
    ):
        _run(pictures / "a.png", tmp_path / "run", "--steps", "1")
    with pytest.raises(ValueError, match=r"a patch of 96x96 pixels fits into none of the 4 images .* --patch below 24"):
        _run(pictures, tmp_path / "run", "--steps", "1", "--patch", "24")


def test_files_that_cannot_be_read_are_all_named(pictures: Path, tmp_path: Path) -> None:
    """Whether they would be held out, as 0.png, or trained on, as aa.png and e.png."""
    shutil.copytree(pictures, tmp_path / "mixed")
    for name in ("0", "aa", "e"):
        (tmp_path / "mixed" / f"{name}.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"0\.png cannot be used(.|\n)*aa\.png cannot be used(.|\n)*e\.png cannot be"):
        _run(tmp_path / "mixed", tmp_path / "run", "--steps", "1")
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('lr = "1e-3"', "lr is '1e-3', must be a number"),
        ("held_out = -1", "held_out is -1, must not be negative"),
        ("lr = true", "lr is True, must be a number"),
        ("batch = 4.0", r"batch is 4\.0, must be a whole number"),
        ("upscale = 4.0", r"upscale is 4\.0, must be a whole number"),
        ("seed = true", "seed is True, must be a whole number"),
        ('channel_shuffle = "no"', "channel_shuffle is 'no', must be true or false"),
        ("channel_shuffle = 0", "channel_shuffle is 0, must be true or false"),
        ("betas = [0.9]", r"betas is \(0\.9,\), must be two numbers"),
        ('betas = [0.9, "0.99"]', r"betas is \(0\.9, '0\.99'\), must be two numbers"),
        ("betas = 0.9", r"betas is 0\.9, must be two numbers"),
        ("init = 4", "init is 4, must be text in quotes"),
        ("model = ['ditn']", r"model is \('ditn',\), must be text in quotes"),
    ],
)
def test_a_value_of_another_type_is_refused(tmp_path: Path, line: str, message: str) -> None:
    config = tmp_path / "recipe.toml"
    config.write_text(line)
    with pytest.raises(ValueError, match=message):
        load_recipe(config)


def test_a_whole_number_is_a_number(tmp_path: Path) -> None:
    config = tmp_path / "recipe.toml"
    config.write_text("minutes = 5\nbetas = [0, 0.99]\nclip = 1\n")
    recipe = load_recipe(config)
    assert (recipe.minutes, recipe.betas, recipe.clip) == (5, (0, 0.99), 1)


def test_runs_where_there_is_no_sighup(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows. The worker inherits that, since it is forked."""
    monkeypatch.delattr(signal, "SIGHUP")
    assert _run(pictures, tmp_path, "--steps", "1", "--workers", "1", "--no-interpolation-start") == 0


@pytest.mark.parametrize("name", ["checkpoint.pt", "optimizer-1.pt"])
def test_a_damaged_checkpoint_is_named(pictures: Path, tmp_path: Path, name: str) -> None:
    assert _run(pictures, tmp_path, "--steps", "1", "--no-interpolation-start") == 0
    path = tmp_path / name
    whole = path.read_bytes()
    for content, what in (
        (b"", "is empty, as after a power cut"),
        (whole[: len(whole) // 2], "cannot be read: "),
        (bytes(len(whole)), "cannot be read: "),
        (b"no checkpoint", "cannot be read: "),
        (b"\x80", "cannot be read: "),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{re.escape(str(path))} {what}.*restore it.*another --output") as raised:
            _run(pictures, tmp_path, "--resume")
        assert "\n" not in str(raised.value)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(str(path))):
        _run(pictures, tmp_path, "--resume")


@pytest.mark.parametrize(
    "path", sorted((Path(ditn.__file__).parents[1] / "recipes").glob("*.toml")), ids=lambda path: path.stem
)
def test_recipes_are_understood(path: Path) -> None:
    recipe = load_recipe(path)
    assert path.stem == f"{recipe.model}{'-photo' * (recipe.degradation != 'bicubic')}-x{recipe.upscale}"
    assert recipe.init in ("", *ditn.models())


def test_refuses(pictures: Path, tmp_path: Path) -> None:
    config = tmp_path / "recipe.toml"
    for text, message in (("lr = ", "is not TOML"), ("rate = 1", "unknown names rate"), ("patch = 12", "patch is 12")):
        config.write_text(text)
        with pytest.raises(ValueError, match=message):
            train.run(_arguments("--data", str(pictures), "--output", str(tmp_path / "run"), str(config)))
    for steps in ("0", "-5"):
        with pytest.raises(ValueError, match=f"--report-every is {steps}, must be at least 1"):
            _run(pictures, tmp_path / "run", "--report-every", steps)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="loss is 'l2', must be one of l1, charbonnier"):
        Recipe(loss="l2")
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        _run(pictures, tmp_path / "run", "--resume")
    assert _run(pictures, tmp_path / "run", "--steps", "1") == 0
    with pytest.raises(FileExistsError, match="--resume"):
        _run(pictures, tmp_path / "run", "--steps", "1")
