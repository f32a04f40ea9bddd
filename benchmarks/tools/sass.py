# SPDX-License-Identifier: Apache-2.0
"""What a Triton launch costs on a chip that is not here: compiled for it, its machine code (SASS) counted.

    report = count(launch, capability=90)

Nothing is timed. An instruction counts as often as the loops around it go round, so the code's loops have to be those
that the kernel's file names in LOOPS; if they are not, instructions are not counted, and `cycles` raises. What was
counted is kept in build/sass, under a hash of the kernel's source, its arguments, configuration and target, and of this
file.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import networkx
import torch
import triton

from benchmarks.harness.outputs import PROJECT
from ditn_kernels.backends.triton import _assembler
from ditn_kernels.backends.triton._compile import compiled, source
from ditn_kernels.backends.triton._launch import Launch
from ditn_kernels.backends.triton._loops import Loops, loops

# What is compiled here is not what a user waits for.
logging.getLogger("ditn_kernels").setLevel(logging.ERROR)
CACHE = PROJECT / "build" / "sass"
_OWN_SOURCE = Path(__file__).read_bytes()
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Chip:
    """Limits of a multiprocessor (CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"), and
    the multiply-adds of float16 that its tensor cores do in a cycle (NVIDIA's architecture papers)."""

    warps: int
    blocks: int
    shared: int  # bytes
    shared_per_block: int
    macs: int


CHIPS = {
    70: Chip(64, 32, 96 << 10, 96 << 10, 512),
    75: Chip(32, 16, 64 << 10, 64 << 10, 512),
    80: Chip(64, 32, 164 << 10, 163 << 10, 1024),
    86: Chip(48, 16, 100 << 10, 99 << 10, 512),
    89: Chip(48, 24, 100 << 10, 99 << 10, 512),
    90: Chip(64, 32, 228 << 10, 227 << 10, 2048),
    100: Chip(64, 32, 228 << 10, 227 << 10, 4096),
    120: Chip(48, 24, 100 << 10, 99 << 10, 512),
}
_REGISTERS = 64 << 10
_SHARED_RESERVED = 1 << 10  # per block, from sm_80 on
_TENSOR_MEMORY = 512  # columns, on sm_100 (PTX ISA, "Tensor Memory")


class LoopsError(ValueError):
    """The loops of the code are not those that the kernel's file names."""


class TensorMemoryError(RuntimeError):
    """The kernel wants more tensor memory than there is; what the compiler makes of it is a trap."""


@dataclass(frozen=True)
class Count:
    """One launch, compiled. `instructions` and `macs` (multiply-adds on tensor cores) are those of the whole launch;
    `macs` is None for sm_100, whose instructions do not say their size. `has_dot`: the kernel multiplies matrices.
    `tensor_memory`: columns, of which sm_100 has some. `uncounted`: why there are neither `instructions` nor `macs`."""

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

    @property
    def fits(self) -> bool:
        """Whether a multiprocessor can run it at all."""
        return self.shared <= CHIPS[self.capability].shared_per_block and self.resident_warps > 0

    @property
    def resident_warps(self) -> int:
        """Warps that a multiprocessor holds at once, over all programs."""
        chip = CHIPS[self.capability]
        per_warp = -(-self.registers // 8) * 8 * 32
        shared = self.shared + (_SHARED_RESERVED if self.capability >= 80 else 0)
        blocks = min(chip.warps // self.warps, chip.blocks, _REGISTERS // (per_warp * self.warps))
        if shared:
            blocks = min(blocks, chip.shared // shared)
        if self.tensor_memory:
            blocks = min(blocks, _TENSOR_MEMORY // self.tensor_memory)
        return self.warps * blocks


def cycles(counts: list[Count], dtype: torch.dtype, pixels: int) -> float:
    """Estimated cycles of a multiprocessor per 64 pixels: a scheduler's 2.5 instructions in a cycle, or 70 % of the
    tensor cores' rate, which is half as high for float32 (as TF32); launch by launch, whichever is longer. Raises
    LoopsError if one was not counted."""
    total = 0.0
    for one in counts:
        if one.instructions is None:
            raise LoopsError(one.uncounted)
        rate = CHIPS[one.capability].macs / (2 if dtype == torch.float32 else 1)
        total += max(one.instructions / 2.5, (one.macs or 0) / rate / 0.7)
    return total * 64 / pixels


def count(launch: Launch, capability: int) -> Count:
    """Compile the launch for a chip (90 for sm_90) and count. Raises TensorMemoryError if there is no code to count."""
    options = {"num_warps": launch.config.num_warps, "num_stages": launch.config.num_stages}
    facts = (
        source(launch).hash(),
        options,
        launch.programs,
        loops(launch),
        capability,
        assembler.identity if (assembler := _assembler.choose(capability).assembler) else None,
        triton.__version__,
        _OWN_SOURCE,
    )
    path = CACHE / f"{hashlib.sha256(repr(facts).encode()).hexdigest()}.json"
    if not path.exists():
        code = compiled(launch, capability)
        if code.metadata.tmem_size > _TENSOR_MEMORY:
            raise TensorMemoryError(f"{launch.name}: {code.metadata.tmem_size} columns of {_TENSOR_MEMORY}")
        found = _counted(launch, capability, code.asm["cubin"], code.metadata)
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=CACHE, delete=False) as file:
            json.dump(asdict(found), file)
        Path(file.name).replace(path)
    content = json.loads(path.read_text())
    return Count(**content | {"tensor_instructions": tuple(content["tensor_instructions"])})


def _counted(launch: Launch, capability: int, cubin: bytes, metadata: Any) -> Count:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, code = (cuobjdump(option, Path(file.name)) for option in ("--dump-resource-usage", "-sass"))
    resources = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if resources is None:
        raise ValueError(f"{launch.name}: cuobjdump says nothing about registers: {usage[:200]!r}")
    instructions = parse(code)
    try:
        weights, uncounted = _weights(launch, loops(launch), instructions), ""
    except LoopsError as error:
        weights, uncounted = None, str(error)
    tensor = {a: name for a, (name, _) in instructions.items() if re.match(r"[A-Z0-9]*MMA[.0-9]|UTC.?MMA", name)}
    sizes_known = not any(name.startswith("UTC") for name in tensor.values())
    warps = launch.config.num_warps

    def total(of_each: dict[int, int]) -> float | None:
        return None if weights is None else warps * sum(weights[a] * number for a, number in of_each.items())

    return Count(
        kernel=launch.name,
        capability=capability,
        warps=warps,
        registers=int(resources[1]),
        stack=int(resources[2]),
        shared=metadata.shared,
        instructions=total({a: 1 for a, (name, _) in instructions.items() if name != "NOP"}),
        macs=total({a: macs_of(name) for a, name in tensor.items()}) if sizes_known else None,
        has_dot="PRECISION" in launch.constants,
        tensor_instructions=tuple(sorted(set(tensor.values()))),
        tensor_memory=metadata.tmem_size,
        uncounted=uncounted,
    )


def cuobjdump(option: str, cubin: Path) -> str:
    """What the program of that name, of Triton's wheel, says about a cubin."""
    return subprocess.run([TOOLS / "cuobjdump", option, cubin], check=True, capture_output=True, text=True).stdout


def parse(code: str) -> dict[int, tuple[str, str]]:
    """Address -> name and operands of every instruction."""
    found = {}
    # Newer chips' lines end in notes on scheduling, which begin with & or ?.
    for address, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;&?]+)[^;]*;", code):
        predicate, name, operands = re.match(r"(@!?U?P\w+ )?(\S+)\s*(.*?)\s*$", text).groups()  # type: ignore[union-attr]
        found[int(address, 16)] = (name, (predicate or "") + operands)
    return found


def macs_of(name: str) -> int:
    """Multiply-adds of one tensor-core instruction, per warp: HMMA.16816 is 16 x 8 x 16 by one warp, HGMMA.64x64x16 is
    64 x 64 x 16 by four, HMMA.884 is one of four steps of 8 x 8 x 4 by every quarter of a warp."""
    if name.startswith("HMMA.884."):
        return 8 * 8 * 4
    if shape := re.match(r"HGMMA\.(?:SP\.)?(\d+)x(\d+)x(\d+)", name):
        rows, columns, depth = map(int, shape.groups())
        return rows * columns * depth // 4
    if shape := re.match(r"HMMA\.168(16|8|4)\b", name):
        return 16 * 8 * int(shape[1])
    raise ValueError(f"{name}: a tensor-core instruction whose size is not known here")


def _weights(launch: Launch, named: Loops, instructions: dict[int, tuple[str, str]]) -> dict[int, float]:
    """How often each instruction is executed by one warp of every program, over the whole launch."""
    weights = dict.fromkeys(instructions, float(launch.programs))
    found = [loop for loop in natural_loops(instructions) if not _waits(loop, instructions)]
    if named.tiles is not None:
        if not found:
            raise LoopsError(f"{launch.name}: no loop over the tiles")
        # The largest loop goes over the tiles; those outside of it are done once per program and count as one round.
        over_tiles = max(found, key=len)
        found = [loop for loop in found if loop < over_tiles]
        for address in over_tiles:
            weights[address] *= named.tiles / launch.programs
    trip_counts = [rounds for rounds in named.trip_counts if rounds != 1]
    if len(found) != len(trip_counts):
        sizes = list(map(len, found))
        raise LoopsError(
            f"{launch.name}: loops of {sizes} instructions, but the trip counts {named.trip_counts} are named"
        )
    for loop, rounds in zip(found, trip_counts, strict=True):
        for address in loop:
            weights[address] *= rounds
    return weights


def _waits(loop: frozenset[int], instructions: dict[int, tuple[str, str]]) -> bool:
    """Whether a loop only asks the hardware again and again whether something has happened."""
    asks = ("SYNCS", "NANOSLEEP", "UTCATOMSWS")
    return len(loop) < 10 and any(instructions[address][0].startswith(asks) for address in loop)


def natural_loops(instructions: dict[int, tuple[str, str]]) -> list[frozenset[int]]:
    """The addresses of each loop, in the order of the loops' heads: what lies between a head and a branch back to it
    that only the head leads to. (Aho et al., Compilers, section 9.6. A mere jump backwards is no loop: rare paths stand
    behind the end of the code and jump back.)"""
    graph = networkx.DiGraph()
    addresses = sorted(instructions)
    for address, following in zip(addresses, [*addresses[1:], None], strict=True):
        name, operands = instructions[address]
        conditional = name.startswith("BRA.DIV") or re.match(r"@|!?U?P\d", operands)
        target = re.search(r"0x([0-9a-f]+)$", operands) if name.startswith(("BRA", "CALL", "JMP")) else None
        if target and int(target[1], 16) in instructions:
            graph.add_edge(address, int(target[1], 16))
        ends = name.startswith(("BRA", "JMP", "EXIT", "RET")) and not conditional
        if following is not None and not ends:
            graph.add_edge(address, following)
    dominator = networkx.immediate_dominators(graph, addresses[0])

    def dominates(head: int, address: int) -> bool:
        while address != head and dominator.get(address, address) != address:
            address = dominator[address]
        return address == head

    loops: dict[int, set[int]] = {}
    for latch, head in graph.edges:
        if head < latch and latch in dominator and dominates(head, latch):
            without_head = graph.subgraph(node for node in dominator if node != head)
            loops.setdefault(head, {head}).update(networkx.ancestors(without_head, latch) | {latch})
    return [frozenset(loops[head]) for head in sorted(loops)]
