# SPDX-License-Identifier: Apache-2.0
"""The types of images in memory, and of what is wrong with one."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

# [H, W, bands], uint8, uint16 or float32; bands are gray, gray and alpha, RGB, or RGB and alpha.
Pixels = npt.NDArray[Any]
# [H, W, 3] or, where that is said, [H, W].
Pixels8 = npt.NDArray[np.uint8]


class Samples(Protocol):
    """What can be indexed like [H, W, bands] samples: those, or an image that is still on disk."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def ndim(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    def __getitem__(self, place: Any, /) -> Pixels: ...


class ImageError(ValueError):
    """An image that cannot be read or written as asked. The message says what it is and what would do."""
