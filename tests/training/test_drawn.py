# SPDX-License-Identifier: Apache-2.0
"""Drawn training images: what is promised of them, the same each time, and mixed in as the recipe says."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ditn.training import canvas, drawn
from ditn.training.batches import batches
from ditn.training.data import PairedImages
from ditn.training.drawn import drawing, extreme
from ditn.training.recipe import Recipe
from ditn.training.update import consistency_loss


def _random(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture
def images(tmp_path: Path) -> PairedImages:
    """One image of nothing but a middle gray, from which every drawing can be told."""
    path = tmp_path / "gray.png"
    Image.new("RGB", (256, 256), (127, 127, 127)).save(path)
    return PairedImages([path], 4, tmp_path)


@pytest.mark.parametrize("kind", drawn._KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_draws_at_every_scale(kind: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawn, "_KINDS", (kind,))
    for scale in (1, 2, 3, 4):
        pixels = [drawing(24 * scale, scale, _random(seed)) for seed in range(6)]
        assert {p.shape for p in pixels} == {(24 * scale, 24 * scale, 3)}
        assert sum(len(np.unique(p.reshape(-1, 3), axis=0)) > 1 for p in pixels) >= 4


def test_a_drawing_is_a_function_of_its_seed() -> None:
    same, again, other = (drawing(96, 4, _random(seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(same, again)
    assert (same != other).any()


def test_drawings_have_full_contrast_hard_and_smooth_edges() -> None:
    pixels = [drawing(48, 4, _random(seed)) for seed in range(80)]
    two_colours = [p for p in pixels if len(np.unique(p.reshape(-1, 3), axis=0)) == 2]
    black_and_white = [p for p in pixels if p.min() == 0 and p.max() == 255 and (p.std(2) == 0).all()]
    # Three in ten have hard edges, half are black and white: 24 and 40 are expected, fewer where nothing is drawn.
    assert 10 <= len(two_colours) <= 45
    assert 20 <= len(black_and_white) <= 55


def test_extremes_reach_the_highest_frequencies() -> None:
    photograph = _random(0).integers(90, 160, (32, 32, 3), dtype=np.uint8)
    found = [extreme(32, _random(seed), photograph) for seed in range(300)]
    assert {(e.shape, e.dtype) for e in found} == {((32, 32, 3), np.dtype(np.uint8))}
    checkers = [e for e in found if (e[:-1, :-1] == e[1:, 1:]).all() and (e[:, :-1] != e[:, 1:]).any(2).all()]
    assert checkers, "no checker of single pixels"
    binary = [e for e in found if set(np.unique(e)) == {0, 255}]
    assert len(binary) >= 100
    # A photograph is dithered to its own brightness, a half.
    assert any(0.4 < (e / 255).mean() < 0.6 for e in binary)
    np.testing.assert_array_equal(found[7], extreme(32, _random(7), photograph))


@pytest.mark.parametrize("degradation", ["bicubic", "photo"])
def test_recipes_mix_drawings_in(images: PairedImages, tmp_path: Path, degradation: str) -> None:
    images = PairedImages([tmp_path / "gray.png"], 4, tmp_path, degradation)
    low, high = images.batch(0, seed=0, size=200, patch=16, drawn=0.25)
    is_drawn = np.array([(crop != 127).any().item() for crop in high])
    # A share of 0.25 of 200: 50, less the few that are of one colour, within three standard deviations.
    assert 25 <= is_drawn.sum() <= 69
    assert low.shape == (200, 16, 16, 3)
    assert torch.equal(images.batch(0, seed=0, size=200, patch=16, drawn=0.25)[0], low)
    assert (images.batch(0, seed=0, size=200, patch=16)[1] == 127).all()


def test_drawn_partners_are_means_or_bicubic(images: PairedImages) -> None:
    low, high = images.batch(1, seed=0, size=100, patch=16, drawn=1.0)
    means = high.double().reshape(100, 16, 4, 16, 4, 3).mean((2, 4))
    exact = (means - low).abs().amax((1, 2, 3)) <= 0.5
    # Four in ten are means of boxes, rounded; a bicubic one equals them only where nothing is drawn.
    assert 25 <= exact.sum() <= 75
    assert (means - low).abs().mean() < 10


def test_batches_bring_one_extreme_unless_not_wanted(images: PairedImages) -> None:
    recipe = Recipe(batch=1, patch=16)
    first, second = (next(batches(images, recipe, start=5, workers=workers)) for workers in (0, 1))
    assert first.extreme.shape == (1, 16, 16, 3)
    assert torch.equal(first.extreme, second.extreme)
    without = next(batches(images, Recipe(batch=1, patch=16, consistency=0.0), start=5))
    assert without.extreme.shape == (0, 16, 16, 3)
    assert next(batches(images, Recipe(batch=1, patch=64, drawn=0.0), start=0)).extreme.shape == (1, 32, 32, 3)


def test_consistency_loss_by_hand() -> None:
    image = torch.tensor([[0.0, 1.0]]).expand(1, 1, 1, 2)
    exact = image.repeat_interleave(2, -1).repeat_interleave(2, -2)
    assert consistency_loss(exact, image) == 0
    # Ringing that averages out and stays within -0.3 .. 1.3 is free.
    assert consistency_loss(exact + 0.2 * torch.tensor([1.0, -1, 1, -1]), image) < 1e-7
    # One of eight values 1.7 above 1.3, which moves one of two means by 3 / 4.
    far = exact.clone()
    far[..., 0, 0] = 3.0
    assert consistency_loss(far, image).item() == pytest.approx(1.7 / 8 + 0.75 / 2)


def test_without_fonts_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    canvas._folder.cache_clear()
    canvas.load_font.cache_clear()
    monkeypatch.setattr(drawn, "_KINDS", (drawn._page,))
    monkeypatch.setattr(canvas, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"pip install 'ditn-kernels\[train\]'.*--drawn 0 --consistency 0"):
        drawing(32, 4, _random(0))
    canvas._folder.cache_clear()


def test_refuses_shares_and_weights_that_are_none() -> None:
    for fields in ({"drawn": 1.5}, {"drawn": -0.1}, {"consistency": -1.0}, {"drawn": math.nan}):
        with pytest.raises(ValueError, match=f"{next(iter(fields))} is {next(iter(fields.values()))}"):
            Recipe(**fields)
