# SPDX-License-Identifier: Apache-2.0
"""The comparison sheet: where its detail lies, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from ditn.imaging import contact_sheet


def test_detail_is_where_the_error_is() -> None:
    target, plain = (np.full((100, 130, 3), 90, dtype=np.uint8) for _ in range(2))
    plain[50:60, 100:110] = 91
    plain[0:4, 0:4] = 96  # fewer pixels, but further off: 16 * 36 against 100 * 1
    assert contact_sheet.most_telling(target, plain, 40) == (0, 0)
    plain[50:60, 100:110] = 94
    top, left = contact_sheet.most_telling(target, plain, 40)
    assert top <= 50 < 60 <= top + 40
    assert left <= 100 < 110 <= left + 40


def test_small_images_are_shown_whole() -> None:
    target = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    row = contact_sheet.row("small", target, {"same": target})
    pixels = np.asarray(row)
    np.testing.assert_array_equal(pixels[20:, 246 : 246 + 240], pixels[20:, 2 * 246 :])


def test_stack() -> None:
    rows = [Image.new("RGB", (10, 4), "red"), Image.new("RGB", (20, 5), "blue")]
    pixels = np.asarray(contact_sheet.stack(rows))
    assert pixels.shape == (4 + 6 + 5, 20, 3)
    assert pixels[0, 0].tolist() == [255, 0, 0]
    assert pixels[10, 19].tolist() == [0, 0, 255]
    assert pixels[0, 15].tolist() == [255, 255, 255]
    with pytest.raises(ValueError, match="at least one image"):
        contact_sheet.stack([])
