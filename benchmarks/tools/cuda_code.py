# SPDX-License-Identifier: Apache-2.0
"""What the CUDA C++ kernels cost on a chip that is not here: compiled for it by nvcc, their machine code counted.

    counts = count(capability=80)

For DITN-Real's layers in float16, by the kernels for sm_90a in bfloat16, too. As for Triton's kernels (sass.py), an
instruction counts as often as the loops around it go round, and the code's loops have to be as many as KERNELS names.
Cubins are kept in build/cuda, under a hash of the sources.
"""

from __future__ import annotations

import hashlib
import math
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.outputs import PROJECT
from benchmarks.tools import sass
from benchmarks.tools.estimate import Count

SOURCE = PROJECT / "csrc" / "cuda" / "kernels.cu"
# The kernels for one chip alone.
HOPPER_SOURCE, HOPPER = SOURCE.with_name("hopper.cu"), 90
NVCC = shutil.which("nvcc")
# nvcc 13 knows no sm_70. Its code becomes PTX as for the next chip, which is relabelled and assembled by the ptxas of
# Triton's wheel, one of CUDA 12: that refuses what Volta lacks. (-w is for GCC, which objects to a macro's new value.)
VOLTA = 70
VOLTA_FLAGS = ["-ptx", "-arch=compute_75", "-D__CUDA_ARCH__=700", "-Xcompiler=-w"]
VOLTA_LABELS = {r"(?m)^\.version .*": ".version 8.0", r"(?m)^\.target .*": ".target sm_70"}
FLAGS = ["-std=c++20", "-O3", "--Werror", "all-warnings", f"-I{SOURCE.parent}"]
# Only what the network's layers run, for counting; without it everything is compiled.
NETWORK = "-DDITN_NETWORK"
# Chips on which tensor cores do the taps of the FFN in patches (csrc/cuda/bands.cuh).
BANDS = (80, 90, 100)


@dataclass(frozen=True, eq=False)
class Kernel:
    """A kernel as the network launches it. `symbol` begins its mangled name, after the namespace and the length.

    `halves`: float16 values of the maps that are read and written, per pixel.
    `trips`: how often the loops of a warp's code go round, in the order in which they stand in it.
    `bands`: whether it runs on chips in BANDS only, or on all others only; None: on all. `volta` likewise.
    """

    symbol: str
    operator: str
    warps: int
    pixels: int  # of a block
    shared: int  # bytes
    halves: int
    trips: tuple[float, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    bands: bool | None = None
    volta: bool | None = None

    @property
    def name(self) -> str:
        return self.symbol.split("I")[0].strip("_").removesuffix("_kernel")


_IN_PATCHES = {"norm": "tanh", "patch_size": 8}
_ON_MAP = {"norm": "tanh", "patch_size": 0}
_GATE = {"norm": "tanh"}
KERNELS = (
    Kernel(
        "_inner_patch_attention_kernelI6__halfLi64ELi8E", "inner_patch_attention", 4, 64, 27904, 120, (), _IN_PATCHES
    ),
    # Lines of the tile, slices of 32 of 120 hidden channels, lines again. On a map there is one of these per warp, and
    # with bands one at either end.
    Kernel("_gated_ffn_kernelI6__halfLi64ELi8E", "gated_ffn", 4, 64, 26640, 120, (2, 4, 2), _IN_PATCHES, bands=False),
    Kernel("_banded_ffn_kernel", "gated_ffn", 8, 128, 42016, 120, (4,), _IN_PATCHES, bands=True),
    Kernel("_gated_ffn_kernelI6__halfLi64ELi0E", "gated_ffn", 8, 128, 64272, 120, (10 / 8, 4), _ON_MAP),
    # Lines, tiles of 16 pixels. Blocks also take the frame: there are 2,232 for a map of 960x544.
    Kernel("_dilated_gate_near_kernelI6__halfLi64E", "dilated_gate", 8, 234, 57600, 124, (20 / 8, 25 / 8), _GATE),
    # Lines in, lines out. 2,760 blocks, since 544 is no multiple of 24.
    Kernel("_dilated_gate_far_kernelI6__halfLi64E", "dilated_gate", 6, 189, 27648, 184, (4, 4), _GATE),
    # Lines, 64 outputs by two warps, taps, lines of results, words of them.
    Kernel("_conv3x3_kernelI6__halfLi16E", "image_head", 8, 128, 27072, 63, (10 / 8, 1, 9, 1, 8), volta=True),
    # Sixteen pixels.
    Kernel("_image_head_kernel", "image_head", 8, 512, 25760, 63, (4,), volta=False),
    Kernel("_conv3x3_kernelI6__halfLi64E", "image_tail", 8, 128, 44352, 180, (10 / 8, 1, 9, 1, 8), {"upscale": 4}),
    Kernel("_conv3x3_kernelI6__halfLi64E", "image_tail", 8, 128, 40256, 108, (10 / 8, 1, 9, 4, 2), {"upscale": 4}),
    # Layers, and in them the slices.
    Kernel("_inner_patch_stage_kernelILb0E", "inner_patch_stage", 4, 64, 27904, 120, (4, 4), _IN_PATCHES, bands=False),
    Kernel("_inner_patch_stage_kernelILb1E", "inner_patch_stage", 8, 128, 55808, 120, (4, 4), _IN_PATCHES, bands=True),
)
# The stage takes four patches at a time. Around its loops over fours of patches, layers and passes of the FFN stand
# lines of zeros, and starts of copies and waits for them, one round each. The FFN takes slices of a tile's hidden
# channels: of a map of 960x544 13 tiles for each multiprocessor of an H200, 1,716 in all. Before that the weights are
# copied, and behind it stands the wait for them.
HOPPER_KERNELS = (
    Kernel(
        "_hopper_stage_kernelI6__halfLNS_4NormE1ELb0E",
        "inner_patch_stage",
        warps=16,
        pixels=256,
        shared=223256,
        halves=120,
        trips=(2, 1, 1, 4, 1, 1, 2, 1, 1),
        options=_IN_PATCHES,
    ),
    Kernel(
        "_hopper_map_ffn_kernelI6__halfLNS_4NormE1ELb0E",
        "gated_ffn",
        warps=16,
        pixels=3957,
        shared=193544,
        halves=120,
        trips=(1, 13, 4, 1),
        options=_ON_MAP,
    ),
    # A block of a map of 960x544 takes 8 tiles, in the last loop. In front of it weights are copied and waited for.
    Kernel("_hopper_conv3x3_kernelI6__halfLi64ELb0E", "image_tail", 16, 4096, 230920, 184, (1, 1, 8), {"upscale": 4}),
    Kernel("_hopper_conv3x3_kernelI6__halfLi48ELb1E", "image_tail", 16, 4096, 212424, 112, (1, 1, 8), {"upscale": 4}),
    # Tiles, whose loop holds those over the lines that are seen, the channels, and what an empty tile clears (no round:
    # such tiles are few). There are 41 x 34 that are not empty for a map of 960x544.
    Kernel(
        "_hopper_gate_near_kernelI6__halfLNS_4NormE1ELb0E",
        "dilated_gate",
        warps=8,
        pixels=375,
        shared=107528,
        halves=120,
        trips=(1, 1, 5, 7.5, 0, 1),
        options=_GATE,
    ),
    # Before the tiles what never changes in shared memory is stored, by one of two loops, and copies are started, each
    # in a loop of one round. Among the tiles' loops are those over channels and phases. Half of the warps start none.
    Kernel(
        "_hopper_gate_far_kernelI6__halfLNS_4NormE1ELb0E",
        "dilated_gate",
        warps=16,
        pixels=768,
        shared=216200,
        halves=180,
        trips=(1, 3, 0, 1, 1, 1, 1, 1, 1, 7.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 3, 1, 1),
        options=_GATE,
    ),
)
# The same in bfloat16.
HOPPER_TWINS = {one: replace(one, symbol=one.symbol.replace("6__half", "13__nv_bfloat16")) for one in HOPPER_KERNELS}


def kernels(capability: int) -> tuple[Kernel, ...]:
    """Those of KERNELS that the network runs on such a chip."""
    chip = {"bands": capability in BANDS, "volta": capability == VOLTA}
    return tuple(one for one in KERNELS if all(getattr(one, name) in (None, chip[name]) for name in chip))


def cubin(*flags: str, capability: int, source: Path = SOURCE) -> Path:
    """The kernels compiled for a chip (90 for sm_90). Raises RuntimeError if a compiler fails or warns."""
    if NVCC is None:
        raise RuntimeError("nvcc is not installed")
    chip = f"{capability}a" if source == HOPPER_SOURCE else capability
    target = VOLTA_FLAGS if capability == VOLTA else [f"-arch=sm_{chip}", "-cubin"]
    command = [NVCC, *target, *FLAGS, *flags]
    sources = sorted(path for path in SOURCE.parent.parent.rglob("*") if path.suffix in (".h", ".cuh", ".cu"))
    content = repr([*command, source.name]).encode() + b"".join(path.read_bytes() for path in sources)
    path = PROJECT / "build" / "cuda" / f"{hashlib.sha256(content).hexdigest()[:16]}.cubin"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        _run([*command, source, "-o", partial])
        if capability == VOLTA:
            ptx = partial.read_text(encoding="utf-8")
            for pattern, label in VOLTA_LABELS.items():
                ptx = re.sub(pattern, label, ptx)
            partial.write_text(ptx, encoding="utf-8")
            _run([sass.TOOLS / "ptxas", "-arch=sm_70", partial, "-o", partial])
        partial.replace(path)
    return path


def _run(command: list[Any]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or done.stderr:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr or done.stdout}")


def version() -> str:
    """nvcc's release."""
    said = subprocess.run([str(NVCC), "--version"], check=True, capture_output=True, text=True).stdout
    return said.rpartition(", V")[2].split()[0]


def resources(path: Path) -> dict[str, tuple[int, int]]:
    """Registers and bytes of stack of every kernel in a cubin, by its mangled name."""
    found = re.findall(r"Function (\S+):\s*REG:(\d+) STACK:(\d+)", sass.cuobjdump("--dump-resource-usage", path))
    return {name: (int(registers), int(stack)) for name, registers, stack in found}


def count(capability: int) -> dict[Kernel, Count]:
    """Instructions and multiply-adds of one block of every kernel. Raises ValueError if the loops of the code are not
    as many as the kernel names."""
    return _count(kernels(capability), SOURCE, capability)


def count_hopper(dtype: torch.dtype = torch.float16) -> dict[Kernel, Count]:
    """The same of the kernels for sm_90a, in float16 or bfloat16: by those of HOPPER_KERNELS."""
    twins = HOPPER_TWINS if dtype == torch.bfloat16 else {one: one for one in HOPPER_KERNELS}
    found = _count(twins.values(), HOPPER_SOURCE, HOPPER)
    return {one: found[twin] for one, twin in twins.items()}


def functions(path: Path, named: str = "") -> dict[str, str]:
    """The machine code (SASS) of the functions in a file whose mangled names contain `named`, by these."""
    found = re.findall(r"Function : (\S+)\n(.*?)(?=\n\s+Function :|\Z)", sass.cuobjdump("-sass", path), re.DOTALL)
    return {name: code for name, code in found if named in name}


def _count(chosen: Iterable[Kernel], source: Path, capability: int) -> dict[Kernel, Count]:
    path = cubin(NETWORK, capability=capability, source=source)
    usage = resources(path)
    code = functions(path)
    return {kernel: _counted(kernel, capability, _mangled(kernel, usage), usage, code) for kernel in chosen}


def _mangled(kernel: Kernel, usage: Mapping[str, Any]) -> str:
    (name,) = (name for name in usage if re.search(rf"\d{re.escape(kernel.symbol)}", name))
    return name


def _counted(
    kernel: Kernel, capability: int, name: str, usage: Mapping[str, tuple[int, int]], code: Mapping[str, str]
) -> Count:
    instructions = sass.parse(code[name])
    loops = sass.natural_loops(instructions)
    if len(loops) != len(kernel.trips):
        sizes = list(map(len, loops))
        raise ValueError(
            f"{name} on sm_{capability}: loops of {sizes} instructions, but trips {kernel.trips} are named"
        )
    weights = {
        address: math.prod(trips for loop, trips in zip(loops, kernel.trips, strict=True) if address in loop)
        for address in instructions
    }
    return Count(
        kernel=kernel.name,
        capability=capability,
        warps=kernel.warps,
        registers=usage[name][0],
        stack=usage[name][1],
        shared=kernel.shared,
        has_dot=True,
        tensor_instructions=sass.tensor_instructions(instructions),
        **sass.work(instructions, weights, kernel.warps),
    )


def on_map(kernel: Kernel, of_block: Count, pixels: int) -> Count:
    """The whole launch on a map of so many pixels."""
    blocks = math.ceil(pixels / kernel.pixels)
    fields = ("instructions", "macs", "wavefronts", "loads", "special", "bytes")
    total = {name: getattr(of_block, name) * blocks for name in fields}
    total["bytes"] = min(total["bytes"], 2 * kernel.halves * pixels)
    return replace(of_block, blocks=blocks, **total)
