# SPDX-License-Identifier: Apache-2.0
"""CUDA graphs: a model's launches recorded once per shape of the image and replayed as one."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor

from ditn.model.network import DITN

# Kernels are compiled, and libraries choose their algorithms, before anything is recorded.
_WARM_UPS = 3
# Tiles of one image have up to nine shapes: corners, edges and the inside.
_KEPT = 9

_Key = tuple[tuple[int, ...], torch.dtype]


@dataclass(frozen=True)
class _Recorded:
    graph: torch.cuda.CUDAGraph
    image: Tensor
    result: Tensor


class CudaGraphRunner:
    """A model on a CUDA device, for inference: the first call with an image of some shape records a CUDA graph, later
    ones replay it. The graphs share their memory; the nine shapes that were used last are kept. All are recorded again
    after a parameter has changed.

    Raises ValueError if the model is not on a CUDA device, RuntimeError with the reason if it cannot be recorded.
    """

    def __init__(self, model: DITN) -> None:
        device = next(model.parameters()).device
        if device.type != "cuda":
            raise ValueError(f"a CUDA graph needs a CUDA device, the model is on {device}")
        self._model, self._device = model, device
        self._weights: object = None
        self._recorded: OrderedDict[_Key, _Recorded] = OrderedDict()

    def __call__(self, image: Tensor) -> Tensor:
        with torch.inference_mode(), torch.cuda.device(self._device):
            weights = self._model.folded()
            if weights is not self._weights:
                self._recorded.clear()
                self._weights, self._pool = weights, torch.cuda.graph_pool_handle()
            key = (tuple(image.shape), image.dtype)
            if key not in self._recorded:
                self._recorded[key] = self._record(image)
                if len(self._recorded) > _KEPT:
                    self._recorded.popitem(last=False)
            self._recorded.move_to_end(key)
            recorded = self._recorded[key]
            recorded.image.copy_(image)
            recorded.graph.replay()
            # The next replay overwrites the result.
            return recorded.result.clone()

    def _record(self, image: Tensor) -> _Recorded:
        still = image.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                self._model(still)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                result = self._model(still)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise RuntimeError(f"this model cannot be recorded as a CUDA graph: {error}") from error
        return _Recorded(graph, still, result)
