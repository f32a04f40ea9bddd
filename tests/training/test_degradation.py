# SPDX-License-Identifier: Apache-2.0
"""Degradation of photographs: each step by itself against a value worked out otherwise, and all of it from a seed."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from ditn.training import degradation
from ditn.training.degradation import DEGRADE, blur_kernel, photo, shared, sinc_kernel, worn
from ditn.training.recipe import DEGRADATIONS


@pytest.fixture
def picture() -> np.ndarray:
    ramp = np.linspace(40, 220, 96)
    colours = np.broadcast_arrays(ramp[:, None], ramp[None, :], 130.0)
    return np.stack(colours, axis=2).astype(np.uint8)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_function_of_image_and_seed(picture: np.ndarray, scale: int) -> None:
    results = [photo(picture, scale, np.random.default_rng(seed)) for seed in range(20)]
    assert all(result.shape == (96 // scale, 96 // scale, 3) and result.dtype == np.uint8 for result in results)
    for seed, result in enumerate(results):
        np.testing.assert_array_equal(result, photo(picture, scale, np.random.default_rng(seed)))
    assert len({result.tobytes() for result in results}) == 20
    # It is still the picture: noise and ringing cancel over images and neighbours, the ramps stay.
    mean = np.mean(results, axis=0)
    expected = picture.reshape(96 // scale, scale, 96 // scale, scale, 3).mean((1, 3))
    assert np.abs((mean - expected).mean(axis=1)).max() < 20
    assert np.abs(mean - expected).mean() < 8


def test_half_of_the_pictures_stay_sharp() -> None:
    """Stripes of two pixels of the result: a sharp one keeps nearly all of their contrast, whatever its quality."""
    bright = (np.arange(96) // 8) % 2 == 0
    high = np.zeros((96, 96, 3), np.uint8)
    high[:, bright] = 255
    contrasts = []
    for seed in range(60):
        low = photo(high, 4, np.random.default_rng(seed)).astype(float)
        contrasts.append(low[:, bright[::4]].mean() - low[:, ~bright[::4]].mean())
    sharp = np.mean(np.array(contrasts) > 0.7 * 255)
    # Half of 60 within three standard deviations, and the few that Real-ESRGAN's degradation leaves sharp.
    assert 0.3 < sharp < 0.8


def test_a_picture_that_is_only_made_smaller_and_saved(picture: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    for share in ("TWICE", "SOFT", "GRAIN", "WEBP", "SUBSAMPLED"):
        monkeypatch.setattr(degradation, f"_{share}_SHARE", 0)
    monkeypatch.setattr(degradation, "_FILTERS", (Image.Resampling.BOX,))
    monkeypatch.setattr(degradation, "_QUALITY", (60, 60))
    means = picture.reshape(24, 4, 24, 4, 3).mean((1, 3))
    file = io.BytesIO()
    Image.fromarray(np.floor(means + 0.5).astype(np.uint8)).save(file, "jpeg", quality=60, subsampling=0)
    expected = np.asarray(Image.open(file)).astype(int)
    result = shared(picture, 4, np.random.default_rng(0)).astype(int)
    assert np.abs(result - expected).mean() < 0.1  # Pillow rounds some means the other way


def test_gaussian_has_its_moments() -> None:
    angle = 0.6
    kernel = blur_kernel(21, (1.0, 2.0), angle, 1.0, plateau=False).double()
    assert kernel.sum().item() == pytest.approx(1, abs=1e-6)
    axis = torch.arange(-10, 11, dtype=torch.float64)
    xx, yy = (kernel * axis**2).sum(), (kernel * axis[:, None] ** 2).sum()
    xy = (kernel * axis * axis[:, None]).sum()
    c, s = math.cos(angle), math.sin(angle)
    # Turned variances 1 and 4; sampling and the cut at 10 pixels change them by less than a thousandth.
    assert xx.item() == pytest.approx(c * c + 4 * s * s, rel=2e-3)
    assert yy.item() == pytest.approx(s * s + 4 * c * c, rel=2e-3)
    assert xy.item() == pytest.approx((1 - 4) * c * s, rel=2e-3)


def test_other_shapes() -> None:
    def ratio(beta: float, *, plateau: bool) -> float:
        kernel = blur_kernel(7, (1.5, 1.5), 0.0, beta, plateau=plateau)
        return float(kernel[3, 5] / kernel[3, 3])

    q = (2 / 1.5) ** 2
    assert ratio(0.5, plateau=False) == pytest.approx(math.exp(-math.sqrt(q) / 2), rel=1e-5)
    assert ratio(2.0, plateau=False) == pytest.approx(math.exp(-q * q / 2), rel=1e-5)
    assert ratio(2.0, plateau=True) == pytest.approx(1 / (1 + q * q), rel=1e-5)


def test_sinc_cuts_frequencies_off() -> None:
    kernel = sinc_kernel(21, math.pi / 2).double()
    assert kernel.sum().item() == pytest.approx(1, abs=1e-6)
    axis = torch.arange(-10, 11, dtype=torch.float64)
    passed, stopped = ((kernel * torch.cos(w * axis)).sum().item() for w in (0.2 * math.pi, 0.8 * math.pi))
    # A filter of 21 pixels rings by up to a tenth.
    assert passed == pytest.approx(1, abs=0.1)
    assert stopped == pytest.approx(0, abs=0.1)


def test_filter_is_a_convolution_with_mirrored_borders() -> None:
    image, kernel = torch.rand(1, 3, 5, 6), torch.rand(7, 7)
    padded = np.pad(image[0].numpy(), ((0, 0), (3, 3), (3, 3)), mode="symmetric")
    expected = sum(kernel[i, j].item() * padded[:, i : i + 5, j : j + 6] for i in range(7) for j in range(7))
    np.testing.assert_allclose(degradation._filtered(image, kernel)[0].numpy(), expected, rtol=1e-5)


def test_noise_has_its_strength() -> None:
    image = torch.full((1, 3, 128, 128), 0.5)
    image[..., ::2] = 0.25
    ranges = degradation._Round(1.0, (1, 1), (0, 0, 1), (1, 1), (10, 10), (1, 1))
    random = np.random.default_rng(0)
    seen = set()
    for _ in range(12):
        noise = (degradation._noisy(image, ranges, random) - image)[0]
        gray = bool((noise[0] - noise[1]).abs().max() < 1e-6)
        columns = noise[:, :, ::2].std().item(), noise[:, :, 1::2].std().item()
        # Two levels make 2 photons per unit: variance light / 2; luma rounds to other shades, of as many levels.
        poisson = columns[1] > 0.1
        expected = (math.sqrt(0.25 / 2), math.sqrt(0.5 / 2)) if poisson else (10 / 255, 10 / 255)
        # 8192 to 24576 draws: the deviation is known to 2 %.
        assert columns == pytest.approx(expected, rel=0.05)
        seen.add((gray, poisson))
    assert len(seen) == 4


def test_each_has_a_name_that_recipes_take() -> None:
    assert {"bicubic", *DEGRADE} == set(DEGRADATIONS)


def test_refuses_other_sizes(picture: np.ndarray) -> None:
    for degraded in (photo, shared, worn):
        with pytest.raises(ValueError, match="96x95 is no multiple of the scale 4"):
            degraded(picture[:95], 4, np.random.default_rng(0))
