# SPDX-License-Identifier: Apache-2.0
"""Training images: decoded once into one memory-mapped file, cropped at random from there by worker processes."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ditn.imaging.arrays import Pixels8
from ditn.imaging.atomic import atomic_write
from ditn.imaging.files import READABLE, read_8_bit
from ditn.imaging.metrics import as_rgb
from ditn.imaging.resize import crop_to_multiple, downscale
from ditn.training.degradation import photo
from ditn.training.drawn import drawing, extreme
from ditn.training.recipe import Recipe

# Of the drawn crops, those whose low-resolution partner is a mean over boxes.
_BOX_SHARE = 0.4
# The side of an image without a target: a tenth of the work of four crops of 48.
_EXTREME_SIDE = 32
# Where a crop has its number in the batch, the seed of an image without a target has this.
_EXTREME = 2**31


class Pair(NamedTuple):
    """A high-resolution image [sH, sW, 3] and its low-resolution partner [H, W, 3], both uint8 RGB."""

    high: Pixels8
    low: Pixels8


class Batch(NamedTuple):
    """The images of one training step, uint8 RGB: crops low [b, p, p, 3] and high [b, sp, sp, 3], and the image without
    a target [1, e, e, 3], or [0, e, e, 3] where the recipe wants none."""

    low: Tensor
    high: Tensor
    extreme: Tensor


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

    The partners are bicubic; or, with degradation="photo", degraded (see `degradation`), made again for each crop and,
    of a whole image, always the same.

    The cache's name holds a digest of the files' names, sizes and times and of the scale, so a changed folder gets a
    new cache. It takes 3 bytes per pixel. A file that cannot be read raises an error that names it.
    """

    def __init__(self, paths: Sequence[Path], scale: int, cache: Path, degradation: str = "bicubic") -> None:
        facts = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
        digest = hashlib.sha256(json.dumps([scale, facts]).encode()).hexdigest()[:16]
        self.scale, self._photo = scale, degradation == "photo"
        self._file, self._index = cache / f"images-{digest}.bin", cache / f"images-{digest}.json"
        if not self._index.exists():
            cache.mkdir(parents=True, exist_ok=True)
            self._decode(paths)
        self._shapes: list[tuple[int, list[int], list[int]]] = json.loads(self._index.read_text())
        areas = np.cumsum([low[0] * low[1] for _, _, low in self._shapes], dtype=np.float64)
        self._areas = areas / areas[-1]

    def _decode(self, paths: Sequence[Path]) -> None:
        shapes, offset = [], 0
        # Two runs that begin at once may share the folder: each writes a file of its own, and both files are the same.
        with atomic_write(self._file) as temporary, temporary.open("wb") as file:
            for path in paths:
                try:
                    high = crop_to_multiple(as_rgb(read_8_bit(path)), self.scale)
                    low = downscale(high, self.scale)
                except (OSError, ValueError) as error:
                    raise ValueError(f"{path} cannot be used for training: {error}") from error
                file.write(np.ascontiguousarray(high).tobytes() + low.tobytes())
                shapes.append((offset, high.shape, low.shape))
                offset += high.size + low.size
        # The index comes last and at once: where it is, the cache is whole.
        with atomic_write(self._index) as temporary:
            temporary.write_text(json.dumps(shapes))

    def __len__(self) -> int:
        return len(self._shapes)

    def __getitem__(self, index: int) -> Pair:  # type: ignore[override]
        high, low = self._cached(index)
        return Pair(high, photo(high, self.scale, np.random.default_rng(index)) if self._photo else low)

    def _cached(self, index: int) -> Pair:
        offset, high, low = self._shapes[index]
        middle, end = int(np.prod(high)), int(np.prod(high) + np.prod(low))
        # Mapped again for each image, so that an instance can be sent to another process without the images.
        pixels: Pixels8 = np.memmap(self._file, dtype=np.uint8, mode="r", offset=offset, shape=end)
        return Pair(pixels[:middle].reshape(high), pixels[middle:].reshape(low))

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
        would have seen. Images are chosen in proportion to their pixels. Raises ValueError if an image is smaller than
        the patch.
        """
        numbers = range(size)[part]
        crops = [self._crop(np.random.default_rng((seed, step, number)), patch, shuffle, drawn) for number in numbers]
        lows, highs = zip(*crops, strict=True)
        return torch.tensor(np.stack(lows)), torch.tensor(np.stack(highs))

    def extreme(self, step: int, *, seed: int, side: int) -> Tensor:
        """The image without a target of one training step, [1, side, side, 3] uint8, a function of seed and step
        alone (see `ditn.training.drawn.extreme`)."""
        random = np.random.default_rng((seed, step, _EXTREME))
        low, _, top, left = self._place(random, side)
        return torch.tensor(extreme(side, random, low[top : top + side, left : left + side]))[None]

    def _place(self, random: np.random.Generator, patch: int) -> tuple[Pixels8, Pixels8, int, int]:
        """Some image, low and high, and the corner of a crop of `patch` low-resolution pixels in it."""
        high, low = self._cached(int(np.searchsorted(self._areas, random.random(), side="right")))
        if min(low.shape[:2]) < patch:
            raise ValueError(f"a patch of {patch} does not fit a low-resolution image of {low.shape[1]}x{low.shape[0]}")
        top, left = (int(random.integers(side - patch + 1)) for side in low.shape[:2])
        return low, high, top, left

    def _crop(self, random: np.random.Generator, patch: int, shuffle: bool, drawn: float) -> tuple[Pixels8, Pixels8]:
        if drawn and random.random() < drawn:
            return self._drawn(random, patch)
        low, high, top, left = self._place(random, patch)
        turns, mirrored = int(random.integers(4)), bool(random.integers(2))
        colours = random.permutation(3) if shuffle else np.arange(3)

        def turned(image: Pixels8, scale: int) -> Pixels8:
            crop = image[top * scale : (top + patch) * scale, left * scale : (left + patch) * scale, colours]
            return np.ascontiguousarray(np.rot90(crop[:, ::-1] if mirrored else crop, turns))

        large = turned(high, self.scale)
        return photo(large, self.scale, random) if self._photo else turned(low, 1), large

    def _drawn(self, random: np.random.Generator, patch: int) -> tuple[Pixels8, Pixels8]:
        """A drawing, made smaller as photographs are or, as one that had been drawn at the smaller size with smooth
        edges, by means over boxes; or degraded."""
        large = drawing(patch * self.scale, self.scale, random)
        if self._photo:
            return photo(large, self.scale, random), large
        if random.random() < _BOX_SHARE:
            return np.asarray(Image.fromarray(large).reduce(self.scale)), large
        return downscale(large, self.scale), large


class _Steps(Dataset[Batch]):
    """The batches of a run, by step; of each only what the process of this rank trains on."""

    def __init__(self, images: PairedImages, recipe: Recipe, part: slice) -> None:
        self._images, self._recipe, self._part = images, recipe, part

    def __getitem__(self, step: int) -> Batch:
        recipe = self._recipe
        low, high = self._images.batch(
            step,
            seed=recipe.seed,
            size=recipe.batch,
            patch=recipe.patch,
            shuffle=recipe.channel_shuffle,
            drawn=recipe.drawn,
            part=self._part,
        )
        side = min(recipe.patch, _EXTREME_SIDE)
        if not recipe.consistency:
            return Batch(low, high, low.new_empty(0, side, side, 3))
        return Batch(low, high, self._images.extreme(step, seed=recipe.seed, side=side))


def batches(
    images: PairedImages, recipe: Recipe, *, start: int, part: slice = slice(None), workers: int = 0, pin: bool = False
) -> Iterator[Batch]:
    """The batches from step `start` on, without end, made ahead by `workers` processes (0: when they are asked for);
    `pin` puts them into memory that a GPU copies from while it computes."""
    return iter(
        DataLoader(
            _Steps(images, recipe, part),
            batch_size=None,
            sampler=itertools.count(start),
            num_workers=workers,
            worker_init_fn=_leave_signals,
            pin_memory=pin,
            # The loader draws a seed for its workers, which use none; it must not come from the run's random numbers.
            generator=torch.Generator(),
        )
    )


def _leave_signals(_: int) -> None:
    """A signal to the whole group is the trainer's to answer: it ends its step and then its workers."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def to_tensor(images: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W] in 0..1, channels-last, on the device."""
    return images.to(device, non_blocking=True).permute(0, 3, 1, 2).to(torch.float32).div_(255)


def to_pixels(image: Tensor) -> Pixels8:
    """[3, H, W] in 0..1 -> uint8 [H, W, 3], clamped and rounded half to even."""
    return image.float().clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
