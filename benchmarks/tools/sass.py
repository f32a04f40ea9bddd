# SPDX-License-Identifier: Apache-2.0
"""What a Triton launch costs on a chip that is not here: compiled for it, its machine code (SASS) counted.

    report = count(launch, capability=90)

Nothing is timed. An instruction counts as often as the loops around it go round, so the code's loops have to be those
that the kernel's file names in LOOPS; if they are not, instructions are not counted. What was counted is kept in
build/sass, under a hash of the kernel's source, its arguments, configuration and target, and of this file. What it
comes to in cycles says `estimate.py`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import networkx
import torch
import triton

from benchmarks.harness.outputs import PROJECT
from benchmarks.tools import estimate
from benchmarks.tools.estimate import TENSOR_MEMORY, Count, LoopsError
from ditn_kernels.backends.triton import _assembler
from ditn_kernels.backends.triton._compile import compiled, source
from ditn_kernels.backends.triton._launch import Launch
from ditn_kernels.backends.triton._loops import Loops, loops

# What is compiled here is not what a user waits for.
logging.getLogger("ditn_kernels").setLevel(logging.ERROR)
CACHE = PROJECT / "build" / "sass"
_OWN_SOURCE = Path(__file__).read_bytes() + Path(estimate.__file__).read_bytes()
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class TensorMemoryError(RuntimeError):
    """The kernel wants more tensor memory than there is; what the compiler makes of it is a trap."""


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
        if code.metadata.tmem_size > TENSOR_MEMORY:
            raise TensorMemoryError(f"{launch.name}: {code.metadata.tmem_size} columns of {TENSOR_MEMORY}")
        found = _counted(launch, capability, code.asm["cubin"], code.metadata)
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=CACHE, delete=False) as file:
            json.dump(asdict(found), file)
        Path(file.name).replace(path)
    content = json.loads(path.read_text())
    found = Count(**content | {"tensor_instructions": tuple(content["tensor_instructions"])})
    tiles = loops(launch).tiles
    return replace(
        found,
        bytes=min(found.bytes, _bytes(launch)),
        blocks=launch.programs if tiles is None else tiles,
        programs=0 if tiles is None else launch.config.programs,
    )


def _bytes(launch: Launch) -> int:
    """Of the maps and weights, each of which is read or written once; a scratch stays in the caches."""
    named = zip(launch.kernel.arg_names, launch.args, strict=False)
    return sum(a.nbytes for name, a in named if isinstance(a, torch.Tensor) and name != "scratch_ptr")


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
    return Count(
        kernel=launch.name,
        capability=capability,
        warps=launch.config.num_warps,
        registers=int(resources[1]),
        stack=int(resources[2]),
        shared=metadata.shared,
        has_dot="PRECISION" in launch.constants,
        tensor_instructions=tensor_instructions(instructions),
        tensor_memory=metadata.tmem_size,
        uncounted=uncounted,
        **work(instructions, weights, launch.config.num_warps),
    )


def work(
    instructions: Mapping[int, tuple[str, str]], weights: Mapping[int, float] | None, warps: int
) -> dict[str, Any]:
    """The fields of a Count that say how much there is to do, for blocks of so many warps, each of which executes every
    instruction as often as `weights` says. `bytes` are those that are asked for, of caches or memory."""
    if weights is None:
        return {"instructions": None, "macs": None}
    totals = dict.fromkeys(("instructions", "macs", "wavefronts", "loads", "special", "bytes"), 0.0)
    for address, (name, _) in instructions.items():
        times = warps * weights[address]
        accesses = wavefronts_of(name)
        totals["instructions"] += times * (name != "NOP")
        totals["macs"] += times * (macs_of(name) if is_tensor(name) and not name.startswith("UTC") else 0)
        totals["special"] += times * name.startswith("MUFU")
        totals["wavefronts"] += times * accesses
        totals["loads"] += times * accesses * name.startswith(("LDG.", "LD."))
        totals["bytes"] += times * accesses * 128 * name.startswith(("LDG", "LD.", "STG.", "ST.", "RED", "ATOM"))
    known = not any(name.startswith("UTC") for name in tensor_instructions(instructions))
    return totals | {"macs": totals["macs"] if known else None}


def tensor_instructions(instructions: Mapping[int, tuple[str, str]]) -> tuple[str, ...]:
    """The names of those that run on tensor cores."""
    return tuple(sorted({name for name, _ in instructions.values() if is_tensor(name)}))


def is_tensor(name: str) -> bool:
    return bool(re.match(r"[A-Z0-9]*MMA[.0-9]|UTC.?MMA", name))


def wavefronts_of(name: str) -> int:
    """Of the first-level cache, for one access by a warp to shared or global memory without bank conflicts: one for
    each 128 bytes. LDSM and STSM name the matrices that they move, of 128 bytes each. Other instructions: 0."""
    parts = name.split(".")
    if parts[0] in ("LDSM", "STSM"):
        return int(parts[-1]) if parts[-1] in ("2", "4") else 1
    if parts[0] in ("LD", "LDG", "LDS", "LDL", "LDGSTS", "ST", "STG", "STS", "STL", "RED", "ATOM", "ATOMG", "ATOMS"):
        return next((bits // 32 for bits in (256, 128, 64) if str(bits) in parts), 1)
    return 0


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
