# SPDX-License-Identifier: Apache-2.0
"""Training images: decoded once into one memory-mapped file, cropped at random from there."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from ditn.resize import crop_to_multiple, downscale

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
Pixels = npt.NDArray[np.uint8]


class Pair(NamedTuple):
    """A high-resolution image [sH, sW, 3] and its low-resolution partner [H, W, 3], both uint8 RGB."""

    high: Pixels
    low: Pixels


def list_images(sources: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The images of folders (recursively) and files, sorted by name. Raises FileNotFoundError for what is not there,
    ValueError if there is none at all."""
    found: list[Path] = []
    for source in map(Path, sources):
        if source.is_dir():
            found += [path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES]
        elif source.is_file():
            found.append(source)
        else:
            raise FileNotFoundError(f"{source} is neither an image nor a folder")
    if not found:
        raise ValueError(f"no images ({', '.join(SUFFIXES)}) in {', '.join(map(str, sources))}")
    return sorted(found)


def read_rgb(path: Path) -> Pixels:
    """An image file as uint8 RGB [H, W, 3]."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


class PairedImages(Sequence[Pair]):
    """Images and their bicubic partners in one memory-mapped cache file, made on first use.

    The cache's name holds a digest of the files' names, sizes and times and of the scale, so a changed folder gets a
    new cache. It takes 3 bytes per pixel. A file that cannot be read raises an error that names it.
    """

    def __init__(self, paths: Sequence[Path], scale: int, cache: Path) -> None:
        facts = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
        digest = hashlib.sha256(json.dumps([scale, facts]).encode()).hexdigest()[:16]
        self.scale = scale
        self._file, self._index = cache / f"images-{digest}.bin", cache / f"images-{digest}.json"
        if not self._index.exists():
            cache.mkdir(parents=True, exist_ok=True)
            self._decode(paths)
        self._shapes: list[tuple[int, list[int], list[int]]] = json.loads(self._index.read_text())
        areas = np.cumsum([low[0] * low[1] for _, _, low in self._shapes], dtype=np.float64)
        self._areas = areas / areas[-1]
        self._bytes: Pixels = np.memmap(self._file, dtype=np.uint8, mode="r")

    def _decode(self, paths: Sequence[Path]) -> None:
        shapes, offset = [], 0
        partial = self._file.with_suffix(".partial")
        try:
            with partial.open("wb") as file:
                for path in paths:
                    try:
                        high = crop_to_multiple(read_rgb(path), self.scale)
                        low = downscale(high, self.scale)
                    except (OSError, ValueError, Image.DecompressionBombError) as error:
                        raise ValueError(f"{path} cannot be used for training: {error}") from error
                    file.write(np.ascontiguousarray(high).tobytes() + low.tobytes())
                    shapes.append((offset, high.shape, low.shape))
                    offset += high.size + low.size
            os.replace(partial, self._file)
            # The index comes last and at once: where it is, the cache is whole.
            partial.write_text(json.dumps(shapes))
            os.replace(partial, self._index)
        finally:
            partial.unlink(missing_ok=True)

    def __len__(self) -> int:
        return len(self._shapes)

    def __getitem__(self, index: int) -> Pair:  # type: ignore[override]
        offset, high, low = self._shapes[index]
        middle = offset + int(np.prod(high))
        return Pair(
            self._bytes[offset:middle].reshape(high), self._bytes[middle : middle + int(np.prod(low))].reshape(low)
        )

    def batch(self, step: int, *, seed: int, size: int, patch: int) -> tuple[Tensor, Tensor]:
        """The crops of one training step: low [size, 3, patch, patch] and high [size, 3, s * patch, s * patch],
        float32 in 0..1, channels-last, each flipped and rotated at random.

        A function of seed and step alone, so a run that is resumed sees what an unbroken one would have seen.
        Images are drawn in proportion to their pixels. Raises ValueError if an image is smaller than the patch.
        """
        crops = [self._crop(np.random.default_rng((seed, step, number)), patch) for number in range(size)]
        lows, highs = zip(*crops, strict=True)
        return to_tensor(np.stack(lows)), to_tensor(np.stack(highs))

    def _crop(self, random: np.random.Generator, patch: int) -> tuple[Pixels, Pixels]:
        index = int(np.searchsorted(self._areas, random.random(), side="right"))
        high, low = self[index]
        if min(low.shape[:2]) < patch:
            raise ValueError(f"a patch of {patch} does not fit a low-resolution image of {low.shape[1]}x{low.shape[0]}")
        top, left = (int(random.integers(side - patch + 1)) for side in low.shape[:2])
        turns, mirrored = int(random.integers(4)), bool(random.integers(2))
        crops = []
        for image, scale in ((low, 1), (high, self.scale)):
            crop = image[top * scale : (top + patch) * scale, left * scale : (left + patch) * scale]
            crops.append(np.ascontiguousarray(np.rot90(crop[:, ::-1] if mirrored else crop, turns)))
        return crops[0], crops[1]


def to_tensor(images: Pixels) -> Tensor:
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W] in 0..1, channels-last."""
    return torch.tensor(images).permute(0, 3, 1, 2).to(torch.float32).div_(255)


def to_pixels(image: Tensor) -> Pixels:
    """[3, H, W] in 0..1 -> uint8 [H, W, 3], clamped and rounded half to even."""
    return image.float().clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
