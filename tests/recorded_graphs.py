# SPDX-License-Identifier: Apache-2.0
"""CUDA graphs without CUDA: a stand-in for PyTorch's interface that records operators with the very tensors that they
read and wrote, as a graph records addresses, and runs them again on these."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ditn.inference import capture, graphs, upscaler


class Stream:
    def __init__(self) -> None:
        self.waited_for: list[Stream] = []

    def wait_stream(self, other: Stream) -> None:
        self.waited_for.append(other)


class Graph:
    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.replays = 0

    @torch.no_grad()
    def replay(self) -> None:
        self.replays += 1
        for function, args, kwargs, results in self.calls:
            again = tree_leaves(function(*args, **kwargs))
            for result, value in zip(results, again, strict=True):
                if isinstance(value, torch.Tensor) and result.data_ptr() != value.data_ptr():
                    result.copy_(value)


class Recorder(TorchDispatchMode):
    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.graph.calls.append((function, args, kwargs or {}, tree_leaves(result)))
        return result


class Recordings:
    """What was asked of the interface."""

    def __init__(self) -> None:
        self.graphs: list[Graph] = []
        self.pools: list[object] = []  # of each graph
        self.stream = Stream()
        self.emptied = 0
        self.recovered: list[object] = []

    @property
    def replays(self) -> int:
        return sum(graph.replays for graph in self.graphs)

    @contextmanager
    def record(self, graph: Graph, pool: object, stream: Stream, capture_error_mode: str):
        assert stream is not self.stream, "a capture needs a stream of its own"
        assert capture_error_mode == "thread_local"
        with Recorder(graph):
            yield
        self.graphs.append(graph)
        self.pools.append(pool)

    def empty_cache(self) -> None:
        self.emptied += 1


def install(monkeypatch) -> Recordings:
    """As if the CPU had CUDA graphs."""
    seen = Recordings()
    for name, value in {
        "CUDAGraph": Graph,
        "Stream": Stream,
        "graph": seen.record,
        "graph_pool_handle": object,
        "current_stream": lambda: seen.stream,
        "stream": nullcontext,
        "device": nullcontext,
        "synchronize": lambda: None,
        "empty_cache": seen.empty_cache,
        "is_current_stream_capturing": lambda: False,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(capture, "_recover", lambda device, pool: seen.recovered.append(pool))
    for module in (graphs, upscaler):
        monkeypatch.setattr(module, "can_record", lambda device: True)
    return seen
