# SPDX-License-Identifier: Apache-2.0
"""PSNR and SSIM as super-resolution papers report them: 8-bit images, luma only, a border shaved off."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ditn.imaging.arrays import Pixels8

_SIGMA, _WINDOW = 1.5, 11
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def luma(image: Pixels8) -> npt.NDArray[np.float64]:
    """Y of BT.601 in studio range (16..235), not rounded, of a uint8 RGB [H, W, 3] image."""
    return np.asarray(image @ np.array([65.481, 128.553, 24.966]) / 255 + 16)


def psnr_y(image: Pixels8, target: Pixels8, *, shave: int) -> float:
    """Peak signal-to-noise ratio in dB of the luma, `shave` pixels cut from every side; inf where both agree.

    image, target: uint8 RGB [H, W, 3] or gray [H, W]. Two gray images are compared as they are, 0..255; one beside an
    RGB image counts as RGB. So do published scripts, and it matters: 1.3 dB for the gray image in Set14.
    Raises ValueError if the sizes differ.
    """
    a, b = _pair(image, target, shave)
    error = float(np.mean((a - b) ** 2))
    return 10 * math.log10(255**2 / error) if error else math.inf


def ssim_y(image: Pixels8, target: Pixels8, *, shave: int) -> float:
    """Mean structural similarity of the luma (Wang et al. 2004): Gaussian window 11x11, sigma 1.5, inside only.

    Arguments as `psnr_y`. Raises ValueError as it does, and if less than a window is left after shaving.
    """
    a, b = _pair(image, target, shave)
    if min(a.shape) < _WINDOW:
        raise ValueError(f"SSIM needs {_WINDOW}x{_WINDOW} pixels, {a.shape[0]}x{a.shape[1]} are left after shaving")
    mean_a, mean_b = _blur(a), _blur(b)
    variance_a, variance_b = _blur(a * a) - mean_a**2, _blur(b * b) - mean_b**2
    covariance = _blur(a * b) - mean_a * mean_b
    likeness = (2 * mean_a * mean_b + _C1) * (2 * covariance + _C2)
    return float(np.mean(likeness / ((mean_a**2 + mean_b**2 + _C1) * (variance_a + variance_b + _C2))))


def _pair(image: Pixels8, target: Pixels8, shave: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    if image.shape[:2] != target.shape[:2]:
        raise ValueError(f"images of {image.shape[:2]} and {target.shape[:2]} pixels cannot be compared")
    if image.ndim == target.ndim == 2:
        a, b = image.astype(np.float64), target.astype(np.float64)
    else:
        a, b = luma(as_rgb(image)), luma(as_rgb(target))
    inside = slice(shave, -shave or None)
    return a[inside, inside], b[inside, inside]


def as_rgb(image: Pixels8) -> Pixels8:
    """A gray [H, W] image as [H, W, 3]; another as it is."""
    return image[..., None].repeat(3, axis=2) if image.ndim == 2 else image


def _blur(image: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Gaussian window, separable, without padding."""
    offsets = np.arange(_WINDOW) - _WINDOW // 2
    window = np.exp(-(offsets**2) / (2 * _SIGMA**2))
    window /= window.sum()
    for axis in (0, 1):
        image = np.lib.stride_tricks.sliding_window_view(image, _WINDOW, axis=axis) @ window
    return image
