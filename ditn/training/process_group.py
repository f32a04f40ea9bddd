# SPDX-License-Identifier: Apache-2.0
"""The processes that train together: one alone, or those that torchrun started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

# The others wait for the one that decodes the images, which takes it hours if they are many: 0.2 to 0.4 s each. By
# default Gloo gives up after 30 minutes and NCCL after 10. A process that dies is torchrun's to notice.
_TIMEOUT = timedelta(days=1)


@dataclass(frozen=True)
class ProcessGroup:
    """This process's place among `size` processes: `rank` among all, `local_rank` on this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    def total(self, *values: float) -> list[float]:
        """The sum of each value over all processes, the same everywhere."""
        if self.size == 1:
            return list(values)
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        sums = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(sums)
        return [float(value) for value in sums]

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a scalar over all processes, the same everywhere, where it lies. Nobody waits for it."""
        if self.size > 1:
            dist.all_reduce(value := value.clone())
            value = value / self.size
        return value

    @contextmanager
    def one_first(self) -> Iterator[None]:
        """One process of each machine goes through the block before the others do."""
        if self.local_rank:
            self.total(0)
        yield
        if not self.local_rank:
            self.total(0)


@contextmanager
def joined(device: torch.device) -> Iterator[ProcessGroup]:
    """The group that torchrun's variables (RANK, WORLD_SIZE, LOCAL_RANK) describe, connected by NCCL for CUDA devices,
    by Gloo otherwise; this process alone if there are none."""
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        yield ProcessGroup()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_TIMEOUT)
    try:
        yield ProcessGroup(dist.get_rank(), size, local_rank())
    finally:
        dist.destroy_process_group()


def local_rank() -> int:
    """This process's number among those of its machine."""
    return int(os.environ.get("LOCAL_RANK", 0))
