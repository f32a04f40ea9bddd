# SPDX-License-Identifier: Apache-2.0
"""Recording a CUDA graph so that nothing is lost if that fails."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch

from ditn_kernels import gpu_lock


def can_record(device: torch.device) -> bool:
    """Whether CUDA graphs exist on a device."""
    return device.type == "cuda"


def record(run: Callable[[], object], device: torch.device, pool: Any, stream: torch.cuda.Stream) -> Any:
    """A torch.cuda.CUDAGraph of what `run()` launches on this stream, with memory of the pool. Other threads may go on
    meanwhile, but for those that record, too, or prove a kernel: they take turns. Raises RuntimeError if it cannot be
    recorded; whatever was recorded into this pool is then lost."""
    with gpu_lock:
        graph = torch.cuda.CUDAGraph()
        try:
            # The outer context brings the caller's stream back where the inner one fails.
            with (
                torch.cuda.stream(torch.cuda.current_stream()),
                torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"),
            ):
                run()
        except RuntimeError:
            torch.cuda.synchronize()
            _recover(device, pool)
            raise
        return graph


def why_failed(error: RuntimeError) -> str:
    """Where a capture is broken off, what broke it stands behind what its end says."""
    return str(error.__context__ or error).partition("\n")[0]


def _recover(device: torch.device, pool: Any) -> None:
    """After a capture that CUDA broke off, PyTorch's allocator does not know that it is over, and would no longer give
    back what it keeps; nor does its generator of random numbers before PyTorch 2.13."""
    with suppress(RuntimeError, AttributeError):  # it does know; or this PyTorch has no such calls
        torch._C._cuda_endAllocateToPool(device.index, pool)
        torch._C._cuda_releasePool(device.index, pool)
    generator = torch.cuda.default_generators[device.index]
    generator.graphsafe_set_state(generator.clone_state())
