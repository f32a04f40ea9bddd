# SPDX-License-Identifier: Apache-2.0
"""Where to run, when the command line leaves it open."""

from __future__ import annotations

import torch

from ditn.inference.placement import default_device


def choose_device(name: str | None) -> torch.device:
    """The device of that name, or a GPU if there is one, else the CPU. Raises ValueError for one that is not here."""
    try:
        device = torch.device(name) if name else default_device()
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used: {reason}; try cpu, or cuda where there is a GPU") from error
    return device
