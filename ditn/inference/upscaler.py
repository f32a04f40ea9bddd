# SPDX-License-Identifier: Apache-2.0
"""Upscaler: pictures of any size through a model, in tiles that change nothing, within a bound of memory."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ditn.inference.chooser import AUTO, Choice, Chooser, of_scale
from ditn.inference.ensemble import self_ensemble as average_orientations
from ditn.inference.graphs import Captured
from ditn.inference.guard import BLOCK, GUARDS, Finding, Guard, compare, repaired, within_neighbours
from ditn.inference.memory import FIXED, bytes_per_pixel, free_memory
from ditn.inference.tiles import Region, cut, reflected, round_up
from ditn.model.checkpoint import load
from ditn.model.network import DITN

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

Pixels = npt.NDArray[Any]
# A finished part of the output: its top and left in output pixels, and its samples [h, w, bands].
Emit = Callable[[int, int, Pixels], None]

_SHARE_OF_FREE_MEMORY = 0.5
_RANGE = {"uint8": 255, "uint16": 65535}


class Upscaler:
    """Enlarges numpy arrays, PIL images and tensors by a model's factor, whatever their size.

    `model` is a DITN, the name of one that ships, a file of weights, or "auto": then each picture is looked at and goes
    through the model that suits it, the one for clean pictures or the one for photographs (see `suited`).

    Calling it gives back what came in: uint8, uint16 or float32 arrays [H, W] or [H, W, bands], PIL images, or float
    tensors [B, 3, H, W] in 0..1. Bands are gray, gray and alpha, RGB, or RGB and alpha. Integers are clamped and
    rounded half to even; floats are neither. Gray goes through the model as equal colours, of which the mean comes
    back. Alpha, unless it is constant, goes through the model like a gray picture, so that its edges stay where the
    colours' are, and is held within the range of the nearest 3 x 3 input pixels, so that no haze or ringing is left
    where it was constant; where it is 0 the colours are first taken from the visible pixels around, so that no dark
    fringe grows in.

    scale       of the model; with "auto", by default the largest that ships
    tile        "auto", the side of a tile in input pixels (rounded up to the grid), or 0 for the whole picture.
                Tiles overlap by the model's reach and lie on its patch grid: the result is the whole picture's to
                rounding.
    max_memory  bytes that a forward pass may take (default: half of what is free on the device); "auto" chooses the
                largest tile that is predicted to keep it. Running out of memory all the same halves the tile and
                goes on.
    device, dtype   where to run, by default where the model is; the caller's model is left alone
    cuda_graph  record the model's launches once for each shape of a tile and replay them, which saves small pictures
                most of their time; on a CUDA device only
    self_ensemble   the mean over eight flips and rotations: eight times the time, a little better
    guard       what becomes of places whose enlargement, averaged back to the input's size, is not the input, as
                happens to text and hard edges with weights trained on photographs alone (see `ditn.inference.guard`):
                "repair" takes them from a bounded interpolation and warns once, "warn" only warns, "off" does not look.
                Alpha is always repaired.
    progress    called after each tile with the share that is done, 0..1

    Raises ValueError or TypeError that names the value; MemoryError if `max_memory` is too little for any tile.
    """

    def __init__(
        self,
        model: DITN | str | os.PathLike[str],
        *,
        scale: int | None = None,
        tile: int | Literal["auto"] = "auto",
        max_memory: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        cuda_graph: bool = False,
        self_ensemble: bool = False,
        guard: Guard = "repair",
        progress: Callable[[float], None] | None = None,
    ) -> None:
        names = of_scale(scale) if model == AUTO else None
        if not isinstance(model, DITN):
            model = load(names["clean"] if names else model, device=device or "cpu", dtype=dtype or torch.float32)
            device = dtype = None
        config = model.config
        if scale not in (None, config.upscale):
            raise ValueError(f"scale is {scale}, but the model enlarges {config.upscale} times")
        if (config.in_channels, config.out_channels) != (3, 3):
            raise ValueError(
                f"an Upscaler needs a model from RGB to RGB, this one has "
                f"{config.in_channels} channels in and {config.out_channels} out"
            )
        if tile != "auto" and (not isinstance(tile, int) or tile < 0):
            raise ValueError(f'tile is {tile!r}, must be "auto", a number of pixels, or 0 for the whole picture')
        if max_memory is not None and max_memory <= 0:
            raise ValueError(f"max_memory is {max_memory}, must be a positive number of bytes")
        if guard not in GUARDS:
            raise ValueError(f"guard is {guard!r}, must be one of {', '.join(map(repr, GUARDS))}")
        parameter = next(model.parameters())
        self.device = torch.device(device or parameter.device)
        self.dtype = dtype or parameter.dtype
        if (self.device, self.dtype) != (parameter.device, parameter.dtype) or model.training:
            model = copy.deepcopy(model).to(self.device, self.dtype).eval()
        self.model, self.scale = model, config.upscale
        self.tile, self.max_memory, self.guard, self.progress = tile, max_memory, guard, progress
        self._warned = False
        run = Captured(model) if cuda_graph else model
        self._run = (lambda x: average_orientations(run, x)) if self_ensemble else run
        self._chooser = names and Chooser(
            names,
            lambda name: Upscaler(
                self.model if name == names["clean"] else name,
                tile=tile,
                max_memory=max_memory,
                device=self.device,
                dtype=self.dtype,
                cuda_graph=cuda_graph,
                self_ensemble=self_ensemble,
                guard=guard,
                progress=progress,
            ),
        )

    @overload
    def __call__(self, image: Pixels) -> Pixels: ...
    @overload
    def __call__(self, image: Tensor) -> Tensor: ...
    @overload
    def __call__(self, image: PILImage) -> PILImage: ...
    def __call__(self, image: Any) -> Any:
        """The enlarged image, of the kind that came in."""
        if isinstance(image, Tensor):
            return self._tensor(image)
        if not isinstance(image, np.ndarray):
            return self._pil(image)
        pixels = image[..., None] if image.ndim == 2 else image
        self._check(pixels)
        height, width, bands = pixels.shape
        result = np.empty((height * self.scale, width * self.scale, bands), image.dtype)

        def place(top: int, left: int, part: Pixels) -> None:
            result[top : top + part.shape[0], left : left + part.shape[1]] = part

        self._warn(self.stream(pixels, place))
        return result[..., 0] if image.ndim == 2 else result

    def suited(self, pixels: Pixels) -> tuple[Upscaler, Choice | None]:
        """The Upscaler that [H, W, bands] samples go through and why; of "auto" that of the model which suits them, of
        another itself."""
        self._check(pixels)
        return self._chooser(pixels) if self._chooser else (self, None)

    def stream(self, pixels: Pixels, emit: Emit) -> list[Finding]:
        """Enlarge [H, W, bands] samples and hand out each part of the result as soon as it is done. Returns what the
        guard found, without a warning."""
        return self.suited(pixels)[0]._stream(pixels, emit)

    def _stream(self, pixels: Pixels, emit: Emit) -> list[Finding]:
        bands = pixels.shape[2]
        colours, alpha = (pixels[..., :-1], pixels[..., -1:]) if bands in (2, 4) else (pixels, None)
        if alpha is not None and alpha.size and (alpha == alpha.flat[0]).all():
            constant = alpha.flat[0]

            def emit_with_alpha(top: int, left: int, part: Pixels) -> None:
                emit(top, left, np.concatenate([part, np.full_like(part[..., :1], constant)], axis=2))

            return self._stream_layers([colours], emit_with_alpha)
        if alpha is not None:
            return self._stream_layers([bleed(colours, alpha), alpha], emit)
        return self._stream_layers([colours], emit)

    def plan(self, height: int, width: int) -> list[Region]:
        """The tiles for a picture of height x width, without their overlap."""
        grid, overlap = self.model.config.grid, self.model.config.overlap
        height, width = round_up(height, grid), round_up(width, grid)
        whole = max(height, width)
        if self.tile != "auto":
            return cut(height, width, round_up(self.tile, grid) or whole, grid)
        budget = self.max_memory or int(_SHARE_OF_FREE_MEMORY * free_memory(self.device))
        per_pixel = bytes_per_pixel(self.model)
        for side in range(whole, 0, -grid):
            regions = cut(height, width, side, grid)
            largest = max((region.grown(overlap, height, width).pixels for region in regions), default=0)
            if FIXED + largest * per_pixel <= budget:
                return regions
        raise MemoryError(
            f"max_memory is {budget / 2**20:.0f} MiB, but the smallest tile needs "
            f"{(FIXED + largest * per_pixel) / 2**20:.0f} MiB"
        )

    def _stream_layers(self, layers: list[Pixels], emit: Emit) -> list[Finding]:
        """Tile by tile, enlarge the colours ([H, W, 1] or [H, W, 3]), and alpha [H, W, 1] if there is a second layer,
        and emit them side by side. Returns what the guard found."""
        height, width = layers[0].shape[:2]
        if height == 0 or width == 0:
            raise ValueError(f"expected at least one pixel, got an image of {height}x{width}")
        grid, scale = self.model.config.grid, self.scale
        pending, done = list(reversed(self.plan(height, width))), 0
        limit = max(region.pixels for region in pending)
        total = sum(region.pixels for region in pending)
        findings: list[Finding] = []
        while pending:
            region = pending.pop()
            halves = region.halves(grid)
            if region.pixels > limit and halves:
                pending += reversed(halves)
                continue
            try:
                parts, found = zip(
                    *(self._enlarge(layer, region, is_alpha=index > 0) for index, layer in enumerate(layers)),
                    strict=True,
                )
                part = np.concatenate(parts, axis=2)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if halves is None or not _is_out_of_memory(error):
                    raise
                limit = halves[0].pixels
                pending += reversed(halves)
                continue
            emit(region.top * scale, region.left * scale, part)
            findings += filter(None, found)
            done += region.pixels
            if self.progress:
                self.progress(done / total)
        return findings

    def _enlarge(self, layer: Pixels, region: Region, *, is_alpha: bool) -> tuple[Pixels, Finding | None]:
        """One tile of one layer, from the reflected input to finished samples of the layer's type, and what the guard
        found in it. Alpha is held within the range of the nearest input pixels."""
        config, scale = self.model.config, self.scale
        height, width, bands = layer.shape
        outer = region.grown(config.overlap, round_up(height, config.grid), round_up(width, config.grid))
        rows = reflected(height, outer.top, outer.top + outer.height)
        columns = reflected(width, outer.left, outer.left + outer.width)
        given = torch.from_numpy(np.ascontiguousarray(layer[rows[:, None], columns]))
        # To 0..1 before the model's type: 65535 is infinite in float16.
        exact = given.permute(2, 0, 1)[None].to(self.device).float() / _RANGE.get(layer.dtype.name, 1)
        image = exact.to(self.dtype).expand(-1, 3, -1, -1)
        top, left = region.top - outer.top, region.left - outer.left
        bottom = min(region.top + region.height, height) - outer.top
        right = min(region.left + region.width, width) - outer.left
        with torch.inference_mode():
            output = self._run(image).float()
            if bands == 1:
                output = output.mean(1, keepdim=True)
            if layer.dtype.name in _RANGE and not _part(output, top, left, bottom, right, scale).isfinite().all():
                raise RuntimeError(f"the network's output is not finite in {self.dtype}; use bfloat16 or float32")
            finding = None
            if is_alpha or self.guard != "off":
                wrong, error = compare(output, exact)
                if wrong.any():
                    # Around the tile, too, so that its neighbour finds the same passage.
                    if repair := is_alpha or self.guard == "repair":
                        output = repaired(output, exact, wrong)
                    rows_here = slice(top // BLOCK, -(-bottom // BLOCK))
                    here = (..., rows_here, slice(left // BLOCK, -(-right // BLOCK)))
                    if blocks := int(wrong[here].sum()):
                        worst = error[here][wrong[here]].max().item()
                        size = (region.top, region.left, bottom - top, right - left)
                        finding = Finding(*size, blocks, worst, repair)
            if is_alpha:
                output = within_neighbours(output, exact)
            samples = _part(output, top, left, bottom, right, scale)
            return _to_samples(samples.permute(1, 2, 0), layer.dtype), finding

    def _warn(self, findings: list[Finding]) -> None:
        if findings and not self._warned:
            self._warned = True
            warnings.warn(
                f"in places the network's output has nothing to do with the image: {findings[0]}. Weights that were "
                "trained on drawn images, too, as those that ship, do not do this",
                RuntimeWarning,
                stacklevel=3,
            )

    def _tensor(self, image: Tensor) -> Tensor:
        if image.dim() != 4 or image.shape[1] != 3 or not image.is_floating_point():
            raise TypeError(f"expected a float tensor [B, 3, H, W], got {image.dtype} {list(image.shape)}")
        arrays = [self(one.detach().float().permute(1, 2, 0).cpu().numpy()) for one in image]
        height, width = (size * self.scale for size in image.shape[2:])
        stacked = torch.from_numpy(np.stack(arrays)) if arrays else torch.empty(0, height, width, 3)
        return stacked.permute(0, 3, 1, 2).to(image.device, image.dtype)

    def _pil(self, image: PILImage) -> PILImage:
        from PIL import Image

        if not isinstance(image, Image.Image):
            raise TypeError(f"expected a numpy array, a PIL image or a tensor, got {type(image).__name__}")
        if image.mode == "I;16":
            return Image.fromarray(self(np.asarray(image)))
        modes = {"1": "L", "L": "L", "LA": "LA", "RGB": "RGB", "RGBA": "RGBA"}
        transparent = "transparency" in image.info
        mode = modes.get(image.mode) or ("RGBA" if transparent or image.mode in ("PA", "RGBa", "La") else "RGB")
        if image.mode in ("F", "I"):
            raise TypeError(f"PIL images of mode {image.mode!r} hold numbers of no known range; pass an array instead")
        return Image.fromarray(self(np.asarray(image.convert(mode))))

    def _check(self, pixels: Pixels) -> None:
        if pixels.ndim != 3 or pixels.shape[2] not in (1, 2, 3, 4):
            raise ValueError(f"expected [H, W] or [H, W, 1 to 4], got shape {list(pixels.shape)}")
        if pixels.dtype.name not in ("uint8", "uint16", "float32"):
            raise TypeError(f"expected uint8, uint16 or float32 samples, got {pixels.dtype}")


def bleed(colours: Pixels, alpha: Pixels) -> Pixels:
    """Colours [H, W, C] in which every wholly transparent pixel has taken the mean colour of the visible ones in the
    smallest block of 2, 4, 8 ... pixels that holds any."""
    visible = alpha > 0
    if not visible.any():
        return colours
    return _fill(colours.astype(np.float32), visible).astype(colours.dtype)


def _fill(colours: Pixels, visible: Pixels) -> Pixels:
    if visible.all():
        return colours
    height, width = colours.shape[:2]
    even = ((0, height % 2), (0, width % 2), (0, 0))
    weights = _sum_of_blocks(np.pad(visible, even).astype(np.float32))
    means = _sum_of_blocks(np.pad(np.where(visible, colours, 0), even)) / np.maximum(weights, 1)
    coarse = _fill(means, weights > 0)
    return np.where(visible, colours, coarse.repeat(2, axis=0).repeat(2, axis=1)[:height, :width])


def _sum_of_blocks(values: Pixels) -> Pixels:
    height, width, bands = values.shape
    return np.asarray(values.reshape(height // 2, 2, width // 2, 2, bands).sum((1, 3)))


def _part(output: Tensor, top: int, left: int, bottom: int, right: int, scale: int) -> Tensor:
    """The rectangle of input pixels of an enlargement [1, C, sH, sW]: [C, sh, sw]."""
    return output[0, :, top * scale : bottom * scale, left * scale : right * scale]


def _to_samples(values: Tensor, dtype: np.dtype[Any]) -> Pixels:
    limit = _RANGE.get(dtype.name)
    if limit is None:
        return values.cpu().numpy()
    rounded = values.clamp(0, 1).mul(limit).round()
    return rounded.to(torch.int32).cpu().numpy().astype(dtype)


def _is_out_of_memory(error: BaseException) -> bool:
    known = ("not enough memory", "can't allocate memory", "out of memory", "cannot allocate memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(k in str(error).lower() for k in known)
