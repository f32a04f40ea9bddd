# SPDX-License-Identifier: Apache-2.0
"""Bicubic resampling of 8-bit images as MATLAB's ``imresize`` does it, bit for bit.

The degradation that super-resolution papers train and test on. Antialiased cubic convolution with
a = -0.5 (R. Keys, "Cubic convolution interpolation for digital image processing", 1981): when an axis shrinks, the
kernel is stretched by the same factor. Each axis is one pass, and the first pass is rounded to 8 bits too.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from ditn.imaging.arrays import Pixels8

Border = Literal["symmetric", "replicate"]


def bicubic(image: Pixels8, height: int, width: int, *, border: Border = "symmetric") -> Pixels8:
    """Resample a uint8 [H, W, C] (or [H, W]) image to ``height`` x ``width`` pixels.

    ``border`` says what lies outside: "symmetric" mirrors the image (newer MATLAB), "replicate" repeats its edge
    (older MATLAB, with which Set14's and BSD100's published low-resolution files were made).

    Raises:
        TypeError: the image is not uint8.
        ValueError: an empty image or output, or an unknown border.
    """
    if image.dtype != np.uint8:
        raise TypeError(f"bicubic resamples uint8 images, got {image.dtype}")
    if min(*image.shape[:2], height, width) < 1:
        raise ValueError(f"cannot resample {image.shape[0]}x{image.shape[1]} to {height}x{width} pixels")
    rows = _resample_rows(image, height, border)
    return np.ascontiguousarray(_resample_rows(rows.swapaxes(0, 1), width, border).swapaxes(0, 1))


def downscale(image: Pixels8, scale: int, *, border: Border = "symmetric") -> Pixels8:
    """The low-resolution partner of ``image``: cropped to a multiple of ``scale``, then shrunk by it."""
    image = crop_to_multiple(image, scale)
    return bicubic(image, image.shape[0] // scale, image.shape[1] // scale, border=border)


def crop_to_multiple(image: Pixels8, scale: int) -> Pixels8:
    """``image`` without the rows at the bottom and columns at the right that exceed a multiple of ``scale``."""
    height, width = (size - size % scale for size in image.shape[:2])
    return image[:height, :width]


def _resample_rows(image: Pixels8, size: int, border: Border) -> Pixels8:
    indices, weights = _taps(image.shape[0], size, border)
    total = np.zeros((size, *image.shape[1:]))
    column = (slice(None), *(None,) * (image.ndim - 1))
    for tap in range(indices.shape[1]):
        total += weights[:, tap][column] * image[indices[:, tap]]
    return np.floor(np.clip(total, 0, 255) + 0.5).astype(np.uint8)


def _taps(length: int, size: int, border: Border) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """For each of ``size`` outputs the source indices and weights [size, taps], the weights summing to 1."""
    shrink = min(size / length, 1.0)
    centre = (np.arange(size) + 0.5) * (length / size) - 0.5
    radius = 2.0 / shrink
    indices = np.floor(centre - radius).astype(np.intp)[:, None] + np.arange(int(np.ceil(2 * radius)) + 2)
    weights = _cubic((centre[:, None] - indices) * shrink)
    weights /= weights.sum(axis=1, keepdims=True)
    if border == "symmetric":
        indices %= 2 * length
        indices = np.minimum(indices, 2 * length - 1 - indices)
    elif border == "replicate":
        indices = np.clip(indices, 0, length - 1)
    else:
        raise ValueError(f'border is "symmetric" or "replicate", got {border!r}')
    return indices, weights


def _cubic(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x**2 + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0.0))
