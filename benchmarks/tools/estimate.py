# SPDX-License-Identifier: Apache-2.0
"""From what a launch's machine code counts to the cycles that it takes.

    cycles([count], torch.float16, pixels)    of a multiprocessor, per 64 pixels

    a launch = (instructions / min(sqrt(warps), 4) + (loads + 2 special + multiply-adds / rate) / 0.74) * rounding

`warps` are those that a multiprocessor runs at once; its four schedulers issue four instructions a cycle at best.
`loads` are the first-level cache's wavefronts for loads from global memory. `special` are the instructions for tanh,
exp and the like, of which a multiprocessor does one of a warp in two cycles. `rate` is the tensor cores' multiply-adds
in a cycle. These add up instead of hiding each other: there are few warps, and barriers have them do the same thing at
the same time. `rounding` is what is wasted if the blocks are no multiple of those that run at once. A launch takes no
less than all wavefronts of the first-level cache / 0.74, nor than its memory at 0.57 of the rate that NVIDIA states.

The square root and the two shares are fitted to an H200 (`benchmarks/results/nvidia-h200/kernels.json`), where they put
each kernel within 15 %. No other chip has been measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

_SHARE = 0.74
_SHARE_OF_MEMORY = 0.57


@dataclass(frozen=True)
class Chip:
    """Limits of a multiprocessor (CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"), and
    the multiply-adds of float16 that its tensor cores do in a cycle (NVIDIA's architecture papers). `processors`, and
    the bytes of memory that one of them gets in a cycle, are those of the product that is named beside it."""

    warps: int
    blocks: int
    shared: int  # bytes
    shared_per_block: int
    macs: int
    processors: int
    bytes: float


CHIPS = {
    70: Chip(64, 32, 96 << 10, 96 << 10, 512, 80, 7.4),  # V100
    75: Chip(32, 16, 64 << 10, 64 << 10, 512, 40, 5.0),  # T4
    80: Chip(64, 32, 164 << 10, 163 << 10, 1024, 108, 10.2),  # A100, 40 GB
    86: Chip(48, 16, 100 << 10, 99 << 10, 512, 82, 6.7),  # RTX 3090
    89: Chip(48, 24, 100 << 10, 99 << 10, 512, 128, 3.1),  # RTX 4090
    90: Chip(64, 32, 228 << 10, 227 << 10, 2048, 132, 20.2),  # H200, at 1.8 GHz
    100: Chip(64, 32, 228 << 10, 227 << 10, 4096, 148, 27.5),  # B200
    120: Chip(48, 24, 100 << 10, 99 << 10, 512, 170, 4.4),  # RTX 5090
}
_REGISTERS = 64 << 10
_SHARED_RESERVED = 1 << 10  # per block, from sm_80 on
TENSOR_MEMORY = 512  # columns, on sm_100 (PTX ISA, "Tensor Memory")


class LoopsError(ValueError):
    """The loops of the code are not those that the kernel's file names."""


@dataclass(frozen=True)
class Count:
    """One launch, compiled. `instructions`, `macs` (multiply-adds on tensor cores), `wavefronts`, `loads` and `special`
    (see above) and `bytes` of memory are those of the whole launch. `macs` is None for sm_100, whose instructions do
    not say their size. `has_dot`: the kernel multiplies matrices. `tensor_memory`: columns, of which sm_100 has some.
    `uncounted`: why there are no `instructions`. `blocks` is 0 if their number is not known; of a persistent kernel it
    is the number of tiles, and `programs` how many blocks a multiprocessor is given."""

    kernel: str
    capability: int
    warps: int
    registers: int
    stack: int
    shared: int
    instructions: float | None
    macs: float | None
    has_dot: bool
    tensor_instructions: tuple[str, ...]
    tensor_memory: int = 0
    uncounted: str = ""
    wavefronts: float = 0
    loads: float = 0
    special: float = 0
    bytes: float = 0
    blocks: float = 0
    programs: int = 0

    @property
    def fits(self) -> bool:
        """Whether a multiprocessor can run it at all."""
        return self.shared <= CHIPS[self.capability].shared_per_block and self.resident_warps > 0

    @property
    def resident_warps(self) -> int:
        """Warps that a multiprocessor has room for at once, over all programs."""
        chip = CHIPS[self.capability]
        per_warp = -(-self.registers // 8) * 8 * 32
        shared = self.shared + (_SHARED_RESERVED if self.capability >= 80 else 0)
        blocks = min(chip.warps // self.warps, chip.blocks, _REGISTERS // (per_warp * self.warps))
        if shared:
            blocks = min(blocks, chip.shared // shared)
        if self.tensor_memory:
            blocks = min(blocks, TENSOR_MEMORY // self.tensor_memory)
        return self.warps * blocks

    @property
    def blocks_at_once(self) -> int:
        """Blocks that a multiprocessor runs; 1 for what does not fit."""
        room = max(self.resident_warps // self.warps, 1)
        return min(room, self.programs or room)


def cycles(counts: list[Count], dtype: torch.dtype, pixels: int) -> float:
    """Estimated cycles of a multiprocessor per 64 pixels, the launches one after the other. Tensor cores do float32 (as
    TF32) at half their rate. Raises LoopsError if one was not counted."""
    return sum(_cycles(one, dtype) for one in counts) * 64 / pixels


def _cycles(count: Count, dtype: torch.dtype) -> float:
    """Of all multiprocessors together."""
    if count.instructions is None:
        raise LoopsError(count.uncounted)
    chip = CHIPS[count.capability]
    rate = chip.macs / (2 if dtype == torch.float32 else 1)
    issue = count.instructions / min(math.sqrt(count.blocks_at_once * count.warps), 4)
    units = (count.loads + 2 * count.special + (count.macs or 0) / rate) / _SHARE
    rounds = count.blocks / (count.blocks_at_once * chip.processors)
    rounding = math.ceil(rounds) / rounds if rounds else 1
    return max((issue + units) * rounding, count.wavefronts / _SHARE, count.bytes / chip.bytes / _SHARE_OF_MEMORY)
