# SPDX-License-Identifier: Apache-2.0
"""The tiles of an image through a network, one after the other, each checked by the guard."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ditn.imaging.arrays import Pixels, Samples
from ditn.inference.guard import BLOCK, Finding, compare, repaired, within_neighbours
from ditn.inference.options import Guard
from ditn.inference.plan import TilePlan
from ditn.inference.tiles import Region, reflected, round_up
from ditn.model.config import DITNConfig
from ditn_kernels import is_out_of_memory

# A finished part of the output: its top and left in output pixels, and its samples [h, w, bands].
Emit = Callable[[int, int, Pixels], None]
# The share that is done, 0..1.
Progress = Callable[[float], None]

_RANGE = {"uint8": 255, "uint16": 65535}


@dataclass(frozen=True)
class TileNetwork:
    """A network as tiles go through it: `run` maps images [1, 3, H, W] in 0..1, of this dtype on this device, to
    [1, 3, sH, sW]; `guard` says what becomes of output that has nothing to do with its image."""

    run: Callable[[Tensor], Tensor]
    config: DITNConfig
    device: torch.device
    dtype: torch.dtype
    guard: Guard

    def enlarge(self, layer: Samples, region: Region, *, is_alpha: bool) -> tuple[Pixels, Finding | None]:
        """One tile of one layer [H, W, 1 or 3], from the reflected input to finished samples of the layer's dtype, and
        what the guard found in it. Alpha is always repaired, and clamped to the range of the nearest input pixels."""
        config, scale = self.config, self.config.upscale
        height, width, bands = layer.shape
        outer = region.grown(config.overlap, round_up(height, config.grid), round_up(width, config.grid))
        rows = reflected(height, outer.top, outer.top + outer.height)
        columns = reflected(width, outer.left, outer.left + outer.width)
        given = torch.from_numpy(np.ascontiguousarray(layer[rows[:, None], columns]))
        # To 0..1 before the network's dtype: 65535 is infinite in float16.
        exact = _to_device(given, self.device).permute(2, 0, 1)[None].float() / _RANGE.get(layer.dtype.name, 1)
        image = exact.to(self.dtype).expand(-1, 3, -1, -1)
        bottom, right = min(region.top + region.height, height), min(region.left + region.width, width)
        inner = Region(region.top - outer.top, region.left - outer.left, bottom - region.top, right - region.left)
        with torch.inference_mode():
            output = self.run(image).float()
            if bands == 1:
                output = output.mean(1, keepdim=True)
            if layer.dtype.name in _RANGE and not _part(output, inner, scale).isfinite().all():
                raise RuntimeError(f"the network's output is not finite in {self.dtype}; use bfloat16 or float32")
            finding = None
            if is_alpha or self.guard != "off":
                output, finding = _guarded(output, exact, region, inner, repair=is_alpha or self.guard == "repair")
            if is_alpha:
                output = within_neighbours(output, exact)
            return _to_samples(_part(output, inner, scale).permute(1, 2, 0), layer.dtype), finding


def enlarge_by_tiles(
    network: TileNetwork, layers: list[Samples], plan: TilePlan, emit: Emit, progress: Progress | None = None
) -> list[Finding]:
    """Tile by tile, enlarge the colours ([H, W, 1] or [H, W, 3]), and alpha [H, W, 1] if there is a second layer, and
    emit them side by side. Running out of memory halves the tiles from there on. Returns what the guard found."""
    grid, scale = network.config.grid, network.config.upscale
    pending, done = list(reversed(plan.regions)), 0
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
                *(network.enlarge(layer, region, is_alpha=index > 0) for index, layer in enumerate(layers)), strict=True
            )
            part = np.concatenate(parts, axis=2)
        except (MemoryError, RuntimeError) as error:
            if halves is None or not is_out_of_memory(error):
                raise
            limit = halves[0].pixels
            pending += reversed(halves)
            continue
        emit(region.top * scale, region.left * scale, part)
        findings += filter(None, found)
        done += region.pixels
        if progress:
            progress(done / total)
    return findings


def _guarded(
    output: Tensor, exact: Tensor, region: Region, inner: Region, *, repair: bool
) -> tuple[Tensor, Finding | None]:
    """The output [1, C, sH, sW] of an image [1, C, H, W], its wrong blocks repaired if wanted; and what is wrong in the
    tile itself, whose place is `region` in the whole image and `inner` in this one."""
    wrong, error = compare(output, exact)
    if not wrong.any():
        return output, None
    # Around the tile, too, so that its neighbour finds the same passage.
    if repair:
        output = repaired(output, exact, wrong)
    rows = slice(inner.top // BLOCK, -(-(inner.top + inner.height) // BLOCK))
    columns = slice(inner.left // BLOCK, -(-(inner.left + inner.width) // BLOCK))
    here = (..., rows, columns)
    blocks = int(wrong[here].sum())
    if not blocks:
        return output, None
    worst = error[here][wrong[here]].max().item()
    return output, Finding(region.top, region.left, inner.height, inner.width, blocks, worst, repair)


def _part(output: Tensor, inner: Region, scale: int) -> Tensor:
    """The enlargement of a region, out of that of all [1, C, sH, sW]: [C, sh, sw]."""
    rows = slice(inner.top * scale, (inner.top + inner.height) * scale)
    return output[0, :, rows, inner.left * scale : (inner.left + inner.width) * scale]


def _to_samples(values: Tensor, dtype: np.dtype[Any]) -> Pixels:
    limit = _RANGE.get(dtype.name)
    if limit is None:
        return _to_host(values).numpy()
    rounded = values.clamp(0, 1).mul(limit).round()
    # PyTorch computes little with uint16.
    return _to_host(rounded.to(torch.uint8 if limit == 255 else torch.int32)).numpy().astype(dtype, copy=False)


def _to_device(values: Tensor, device: torch.device) -> Tensor:
    """To a GPU from pinned memory, which it reads by itself while it computes something else."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def _to_host(values: Tensor) -> Tensor:
    """From a GPU likewise: only what this thread's stream does is waited for."""
    if values.device.type != "cuda":
        return values.cpu()
    host = torch.empty(values.shape, dtype=values.dtype, device="cpu", pin_memory=True)
    host.copy_(values, non_blocking=True)
    torch.cuda.current_stream(values.device).synchronize()
    return host
