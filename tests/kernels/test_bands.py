# SPDX-License-Identifier: Apache-2.0
"""The algebra of csrc/cuda/bands.cuh in numpy: what its table gives to the lanes of a warp is a convolution."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

LANES, SIDE = 32, 8


def table(taps: np.ndarray) -> np.ndarray:
    """[places, taps in y, 2]: neighbouring taps of a row, the first of them at -1 to 2; the last place is zeros."""
    row = np.pad(taps, ((0, 0), (1, 2)))
    return np.stack([*(row[:, place : place + 2] for place in range(4)), np.zeros((3, 2))])


def bands(taps: np.ndarray) -> np.ndarray:
    """[taps in y, x', x]: the factor b of mma.m16n8k8, of which lane l holds the elements (2 (l % 4), l / 4) and the
    one below (PTX ISA, "Matrix fragments for mma.m16n8k8"). Its place in the table is computed as in band_place."""
    words, found = table(taps), np.full((3, SIDE, SIDE), np.nan)
    for lane in range(LANES):
        column, row = 2 * (lane % 4), lane // 4
        first = column - row + 1
        found[:, column : column + 2, row] = words[first + 1 if -1 <= first <= 2 else 4]
    return found


def test_lines_times_bands_are_a_convolution() -> None:
    """Two patches, one above the other in the product, each with zeros above and below, as if it were alone."""
    random = np.random.default_rng(0)
    taps, patches = random.standard_normal((3, 3)), random.standard_normal((2, SIDE, SIDE))
    lines = np.pad(patches, ((0, 0), (1, 1), (0, 0)))
    # The factor a: the lines that the taps of row i see, of both patches.
    seen = [lines[:, i : i + SIDE].reshape(2 * SIDE, SIDE) for i in range(3)]
    product = sum(a @ b for a, b in zip(seen, bands(taps), strict=True))
    weight = torch.from_numpy(taps)[None, None]
    exact = F.conv2d(torch.from_numpy(patches)[:, None], weight, padding=1).numpy()
    np.testing.assert_allclose(product.reshape(2, SIDE, SIDE), exact[:, 0], rtol=0, atol=1e-13)
