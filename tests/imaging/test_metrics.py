# SPDX-License-Identifier: Apache-2.0
"""PSNR-Y and SSIM-Y against values worked out by hand and a plain restatement of the formulas."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest

from ditn.imaging.metrics import as_rgb, luma, psnr_y, ssim_y

Image = npt.NDArray[np.uint8]


def _noise(height: int, width: int, seed: int = 0) -> Image:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _flat(value: int, *, size: int = 20) -> Image:
    return np.full((size, size, 3), value, np.uint8)


def test_luma_of_bt601_in_studio_range() -> None:
    colours = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    np.testing.assert_allclose(luma(colours), [[16, 235, 81.481, 144.553, 40.966]], atol=1e-9)


def test_psnr_of_a_constant_difference() -> None:
    # 10 levels of gray are 10 * 219 / 255 of luma.
    assert psnr_y(_flat(100), _flat(110), shave=4) == pytest.approx(20 * math.log10(255 / (10 * 219 / 255)))


def test_psnr_ignores_the_shaved_border_only() -> None:
    image, target = _flat(50), _flat(50)
    image[:3], image[-3:], image[:, :3], image[:, -3:] = 200, 200, 200, 200
    assert psnr_y(image, target, shave=3) == math.inf
    assert psnr_y(image, target, shave=2) < 20
    assert psnr_y(image, target, shave=0) < psnr_y(image, target, shave=2)


def test_two_gray_images_are_compared_on_their_own_levels() -> None:
    low, high = _flat(100)[..., 0], _flat(110)[..., 0]
    assert psnr_y(low, high, shave=0) == pytest.approx(20 * math.log10(255 / 10))
    assert psnr_y(as_rgb(low), high, shave=0) == pytest.approx(psnr_y(_flat(100), _flat(110), shave=0))


def test_ssim_of_flat_images() -> None:
    a, b, c1 = 100.0, 110.0, (0.01 * 255) ** 2
    expected = (2 * a * b + c1) / (a * a + b * b + c1)
    assert ssim_y(_flat(100)[..., 0], _flat(110)[..., 0], shave=0) == pytest.approx(expected, abs=1e-9)


def test_ssim_of_equal_images_is_one() -> None:
    assert ssim_y(_noise(30, 20), _noise(30, 20), shave=2) == pytest.approx(1, abs=1e-9)


def test_ssim_window_by_window() -> None:
    image, target = _noise(15, 16), _noise(15, 16, seed=1) // 2
    x, y = luma(image)[1:-1, 1:-1], luma(target)[1:-1, 1:-1]
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    scores = []
    for top in range(x.shape[0] - 10):
        for left in range(x.shape[1] - 10):
            a, b = (t[top : top + 11, left : left + 11] for t in (x, y))
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
            covariance = (window * (a - mean_a) * (b - mean_b)).sum()
            c1, c2 = 6.5025, 58.5225
            scores.append(
                ((2 * mean_a * mean_b + c1) * (2 * covariance + c2))
                / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
            )
    assert len(scores) == 3 * 4
    assert ssim_y(image, target, shave=1) == pytest.approx(np.mean(scores), abs=1e-9)


def test_refuses() -> None:
    with pytest.raises(ValueError, match=r"\(20, 20\).*\(21, 21\)"):
        psnr_y(_flat(0), _flat(0, size=21), shave=0)
    with pytest.raises(ValueError, match="10x10"):
        ssim_y(_flat(0), _flat(0), shave=5)
