# SPDX-License-Identifier: Apache-2.0
"""How an error says that there is no memory left."""

from __future__ import annotations

import torch

# PyTorch on a CPU, the C library, PyTorch and Triton on a GPU and the compiled libraries (csrc/new_tensor.h), C++.
_WORDS = ("not enough memory", "can't allocate memory", "cannot allocate memory", "out of memory", "bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of a call says that its device, or the host, has no memory left for it."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _WORDS)
