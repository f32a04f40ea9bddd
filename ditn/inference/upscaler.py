# SPDX-License-Identifier: Apache-2.0
"""Upscaler: images of any size through a model, in tiles that change nothing, within a bound of memory."""

from __future__ import annotations

import copy
import functools
import os
import warnings
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from torch import Tensor

from ditn.imaging.arrays import Pixels, Samples
from ditn.imaging.pil import from_pil, to_pil
from ditn.inference.alpha import split_alpha, with_alpha
from ditn.inference.capture import can_record
from ditn.inference.chooser import Choice, Chooser, of_scale
from ditn.inference.ensemble import self_ensemble as average_orientations
from ditn.inference.graphs import CudaGraphRunner, GraphPool
from ditn.inference.guard import Finding
from ditn.inference.options import AUTO, GUARDS, Guard
from ditn.inference.placement import default_device, default_dtype
from ditn.inference.plan import Tile, TilePlan, plan_tiles
from ditn.inference.tile_loop import Emit, Progress, TileNetwork, enlarge_by_tiles
from ditn.model.checkpoint import load
from ditn.model.network import DITN

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage


class Upscaler:
    """Enlarges numpy arrays, PIL images and tensors by a model's factor, whatever their size.

    `model` is a DITN, the name of one that ships, a file of weights, or "auto": then each image is looked at and goes
    through the model that suits it, the one for clean images or the one for photographs (see `suited`).

    Calling it gives back what came in: uint8, uint16 or float32 arrays [H, W] or [H, W, bands], PIL images, or float
    tensors [B, 3, H, W] in 0..1. Bands are gray, gray and alpha, RGB, or RGB and alpha. Integers are clamped and
    rounded half to even; floats are neither. PIL images come back upright, with alpha if they are transparent anywhere,
    and with their profile, resolution, text, and EXIF and XMP, which tell the new size.

    Gray goes through the model as equal colours, of which the mean comes back. Alpha, unless it is constant, goes
    through the model like a gray image, so that its edges stay where the colours' are, and is clamped to the range of
    the nearest 3 x 3 input pixels, so that no haze or ringing is left where it was constant; where it is 0 the colours
    are first taken from the visible pixels around, so that no dark fringe grows in.

    scale       of the model; with "auto", by default the largest that ships
    tile        "auto", the side of a tile in input pixels (rounded up to the grid), or 0 for the whole image.
                Tiles overlap by the model's receptive radius and lie on its patch grid: the result is the whole
                image's to rounding.
    max_memory  bytes that a forward pass may take (default: half of what is free on the device); "auto" chooses the
                largest tile that is predicted to keep it. Running out of memory all the same halves the tile and
                goes on. The memory of CUDA graphs is part of this.
    device, dtype   where to run. By default where a DITN is, and the caller's is left alone; what is named or "auto"
                runs on a CUDA GPU in float16 if there is one, else on the CPU in float32, as by `ditn upscale`.
    cuda_graph  record the model's launches when a shape of a tile or image comes for the second time and replay them
                from then on, which saves small images most of their time (see `CudaGraphRunner`). By default wherever
                there are CUDA graphs: on a CUDA device.
    self_ensemble   the mean over eight flips and rotations: eight times the time, a little better
    guard       what becomes of places whose enlargement, averaged back to the input's size, is not the input, as
                happens to text and hard edges with weights trained on photographs alone (see `ditn.inference.guard`):
                "repair" takes them from a bounded interpolation and warns once, "warn" only warns, "off" does not look.
                Alpha is always repaired.

    Raises ValueError or TypeError that names the value; MemoryError if `max_memory` is too little for any tile.
    """

    def __init__(
        self,
        model: DITN | str | os.PathLike[str],
        *,
        scale: int | None = None,
        tile: Tile = "auto",
        max_memory: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        cuda_graph: bool | None = None,
        self_ensemble: bool = False,
        guard: Guard = "repair",
    ) -> None:
        names = of_scale(scale) if model == AUTO else None
        if not isinstance(model, DITN | str | os.PathLike):
            raise TypeError(f"expected a DITN, the name of weights or a file of them, got {type(model).__name__}")
        if not isinstance(model, DITN):
            place = default_device() if device is None else torch.device(device)
            model = load(names["clean"] if names else model, device=place, dtype=dtype or default_dtype(place))
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
            raise ValueError(f'tile is {tile!r}, must be "auto", a number of pixels, or 0 for the whole image')
        if max_memory is not None and max_memory <= 0:
            raise ValueError(f"max_memory is {max_memory}, must be a positive number of bytes")
        if guard not in GUARDS:
            raise ValueError(f"guard is {guard!r}, must be one of {', '.join(map(repr, GUARDS))}")
        parameter = next(model.parameters())
        # With its index: another thread may have another current GPU.
        self.device = torch.empty(0, device=device or parameter.device).device
        self.dtype = dtype or parameter.dtype
        if (self.device, self.dtype) != (parameter.device, parameter.dtype) or model.training:
            model = copy.deepcopy(model).to(self.device, self.dtype).eval()
        self.scale, self.tile, self.max_memory, self.guard = config.upscale, tile, max_memory, guard
        self._self_ensemble, self._warned = self_ensemble, False
        graphs = can_record(self.device) if cuda_graph is None else cuda_graph
        self._graphs = GraphPool(max_memory) if graphs else None
        self._use(model)
        # No lambda here or below: an Upscaler can be pickled.
        self._chooser = names and Chooser(names, functools.partial(self._for, names["clean"]))

    def _use(self, model: DITN) -> None:
        self.model = model
        run = CudaGraphRunner(model, pool=self._graphs) if self._graphs else model
        self._run = functools.partial(average_orientations, run) if self._self_ensemble else run

    def _for(self, own: str, name: str) -> Upscaler:
        """This Upscaler, whose own model is that of the first name, for that of the other. All record into one pool of
        memory."""
        one = copy.copy(self)
        one._chooser = None
        if name != own:
            one._use(load(name, device=self.device, dtype=self.dtype))
        return one

    @overload
    def __call__(self, image: Pixels, *, progress: Progress | None = None) -> Pixels: ...
    @overload
    def __call__(self, image: Tensor, *, progress: Progress | None = None) -> Tensor: ...
    @overload
    def __call__(self, image: PILImage, *, progress: Progress | None = None) -> PILImage: ...
    def __call__(self, image: Any, *, progress: Progress | None = None) -> Any:
        """The enlarged image, of the kind that came in. `progress` is called after each tile with the share that is
        done, 0..1."""
        if isinstance(image, Tensor):
            return self._tensor(image, progress)
        if not isinstance(image, np.ndarray):
            return self._pil(image, progress)
        pixels = self._checked(image[..., None] if image.ndim == 2 else image)
        height, width, bands = pixels.shape
        result = np.empty((height * self.scale, width * self.scale, bands), image.dtype)

        def place(top: int, left: int, part: Pixels) -> None:
            result[top : top + part.shape[0], left : left + part.shape[1]] = part

        self._warn(self.stream(pixels, place, progress=progress))
        return result[..., 0] if image.ndim == 2 else result

    def suited(self, pixels: Samples) -> tuple[Upscaler, Choice | None]:
        """The Upscaler that [H, W, bands] samples go through and why; of "auto" that of the model which suits them, of
        another itself."""
        pixels = self._checked(pixels)
        return self._chooser(pixels) if self._chooser else (self, None)

    def stream(
        self, pixels: Samples, emit: Emit, *, plan: TilePlan | None = None, progress: Progress | None = None
    ) -> list[Finding]:
        """Enlarge [H, W, bands] samples and hand out each part of the result as soon as it is done: `emit` is called
        with its top and left in output pixels and its samples. Returns what the guard found, without a warning. Of gray
        and RGB without alpha only the tile in hand is looked at: they may lie on disk (`ditn.imaging.regions`).

        plan      what `plan` of this Upscaler (of "auto", of the one that `suited` gives) said for this size
        progress  called after each tile with the share that is done, 0..1
        """
        pixels = self._checked(pixels)
        chosen, _ = self.suited(pixels)
        height, width = pixels.shape[:2]
        plan = plan or chosen.plan(height, width)
        if (plan.height, plan.width) != (height, width):
            raise ValueError(f"the plan is for an image of {plan.height}x{plan.width}, this one has {height}x{width}")
        layers, alpha = split_alpha(pixels)

        def emit_whole(top: int, left: int, part: Pixels) -> None:
            emit(top, left, part if alpha is None else with_alpha(part, alpha))

        return enlarge_by_tiles(chosen._network(), layers, plan, emit_whole, progress)

    def _network(self) -> TileNetwork:
        return TileNetwork(self._run, self.model.config, self.device, self.dtype, self.guard)

    def plan(self, height: int, width: int, *, align: int = 1, at_most: int | None = None) -> TilePlan:
        """The tiles for an image of height x width. With tile="auto" and without `max_memory`, as much memory counts as
        is free now. All edges are multiples of `align`; with tile="auto" no side is longer than `at_most`. Raises
        ValueError for an image without pixels, MemoryError if `max_memory` is too little."""
        return plan_tiles(
            self.model,
            height,
            width,
            tile=self.tile,
            max_memory=self.max_memory,
            device=self.device,
            graph=self._graphs is not None,
            ensemble=self._self_ensemble,
            align=align,
            at_most=at_most,
        )

    def _warn(self, findings: list[Finding]) -> None:
        if findings and not self._warned:
            self._warned = True
            warnings.warn(
                f"in places the network's output has nothing to do with the image: {findings[0]}. Weights that were "
                "trained on drawn images, too, as those that ship, do not do this",
                RuntimeWarning,
                stacklevel=3,
            )

    def _tensor(self, image: Tensor, progress: Progress | None) -> Tensor:
        if image.dim() != 4 or image.shape[1] != 3 or not image.is_floating_point():
            raise TypeError(f"expected a float tensor [B, 3, H, W], got {image.dtype} {list(image.shape)}")
        arrays = [
            self(one.detach().float().permute(1, 2, 0).cpu().numpy(), progress=_share_of(progress, done, len(image)))
            for done, one in enumerate(image)
        ]
        height, width = (size * self.scale for size in image.shape[2:])
        stacked = torch.from_numpy(np.stack(arrays)) if arrays else image.new_empty(0, height, width, 3)
        return stacked.permute(0, 3, 1, 2).to(image.device, image.dtype)

    def _pil(self, image: PILImage, progress: Progress | None) -> PILImage:
        from PIL import Image

        if not isinstance(image, Image.Image):
            raise TypeError(f"expected a numpy array, a PIL image or a tensor, got {type(image).__name__}")
        pixels, described = from_pil(image)
        return to_pil(self(pixels, progress=progress), described)

    def _checked(self, pixels: Any) -> Any:
        """The samples in the machine's byte order. Raises ValueError or TypeError for what is not understood."""
        if pixels.ndim != 3 or pixels.shape[2] not in (1, 2, 3, 4):
            raise ValueError(f"expected [H, W] or [H, W, 1 to 4], got shape {list(pixels.shape)}")
        if pixels.dtype.name not in ("uint8", "uint16", "float32"):
            raise TypeError(f"expected uint8, uint16 or float32 samples, got {pixels.dtype}")
        if not pixels.dtype.isnative and isinstance(pixels, np.ndarray):
            return pixels.astype(pixels.dtype.newbyteorder("="))
        return pixels


def _share_of(progress: Progress | None, done: int, count: int) -> Progress | None:
    """The progress of one of `count` images, of which `done` are finished, as a share of all."""
    return progress and (lambda share: progress((done + share) / count))
