# SPDX-License-Identifier: Apache-2.0
"""How much memory a forward pass takes, known before it runs."""

from __future__ import annotations

import psutil
import torch

from ditn.config import DITNConfig
from ditn.model import DITN

# Buffers and threads of the libraries underneath, and what the allocator keeps back, whatever the picture.
FIXED = 96 * 2**20


def bytes_per_pixel(config: DITNConfig, itemsize: int) -> int:
    """Peak bytes of activations per input pixel, in plain PyTorch, which needs the most of all backends.

    The peak is inside a gated FFN: the hidden map (two halves) before and behind its depthwise convolution, beside the
    stream before and behind the stage, the normalised stream, the head's output for the skip, and the image. At large
    scales and few channels it is in the tail: the enlarged image before and behind the pixel shuffle, and the stream.
    """
    ffn = 4 * config.dim + 4 * config.hidden
    tail = 3 * config.dim + 2 * config.out_channels * config.upscale**2
    return (max(ffn, tail) + config.in_channels) * itemsize


def predicted_peak(model: DITN, pixels: int) -> int:
    """Bytes that a forward pass over so many input pixels takes at its peak, besides the weights."""
    itemsize = next(model.parameters()).element_size()
    return FIXED + pixels * bytes_per_pixel(model.config, itemsize)


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had on a device; on the CPU without driving anything else out of memory."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)
