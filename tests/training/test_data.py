# SPDX-License-Identifier: Apache-2.0
"""Training crops: aligned, reproducible, from a cache that is made once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PROJECT
from PIL import Image

from ditn.imaging.resize import downscale
from ditn.training import data
from ditn.training.batches import batches
from ditn.training.data import PairedImages, list_images, to_pixels, to_tensor
from ditn.training.recipe import Recipe


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two smooth pictures (noise would not survive being made smaller), one of a size no scale divides."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, size, seed in (("a.png", (96, 128), 0), ("b.png", (103, 97), 1)):
        coarse = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(folder / name)
    return folder


def test_hidden_files_and_folders_are_no_training_images(tmp_path) -> None:
    image = Image.fromarray(np.full((8, 8, 3), 99, np.uint8))
    wanted = [tmp_path / name for name in ("a.png", "b/c.jfif", "b/d.JPG")]
    others = [tmp_path / name for name in ("._a.png", ".hidden.png", ".thumbnails/a.png", "b/.cache/deep/e.png")]
    for path in (*wanted, *others):
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, format="PNG")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "notes.txt").write_text("no image")
    assert list_images([tmp_path]) == sorted(wanted)
    # A folder that is named may be hidden itself, and so may a file; and what is named twice is one image.
    assert list_images([tmp_path / ".thumbnails", str(others[0])]) == sorted([others[2], others[0]])
    assert list_images([tmp_path, wanted[0], tmp_path / "b"]) == sorted(wanted)
    (tmp_path / "empty" / "x.png").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"no images \(\.png, .*\) in .*empty"):
        list_images(iter([tmp_path / "empty"]))


def test_pairs_are_the_files_and_their_bicubic(folder: Path, tmp_path: Path) -> None:
    paths = list_images([folder])
    images = PairedImages(paths, 4, tmp_path / "cache")
    assert len(images) == 2
    for path, (high, low) in zip(paths, images, strict=True):
        whole = np.asarray(Image.open(path))
        np.testing.assert_array_equal(high, whole[: whole.shape[0] // 4 * 4, : whole.shape[1] // 4 * 4])
        np.testing.assert_array_equal(low, downscale(whole, 4))


def test_two_runs_may_fill_one_cache(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process begins and ends while this one is halfway through its images."""
    paths, cache, others = list_images([folder]), tmp_path / "cache", []

    def beside(image: np.ndarray, scale: int) -> np.ndarray:
        if not others:
            code = "import sys; from pathlib import Path; from ditn.training.data import *; "
            code += "PairedImages([Path(p) for p in sys.argv[2:]], 4, Path(sys.argv[1]))"
            others.append(subprocess.run([sys.executable, "-c", code, cache, *paths], cwd=PROJECT, check=True))
        return downscale(image, scale)

    monkeypatch.setattr(data, "downscale", beside)
    images = PairedImages(paths, 4, cache)
    assert others
    np.testing.assert_array_equal(images[1].low, downscale(images[1].high, 4))
    assert not list(cache.glob(".*"))


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_crops_are_aligned_and_turned_alike(folder: Path, tmp_path: Path, scale: int) -> None:
    images = PairedImages(list_images([folder]), scale, tmp_path)
    low, high = images.batch(0, seed=0, size=32, patch=16)
    assert low.shape == (32, 16, 16, 3)
    assert high.shape == (32, 16 * scale, 16 * scale, 3)
    for small, large in zip(low.numpy(), high.numpy(), strict=True):
        again = downscale(large, scale)
        # The kernel reaches 2 low-resolution pixels: further inside, a crop cannot be told from its image. A turned one
        # is made smaller along the other axis first, which rounds differently: one level.
        difference = again.astype(int) - small
        assert np.abs(difference[2:-2, 2:-2]).max() <= 1


def test_every_orientation_occurs(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "small.png"
    Image.open(folder / "a.png").crop((0, 0, 32, 32)).save(path)
    only = PairedImages([path], 4, tmp_path)
    low = only[0].low
    views = {np.rot90(v, turns).tobytes() for v in (low, low[:, ::-1]) for turns in range(4)}
    seen = {crop.numpy().tobytes() for crop in only.batch(0, seed=0, size=100, patch=8)[0]}
    assert len(views) == 8
    assert seen == views


def test_a_batch_depends_on_seed_and_step_alone(folder: Path, tmp_path: Path) -> None:
    images = PairedImages(list_images([folder]), 4, tmp_path)
    first = images.batch(7, seed=3, size=4, patch=8)
    images.batch(8, seed=3, size=4, patch=8)
    assert all(map(torch.equal, first, images.batch(7, seed=3, size=4, patch=8)))
    assert not torch.equal(first[0], images.batch(8, seed=3, size=4, patch=8)[0])
    assert not torch.equal(first[0], images.batch(7, seed=4, size=4, patch=8)[0])


@pytest.mark.parametrize("degradation", ["bicubic", "photo"])
def test_workers_change_nothing(folder: Path, tmp_path: Path, degradation: str) -> None:
    images = PairedImages(list_images([folder]), 4, tmp_path, degradation)
    recipe = Recipe(batch=4, patch=8, channel_shuffle=True, degradation=degradation)
    alone, helped = (batches(images, recipe, start=5, workers=workers) for workers in (0, 2))
    for step in range(5, 9):
        crops = images.batch(step, seed=0, size=4, patch=8, shuffle=True, drawn=recipe.drawn)
        expected = (*crops, images.extreme(step, seed=0, side=8))
        assert all(map(torch.equal, next(alone), expected))
        assert all(map(torch.equal, next(helped), expected))


def test_parts_make_up_the_batch(folder: Path, tmp_path: Path) -> None:
    images = PairedImages(list_images([folder]), 4, tmp_path)
    low, high = images.batch(3, seed=0, size=4, patch=8)
    for rank in range(2):
        part = images.batch(3, seed=0, size=4, patch=8, part=slice(rank, None, 2))
        assert torch.equal(part[0], low[rank::2])
        assert torch.equal(part[1], high[rank::2])


def test_colours_are_exchanged_alike(tmp_path: Path) -> None:
    path = tmp_path / "flat.png"
    Image.new("RGB", (64, 64), (10, 120, 230)).save(path)
    images = PairedImages([path], 4, tmp_path)
    low, high = images.batch(0, seed=0, size=60, patch=8, shuffle=True)
    orders = {tuple(crop[0, 0].tolist()) for crop in high}
    assert len(orders) == 6
    assert torch.equal(low[:, 0, 0], high[:, 0, 0])


def test_photos_are_degraded_the_same_each_time(folder: Path, tmp_path: Path) -> None:
    plain = PairedImages(list_images([folder]), 4, tmp_path)
    images = PairedImages(list_images([folder]), 4, tmp_path, "photo")
    for (high, low), before in zip(images, plain, strict=True):
        np.testing.assert_array_equal(high, before.high)
        assert low.shape == before.low.shape
        assert (low != before.low).any()
    np.testing.assert_array_equal(images[0].low, images[0].low)
    assert torch.equal(images.batch(0, seed=0, size=2, patch=8)[1], plain.batch(0, seed=0, size=2, patch=8)[1])


def test_cache_is_made_once_per_content_and_scale(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    PairedImages(list_images([folder]), 4, cache)
    stamps = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert len(stamps) == 2
    PairedImages(list_images([folder]), 4, cache)
    assert stamps == {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    PairedImages(list_images([folder]), 2, cache)
    Image.new("RGB", (64, 64)).save(folder / "c.png")
    assert len(PairedImages(list_images([folder]), 4, cache)) == 3
    assert len(list(cache.iterdir())) == 6


def test_refuses(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        list_images([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no images"):
        list_images([tmp_path / "empty"])
    images = PairedImages(list_images([folder]), 4, tmp_path)
    with pytest.raises(ValueError, match="patch of 32 low-resolution pixels does not fit into any of the 2 images"):
        images.batch(0, seed=0, size=8, patch=32)
    for name in ("broken.png", "0.jpg"):
        (folder / name).write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"0\.jpg cannot be used(.|\n)*broken\.png cannot be used"):
        PairedImages(list_images([folder]), 4, tmp_path / "other")
    assert not list((tmp_path / "other").iterdir())


def test_images_smaller_than_the_patch_give_no_crops(folder: Path, tmp_path: Path) -> None:
    """The others give those that they give without them, whatever the step."""
    without = PairedImages(list_images([folder]), 4, tmp_path / "cache")
    for name in ("0.png", "ab.png", "z.png"):  # before, between and behind the others
        Image.new("RGB", (300, 60), "red").save(folder / name)
    images = PairedImages(list_images([folder]), 4, tmp_path / "cache")
    assert (without.too_small(20), images.too_small(20), images.too_small(15)) == ([], [0, 2, 4], [])
    for step in range(20):
        for crops, others in zip(
            *(one.batch(step, seed=1, size=4, patch=20) for one in (images, without)), strict=True
        ):
            assert torch.equal(crops, others)


def test_images_smaller_than_the_scale_are_too_small(folder: Path, tmp_path: Path) -> None:
    for name, size in (("0.png", (3, 3)), ("ab.png", (200, 3)), ("z.png", (4, 4))):
        Image.new("RGB", size, "red").save(folder / name)
    images = PairedImages(list_images([folder]), 4, tmp_path / "cache")
    assert (images.too_small(1), images.too_small(8)) == ([0, 2], [0, 2, 4])
    np.testing.assert_array_equal(images[3].high, np.asarray(Image.open(folder / "b.png"))[:96, :100])
    np.testing.assert_array_equal(images[4].high, np.asarray(Image.open(folder / "z.png")))


@pytest.mark.parametrize("degradation", ["bicubic", "photo"])
def test_some_of_the_images_are_as_if_they_were_alone(folder: Path, tmp_path: Path, degradation: str) -> None:
    for name in ("0.png", "ab.png"):
        Image.effect_noise((90, 90), 50).save(folder / name)
    paths = list_images([folder])
    images = PairedImages(paths, 4, tmp_path / "all", degradation)
    images.batch(0, seed=0, size=1, patch=8)
    part, alone = images.only([1, 3]), PairedImages([paths[1], paths[3]], 4, tmp_path / "two", degradation)
    assert len(part) == 2
    for ours, theirs in zip(part, alone, strict=True):
        assert all(map(np.array_equal, ours, theirs))
    crops = [one.batch(0, seed=0, size=8, patch=8) for one in (part, alone)]
    assert all(map(torch.equal, *crops))


def test_tensors_and_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1, 5, 6, 3), dtype=np.uint8)
    image = to_tensor(torch.tensor(pixels))
    assert image.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_array_equal(to_pixels(image[0]), pixels[0])
    assert to_pixels(torch.tensor([-0.2, 0.5 / 255, 1.5 / 255, 2.0]).expand(3, 1, 4))[0, :, 0].tolist() == [
        0,
        0,
        2,
        255,
    ]
