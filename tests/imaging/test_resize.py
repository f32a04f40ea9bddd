# SPDX-License-Identifier: Apache-2.0
"""Bicubic resampling against values worked out by hand, Pillow, and published low-resolution images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from ditn.imaging.resize import bicubic, crop_to_multiple, downscale

# Keys' kernel, a = -0.5, at 0.25, 0.75, 1.25 and 1.75 pixels, in 128ths.
IMPULSE = np.array([111, 29, -9, -3])


def _noise(height: int, width: int, channels: int = 3) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.mark.parametrize("axis", [0, 1])
def test_doubling_an_impulse(axis: int) -> None:
    line = np.full(9, 100, np.uint8)
    line[4] += 128
    image = np.expand_dims(line, 1 - axis)
    height, width = (18, 1) if axis == 0 else (1, 18)
    expected = 100 + np.concatenate([[0] * 5, IMPULSE[::-1], IMPULSE, [0] * 5])
    np.testing.assert_array_equal(bicubic(image, height, width).squeeze(), expected)


def test_halving_stretches_the_kernel() -> None:
    line = np.full((24, 1), 100, np.uint8)
    line[10] += 128
    # Outputs lie at 0.5, 2.5, ... input pixels; the kernel is twice as wide and half as high, rounded half up.
    # Outputs 3 to 6 are 3.5, 1.5, 0.5 and 2.5 pixels away from the impulse.
    expected = np.full(12, 100.0)
    expected[3:7] += IMPULSE[[3, 1, 0, 2]] / 2
    np.testing.assert_array_equal(bicubic(line, 12, 1)[:, 0], np.floor(expected + 0.5))


@pytest.mark.parametrize(("border", "outside"), [("symmetric", [20, 10]), ("replicate", [10, 10])])
def test_border(border: str, outside: list[int]) -> None:
    line = np.array([10, 20, 40, 80], np.uint8)
    # Output 0 lies at -0.25: two of its four pixels are outside.
    expected = np.array([*outside, 10, 20]) @ IMPULSE[[3, 1, 0, 2]] / 128
    assert bicubic(line[None], 1, 8, border=border)[0, 0] == np.floor(expected + 0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(20, 31), (52, 90), (13, 77)])
def test_interior_agrees_with_pillow(size: tuple[int, int]) -> None:
    # Pillow drops the taps beyond the border and takes the axes in the other order: the half levels rounded away in
    # between, up to 1.27 times (the sum of the absolute weights) in each, and the last rounding make up to 2 levels.
    # Contrast is halved so that nothing is clipped in between.
    image = _noise(40, 60) // 2 + 64
    ours = bicubic(image, *size).astype(int)
    pillow = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC)).astype(int)
    margin = [int(np.ceil(3 * max(n / m, 1))) for n, m in zip(size, image.shape, strict=False)]
    inside = tuple(slice(m, -m) for m in margin)
    assert ours[inside].size
    assert np.abs(ours - pillow)[inside].max() <= 2


def test_keeps_constants_and_commutes_with_flips() -> None:
    flat = np.full((17, 23, 3), 201, np.uint8)
    assert (bicubic(flat, 5, 60) == 201).all()
    image = _noise(16, 24)
    np.testing.assert_array_equal(bicubic(image[::-1, ::-1], 4, 6), bicubic(image, 4, 6)[::-1, ::-1])


def test_image_smaller_than_the_kernel() -> None:
    assert bicubic(np.full((1, 1, 3), 7, np.uint8), 4, 4).tolist() == [[[7] * 3] * 4] * 4
    assert (bicubic(np.full((3, 2, 3), 9, np.uint8), 1, 1) == 9).all()


def test_downscale_crops_first() -> None:
    image = _noise(35, 42)
    assert crop_to_multiple(image, 4).shape == (32, 40, 3)
    np.testing.assert_array_equal(downscale(image, 4), bicubic(image[:32, :40], 8, 10))


def test_refuses() -> None:
    with pytest.raises(TypeError, match="float64"):
        bicubic(np.zeros((4, 4, 3)), 2, 2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="4x4 to 0x2"):
        bicubic(_noise(4, 4), 0, 2)
    with pytest.raises(ValueError, match="'wrap'"):
        bicubic(_noise(4, 4), 2, 2, border="wrap")  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize(
    ("dataset", "border", "count"), [("Set5", "symmetric", 5), ("Set14", "replicate", 14), ("BSD100", "replicate", 100)]
)
def test_published_images_bit_by_bit(shared: Path, dataset: str, border: str, count: int, scale: int) -> None:
    folder = shared / "data" / "eval" / dataset
    paths = sorted((folder / "HR").glob("*.png"))
    assert len(paths) == count
    for path in paths:
        low = Image.open(folder / "LR_bicubic" / f"X{scale}" / f"{path.stem}x{scale}.png")
        made = downscale(np.asarray(Image.open(path)), scale, border=border)  # type: ignore[arg-type]
        np.testing.assert_array_equal(made, np.asarray(low), err_msg=path.name)
