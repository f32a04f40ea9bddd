# SPDX-License-Identifier: Apache-2.0
"""CUDA graphs: a model's launches recorded once per shape of the image and replayed as one."""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ditn.inference.capture import can_record, record, why_failed
from ditn.inference.memory import FIXED, buffers_per_pixel, bytes_per_pixel
from ditn.inference.plan import budget
from ditn.inference.tiles import round_up
from ditn.model.network import DITN, ModelWeights
from ditn_kernels import conditions, gpu_lock, is_out_of_memory, is_plain

# Shapes that are remembered, recorded or used once. Tiles of one image have up to nine: corners, edges and the inside;
# twice as many under a self-ensemble.
_KEPT = 32

_Key = tuple[Any, ...]


class _Sizes(NamedTuple):
    """Bytes that graphs need: for what lies between image and result, and for these two."""

    activations: int
    image: int
    result: int


@dataclass(frozen=True)
class _Space:
    """What graphs of at most these sizes share: the pool, the stream that records, the buffers."""

    sizes: _Sizes
    pool: Any
    stream: torch.cuda.Stream
    images: Tensor
    results: Tensor


@dataclass(frozen=True)
class _Recorded:
    graph: torch.cuda.CUDAGraph
    image: Tensor
    result: Tensor


class GraphPool:
    """The memory of CUDA graphs on one device, which several models may share: at most `max_memory` bytes, by default
    half of what is free on the device.

    All graphs read their images from one buffer, leave their results in another and have what lies between in one
    memory pool, since only one runs at a time: they take what the largest needs, not the sum. A graph that needs more
    than all before starts anew, because a pool that grows keeps the pieces that have become too small.
    """

    def __init__(self, max_memory: int | None = None) -> None:
        self.max_memory = max_memory
        self.lock = threading.RLock()
        # By runner, shape and what else the choice of kernels depends on, the last used last; None was used once.
        self.shapes: OrderedDict[_Key, _Recorded | None] = OrderedDict()
        self._space: _Space | None = None
        self._replayed_on: torch.cuda.Stream | None = None

    @property
    def bytes(self) -> int:
        """What the graphs are predicted to take."""
        return sum(self._space.sizes) if self._space else 0

    def run(self, model: DITN, image: Tensor) -> Tensor:
        """The model's result without a graph, for which graphs give way where both would take too much."""
        if self._space and not self._allows(FIXED + self.bytes + _sizes(model, image).activations, image.device):
            self.drop()
        result: Tensor
        try:
            result = model(image)
        except RuntimeError as error:
            if not self._space or not is_out_of_memory(error):
                raise
            self.drop()
            result = model(image)
        return result

    def record(self, model: DITN, image: Tensor) -> _Recorded | None:
        """A graph for images of this shape, None if it would take too much memory. The model has run such an image
        before, so that kernels are compiled, proved and chosen. Raises RuntimeError if it cannot be recorded."""
        config, (batch, _, height, width) = model.config, image.shape
        larger = (batch, config.out_channels, height * config.upscale, width * config.upscale)
        space = self._reserve(_sizes(model, image), image.device)
        if space is None:
            return None
        still = _channels_last(space.images, image.dtype, tuple(image.shape))
        result = _channels_last(space.results, image.dtype, larger)
        try:
            graph = record(lambda: result.copy_(model(still)), image.device, space.pool, space.stream)
        except RuntimeError:
            self.drop()
            raise
        return _Recorded(graph, still, result)

    def replay(self, recorded: _Recorded, image: Tensor) -> Tensor:
        """The result, in memory of its own."""
        stream = torch.cuda.current_stream()
        if self._replayed_on not in (None, stream):
            stream.wait_stream(self._replayed_on)  # which may still be using the buffers
        self._replayed_on = stream
        recorded.image.copy_(image)
        recorded.graph.replay()
        return recorded.result.clone()

    def used(self, key: _Key, recorded: _Recorded | None) -> None:
        """A shape was used; the one that was not for the longest time is dropped."""
        self.shapes[key] = recorded
        self.shapes.move_to_end(key)
        if len(self.shapes) > _KEPT:
            self.shapes.popitem(last=False)

    def forget(self, runner: int) -> None:
        """Drop all graphs of one runner."""
        for key in [key for key in self.shapes if key[0] == runner]:
            del self.shapes[key]
        if self._space and not any(self.shapes.values()):
            self.drop()

    def drop(self) -> None:
        """Drop all graphs, and give their memory back to the device."""
        with gpu_lock:
            torch.cuda.synchronize()
            self.shapes.clear()
            self._space = self._replayed_on = None
            torch.cuda.empty_cache()

    def _reserve(self, needed: _Sizes, device: torch.device) -> _Space | None:
        """Space for a graph of these sizes; None if that would be too much. There is one at a time."""
        sizes = needed
        if self._space:
            sizes = _Sizes(*map(max, self._space.sizes, needed))
            if sizes == self._space.sizes:
                return self._space
            if not self._allows(FIXED + sum(sizes), device):
                sizes = needed
        if not self._allows(FIXED + sum(sizes), device):
            return None
        if self._space:
            used = dict.fromkeys(self.shapes)
            self.drop()
            self.shapes.update(used)  # recorded anew at their next use
        images, results = (torch.empty(n, dtype=torch.uint8, device=device) for n in (sizes.image, sizes.result))
        self._space = _Space(sizes, torch.cuda.graph_pool_handle(), torch.cuda.Stream(), images, results)
        return self._space

    def _allows(self, needed: int, device: torch.device) -> bool:
        return needed <= budget(self.max_memory, device)

    def __reduce__(self) -> tuple[Any, ...]:
        return GraphPool, (self.max_memory,)


class CudaGraphRunner:
    """A model on a CUDA device, for inference by CUDA graphs: images [B, C, H, W] in 0..1 in the model's dtype ->
    [B, C, H * s, W * s], which carry no gradient. A shape's first image goes through the model as it is, its second is
    recorded, all further ones are replayed, which takes the host a few calls instead of some for each kernel.

    The graphs keep to `max_memory` bytes (default: half of what is free on the device); a shape that needs more runs
    without one. Weights that have changed, another forced backend and the like are noticed, as the model notices them,
    and recorded anew. Under autocast and wherever else somebody has to see the model's operators, it runs as it is, and
    so it does, after a warning that says why, once a recording has failed. Threads take turns.

    Raises ValueError if the model is not on a CUDA device.
    """

    def __init__(self, model: DITN, max_memory: int | None = None, *, pool: GraphPool | None = None) -> None:
        device = model.sft.weight.device
        if not can_record(device):
            raise ValueError(f"a CUDA graph needs a CUDA device, the model is on {device}")
        if max_memory is not None and max_memory <= 0:
            raise ValueError(f"max_memory is {max_memory}, must be a positive number of bytes")
        self._model, self._pool = model, pool or GraphPool(max_memory)
        self._weights: ModelWeights | None = None
        self._failed = False

    def __call__(self, image: Tensor) -> Tensor:
        if self._failed or not self._may_be_graphed(image):
            result: Tensor = self._model(image)
            return result
        # Not in inference mode, even if the caller is: buffers that are made there cannot be written to elsewhere.
        with torch.inference_mode(False), torch.no_grad(), torch.cuda.device(image.device), self._pool.lock:
            return self._run(image)

    def _run(self, image: Tensor) -> Tensor:
        weights, pool = self._model.folded(), self._pool
        if weights is not self._weights:
            pool.forget(id(self))
            self._weights = weights
        key = (id(self), tuple(image.shape), conditions())
        recorded = pool.shapes.get(key)
        if key in pool.shapes and recorded is None:
            try:
                recorded = pool.record(self._model, image)
            except RuntimeError as error:
                self._failed = True
                text = f"runs without CUDA graphs, since recording one failed: {why_failed(error)}"
                warnings.warn(text, RuntimeWarning, 3)
                return pool.run(self._model, image)
        result = pool.replay(recorded, image) if recorded else pool.run(self._model, image)
        pool.used(key, recorded)
        return result

    def _may_be_graphed(self, image: Tensor) -> bool:
        """Whether it is an image that the model takes, and nobody else looks on."""
        weight, channels = self._model.sft.weight, self._model.config.in_channels
        return (
            isinstance(image, Tensor)
            and (image.dtype, image.device) == (weight.dtype, weight.device)
            and can_record(image.device)
            and image.dim() == 4
            and image.shape[1] == channels
            and image.numel() > 0
            and is_plain((image,))
            and not torch.cuda.is_current_stream_capturing()
        )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_weights": None}


def _sizes(model: DITN, image: Tensor) -> _Sizes:
    batch, _, height, width = image.shape
    pixels = batch * round_up(height, model.config.grid) * round_up(width, model.config.grid)
    into, out = buffers_per_pixel(model)
    return _Sizes(pixels * bytes_per_pixel(model), pixels * into, pixels * out)


def _channels_last(buffer: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """The start of a buffer of bytes as [B, C, H, W], channels-last in memory."""
    batch, channels, height, width = shape
    size = batch * channels * height * width * dtype.itemsize
    return buffer[:size].view(dtype).view(batch, height, width, channels).permute(0, 3, 1, 2)
