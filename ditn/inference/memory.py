# SPDX-License-Identifier: Apache-2.0
"""How much memory a forward pass takes, known before it runs."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

from ditn.model.network import DITN
from ditn_kernels import explain, spatial_stage

# Buffers and threads of the libraries underneath, and what the allocator keeps back, whatever the image.
FIXED = 96 * 2**20

_CGROUP = Path("/sys/fs/cgroup")


def bytes_per_pixel(model: DITN) -> int:
    """Peak bytes of activations per input pixel, for the backend that runs this model here and now."""
    config = model.config
    output = config.out_channels * config.upscale**2
    if _stages_run_in_cpp(model):
        # The stream before, inside and behind the SALs; or the tail's inputs and output, which is then converted. All
        # else is lines and patches.
        most = max(3 * config.dim, 2 * config.dim + output, 2 * output)
    else:
        # Plain PyTorch is at its peak inside a gated FFN: the hidden map (two halves) before and behind its depthwise
        # convolution, beside the stream before and behind the stage, the normalised stream and, if it is kept, what the
        # head made. It needs the most of all backends, and stands for those without a figure of their own.
        body = (3 + model.keeps_head(model.sft.weight.device)) * config.dim + 4 * config.hidden
        most = max(body, 4 * config.dim + 2 * output)
    return (most + config.in_channels) * next(model.parameters()).element_size()


def buffers_per_pixel(model: DITN) -> tuple[int, int]:
    """Bytes per input pixel of the image and of the result, which CUDA graphs and self-ensembles keep beside the
    activations."""
    config, size = model.config, next(model.parameters()).element_size()
    return config.in_channels * size, config.out_channels * config.upscale**2 * size


def predicted_peak(model: DITN, pixels: int, *, graph: bool = False, ensemble: bool = False) -> int:
    """Bytes that a forward pass over so many input pixels takes at its peak, besides the weights; as a CUDA graph, with
    its buffers; as a self-ensemble, with the turned image and the sum of the results."""
    return FIXED + pixels * _all_per_pixel(model, graph, ensemble)


def pixels_within(model: DITN, budget: int, *, graph: bool = False, ensemble: bool = False) -> int:
    """The input pixels of the largest forward pass whose `predicted_peak` is at most `budget` bytes; negative if there
    is none."""
    return (budget - FIXED) // _all_per_pixel(model, graph, ensemble)


def _all_per_pixel(model: DITN, graph: bool, ensemble: bool) -> int:
    return bytes_per_pixel(model) + (graph + ensemble) * sum(buffers_per_pixel(model))


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had on a device, among them what PyTorch keeps there of freed memory; on the CPU without
    driving anything else out of memory."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    available = int(psutil.virtual_memory().available)
    left = _left_in_container()
    return available if left is None else min(available, left)


def _left_in_container() -> int | None:
    """Bytes up to the limit of this container (cgroup v2), which `available` knows nothing of; None without a limit.
    What it holds of files, it can let go."""
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
        statistics = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
    except OSError:
        return None
    return None if limit == "max" else max(int(limit) - used + int(statistics["inactive_file"]), 0)


def _stages_run_in_cpp(model: DITN) -> bool:
    config, weight = model.config, model.sft.weight
    if not (model.fused and config.ufones and config.itls and config.sals):
        return False
    with torch.no_grad():
        sals = model.folded().ufones[0].sals
    return explain(spatial_stage, weight.new_empty(1, config.dim, 8, 8), sals, config.norm).chosen == "cpp"
