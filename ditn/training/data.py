# SPDX-License-Identifier: Apache-2.0
"""Training images: decoded once into one memory-mapped file, and crops of them."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ditn.imaging.arrays import Pixels8
from ditn.imaging.atomic import atomic_write
from ditn.imaging.files import READABLE, read_8_bit
from ditn.imaging.metrics import as_rgb
from ditn.imaging.resize import crop_to_multiple, downscale
from ditn.training.degradation import DEGRADE
from ditn.training.drawn import drawing, extreme

# Of the drawn crops, those whose low-resolution partner is a mean over boxes.
_BOX_SHARE = 0.4
# Where a crop has its number in the batch, the seed of an image without a target has this.
_EXTREME = 2**31


class Pair(NamedTuple):
    """A high-resolution image [sH, sW, 3] and its low-resolution partner [H, W, 3], both uint8 RGB."""

    high: Pixels8
    low: Pixels8


class _Cached(NamedTuple):
    """An image in the cache and where it begins there."""

    pixels: Pixels8
    place: int


class Crop(NamedTuple):
    """A square of an image, [p, p, 3] uint8 RGB, before it is copied: `pixels`, turned and mirrored as a view, whose
    colours are then taken in the order of `colours`. `place` is where the view's first byte lies in the cache's file;
    None if it does not lie there."""

    pixels: Pixels8
    colours: tuple[int, ...] = (0, 1, 2)
    place: int | None = None

    def copied(self) -> Pixels8:
        return np.ascontiguousarray(self.pixels[..., self.colours])


def list_images(sources: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The images of folders (recursively) and files, each once, sorted by name. Hidden files and what is in hidden
    folders are left out, as by `ditn upscale`: they are no images (macOS' ._ twins) or not meant (.thumbnails). Raises
    FileNotFoundError for what is not there, ValueError if there is none at all."""
    named, found = list(map(Path, sources)), set[Path]()
    for source in named:
        if source.is_dir():
            found |= {path for path in source.rglob("*") if _is_image(path, source)}
        elif source.is_file():
            found.add(source)
        else:
            raise FileNotFoundError(f"{source} is neither an image nor a folder")
    if not found:
        raise ValueError(f"no images ({', '.join(READABLE)}) in {', '.join(map(str, named))}")
    return sorted(found)


def _is_image(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return not hidden and path.suffix.lower() in READABLE and not path.is_dir()


class PairedImages(Sequence[Pair]):
    """Images and their low-resolution partners, in one memory-mapped cache file that is made on first use.

    The partners are bicubic; or, with another degradation (see `degradation`), made again for each crop and, of a whole
    image, always the same.

    The cache's name holds a digest of the files' names, sizes and times and of the scale, so a changed folder gets a
    new cache. `cache` is its file: uint8, 3 bytes per pixel. Files that cannot be read raise an error that names all.
    """

    def __init__(self, paths: Sequence[Path], scale: int, cache: Path, degradation: str = "bicubic") -> None:
        facts = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
        digest = hashlib.sha256(json.dumps([scale, facts]).encode()).hexdigest()[:16]
        self.scale, self._degrade = scale, DEGRADE.get(degradation)
        self.cache, self._index = cache / f"images-{digest}.bin", cache / f"images-{digest}.json"
        if not self._index.exists():
            cache.mkdir(parents=True, exist_ok=True)
            self._decode(paths)
        self._shapes: list[tuple[int, list[int], list[int]]] = json.loads(self._index.read_text())
        self._shares: dict[int, NDArray[np.float64]] = {}

    def _decode(self, paths: Sequence[Path]) -> None:
        shapes, offset, failures = [], 0, []
        # Two runs that begin at once may share the folder: each writes a file of its own, and both files are the same.
        with atomic_write(self.cache) as temporary, temporary.open("wb") as file:
            for path in paths:
                try:
                    high = crop_to_multiple(as_rgb(read_8_bit(path)), self.scale)
                    # Of an image narrower than `scale` nothing is left: it is too small for any patch.
                    low = downscale(high, self.scale) if high.size else high
                except (OSError, ValueError) as error:
                    failures.append(f"{path} cannot be used for training: {error}")
                    continue
                file.write(np.ascontiguousarray(high).tobytes() + low.tobytes())
                shapes.append((offset, high.shape, low.shape))
                offset += high.size + low.size
            if failures:
                raise ValueError("\n".join(failures))
        # The index comes last and at once: where it is, the cache is whole.
        with atomic_write(self._index) as temporary:
            temporary.write_text(json.dumps(shapes))

    def __len__(self) -> int:
        return len(self._shapes)

    @property
    def made_again(self) -> bool:
        """Whether each crop's partner is made anew, so that none lies in the cache."""
        return self._degrade is not None

    def too_small(self, patch: int) -> list[int]:
        """The numbers of the images into which no square of `patch` low-resolution pixels fits. They give no crops."""
        return [number for number, (_, _, low) in enumerate(self._shapes) if min(low[:2]) < patch]

    def only(self, numbers: Sequence[int]) -> PairedImages:
        """The images of these numbers, counted anew from 0, in the same cache."""
        part = copy.copy(self)
        part._shapes, part._shares = [self._shapes[number] for number in numbers], {}
        return part

    def __getitem__(self, index: int) -> Pair:  # type: ignore[override]
        high, low = (one.pixels for one in self._cached(index))
        return Pair(high, self._degrade(high, self.scale, np.random.default_rng(index)) if self._degrade else low)

    def _cached(self, index: int) -> tuple[_Cached, _Cached]:
        """High and low."""
        offset, high, low = self._shapes[index]
        middle, end = int(np.prod(high)), int(np.prod(high) + np.prod(low))
        # Mapped again for each image, so that an instance can be sent to another process without the images.
        pixels: Pixels8 = np.memmap(self.cache, dtype=np.uint8, mode="r", offset=offset, shape=end)
        return _Cached(pixels[:middle].reshape(high), offset), _Cached(pixels[middle:].reshape(low), offset + middle)

    def batch(
        self,
        step: int,
        *,
        seed: int,
        size: int,
        patch: int,
        shuffle: bool = False,
        drawn: float = 0.0,
        part: slice = slice(None),
    ) -> tuple[Tensor, Tensor]:
        """The crops of one training step: low [size, patch, patch, 3] and high [size, s * patch, s * patch, 3], uint8,
        each flipped and rotated at random and, with `shuffle`, its colours exchanged. A share `drawn` of them is drawn
        by code instead of cut from an image (see `ditn.training.drawn`). `part` takes some of them.

        A function of seed and step alone, so a run that is resumed, or has other workers, sees what an unbroken one
        would have seen. Images are chosen in proportion to their pixels, but for those that are `too_small`. Raises
        ValueError if all are.
        """
        pairs = self.crops(step, seed=seed, size=size, patch=patch, shuffle=shuffle, drawn=drawn, part=part)
        lows, highs = zip(*((low.copied(), high.copied()) for low, high in pairs), strict=True)
        return torch.tensor(np.stack(lows)), torch.tensor(np.stack(highs))

    def crops(
        self, step: int, *, seed: int, size: int, patch: int, shuffle: bool, drawn: float, part: slice
    ) -> Iterator[tuple[Crop, Crop]]:
        """Low and high of each crop of `batch`."""
        for number in range(size)[part]:
            yield self._crop(np.random.default_rng((seed, step, number)), patch, shuffle, drawn)

    def extreme(self, step: int, *, seed: int, side: int) -> Tensor:
        """The image without a target of one training step, [1, side, side, 3] uint8, a function of seed and step
        alone (see `ditn.training.drawn.extreme`)."""
        random = np.random.default_rng((seed, step, _EXTREME))
        low, _, top, left = self._square(random, side)
        return torch.tensor(extreme(side, random, low.pixels[top : top + side, left : left + side]))[None]

    def _square(self, random: np.random.Generator, patch: int) -> tuple[_Cached, _Cached, int, int]:
        """Some image, low and high, and the corner of a square of `patch` low-resolution pixels in it."""
        high, low = self._cached(int(np.searchsorted(self._shares_up_to(patch), random.random(), side="right")))
        height, width = low.pixels.shape[:2]
        top, left = (int(random.integers(side - patch + 1)) for side in (height, width))
        return low, high, top, left

    def _shares_up_to(self, patch: int) -> NDArray[np.float64]:
        """Of the pixels of all images that are not too small, the share that each and those before it have."""
        if patch not in self._shares:
            areas = np.array([low[0] * low[1] for _, _, low in self._shapes], dtype=np.float64)
            areas[self.too_small(patch)] = 0
            if not areas.any():
                raise ValueError(
                    f"a patch of {patch} low-resolution pixels does not fit into any of the {len(self)} images"
                )
            self._shares[patch] = np.cumsum(areas) / areas.sum()
        return self._shares[patch]

    def _crop(self, random: np.random.Generator, patch: int, shuffle: bool, drawn: float) -> tuple[Crop, Crop]:
        if drawn and random.random() < drawn:
            low, high = self._drawn(random, patch)
            return Crop(low), Crop(high)
        small, large, top, left = self._square(random, patch)
        turns, mirrored = int(random.integers(4)), bool(random.integers(2))
        colours = tuple(random.permutation(3)) if shuffle else (0, 1, 2)

        def turned(image: _Cached, scale: int) -> Crop:
            square = image.pixels[top * scale : (top + patch) * scale, left * scale : (left + patch) * scale]
            view = np.rot90(square[:, ::-1] if mirrored else square, turns)
            return Crop(view, colours, image.place + view.ctypes.data - image.pixels.ctypes.data)

        crop = turned(large, self.scale)
        return Crop(self._degrade(crop.copied(), self.scale, random)) if self._degrade else turned(small, 1), crop

    def _drawn(self, random: np.random.Generator, patch: int) -> tuple[Pixels8, Pixels8]:
        """A drawing, made smaller as photographs are or, as one that had been drawn at the smaller size with smooth
        edges, by means over boxes; or degraded."""
        large = drawing(patch * self.scale, self.scale, random)
        if self._degrade:
            return self._degrade(large, self.scale, random), large
        if random.random() < _BOX_SHARE:
            return np.asarray(Image.fromarray(large).reduce(self.scale)), large
        return downscale(large, self.scale), large


def to_tensor(images: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W] in 0..1, channels-last, on the device."""
    return images.to(device, non_blocking=True).permute(0, 3, 1, 2).to(torch.float32).div_(255)


def to_pixels(image: Tensor) -> Pixels8:
    """[3, H, W] in 0..1 -> uint8 [H, W, 3], clamped and rounded half to even."""
    return image.float().clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
