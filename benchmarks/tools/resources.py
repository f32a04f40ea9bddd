# SPDX-License-Identifier: Apache-2.0
"""What the kernels for GPUs take of a chip: compiled for it and counted, without a GPU.

    python -m benchmarks.tools.resources [--json benchmarks/results/resources.json]
    python -m benchmarks.tools.resources --backend cuda [--json benchmarks/results/resources-cuda.json]

Triton's by default: every launch of every operator, forward and backward; of CUDA C++ those that cuda_code.py lists.
For DITN-Real x4's layers on a map of 960 x 544: registers per thread, bytes of shared memory, bytes of stack (spilled
registers), the warps that a multiprocessor runs at once, and, per 64 pixels, warp-instructions, wavefronts of the
first-level cache and tensor-core multiply-adds. The estimated cycles (`estimate.py`) are added up over an operator.
Beside them stands what an H200 took, where that was measured, of the code of that day (`measured.py`).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import torch
import triton

from benchmarks.harness import cases, outputs
from benchmarks.tools import cuda_code, estimate, measured, sass
from benchmarks.tools.estimate import CHIPS, Count
from ditn_kernels import REGISTRY
from ditn_kernels._op import Sample
from ditn_kernels.backends.triton import _assembler
from ditn_kernels.backends.triton._dispatch import interpreted

_COLUMNS = {
    "kernel": "",
    "registers": "regs",
    "shared": "shared",
    "stack": "stack",
    "warps": "warps",
    "instructions": "instructions",
    "wavefronts": "wavefronts",
    "macs": "macs",
    "cycles": "cycles",
    "measured": "measured",
}


@dataclass(frozen=True)
class Case:
    """One direction of an operator on one sample."""

    op: str
    backward: bool
    sample: Sample
    dtype: torch.dtype
    capability: int


def all_cases(dtypes: list[torch.dtype], capabilities: list[int], *, samples: str) -> Iterator[Case]:
    """Every operator with Triton kernels, in both directions: the samples and chips that its table admits."""
    for op in (op for op in REGISTRY.values() if "triton" in op.backends):
        support = op.backends["triton"]
        chosen = cases.framed_samples(op, samples)
        for dtype, backward, sample in itertools.product(dtypes, (False, True), chosen):
            if support.why_not(cases.inputs(op, sample, dtype=dtype, device="meta"), backward=backward):
                continue
            chips = [one for one in capabilities if not support.why_not_on(divmod(one, 10), backward=backward)]
            yield from (Case(op.name, backward, sample, dtype, chip) for chip in chips)


def counts(case: Case) -> list[Count]:
    """A count of every launch."""
    recorded = cases.launches(
        REGISTRY[case.op], case.sample, dtype=case.dtype, capability=case.capability, backward=case.backward
    )
    return [sass.count(launch, case.capability) for launch in recorded]


def row(count: Count, case: Case) -> dict[str, Any]:
    def per_64(total: float | None) -> int | None:
        return None if total is None else round(total * 64 / cases.pixels(case.sample))

    return {
        "kernel": count.kernel,
        "registers": count.registers,
        "shared": count.shared,
        "stack": count.stack,
        "resident_warps": count.resident_warps,
        "warps": count.warps * count.blocks_at_once,
        "instructions": per_64(count.instructions),
        "macs": per_64(count.macs),
        "wavefronts": per_64(count.wavefronts),
        "cycles": None if count.uncounted else round(estimate.cycles([count], case.dtype, cases.pixels(case.sample))),
        "fits": count.fits,
        "has_dot": count.has_dot,
        "tensor_instructions": count.tensor_instructions,
    }


def cuda_results(capabilities: list[int]) -> Iterator[dict[str, Any]]:
    """The same of the CUDA kernels in float16. Those for one chip alone come last, in bfloat16, too."""
    for capability in capabilities:
        yield from _cuda_results(cuda_code.count(capability), capability, "cuda", torch.float16)
        if capability == cuda_code.HOPPER:
            for dtype in (torch.float16, torch.bfloat16):
                yield from _cuda_results(cuda_code.count_hopper(dtype), capability, "hopper", dtype)


def _cuda_results(
    found: Mapping[cuda_code.Kernel, Count], capability: int, backend: str, dtype: torch.dtype
) -> Iterator[dict[str, Any]]:
    """`backend`: as whose kernels they were measured."""
    for title, kernels in itertools.groupby(found, key=lambda kernel: (kernel.operator, dict(kernel.options))):
        operator = REGISTRY[title[0]]
        sample = next(one for one in cases.framed_samples(operator) if dict(one.options) == title[1])
        case = Case(operator.name, False, sample, dtype, capability)
        counts = [cuda_code.on_map(kernel, found[kernel], cases.pixels(sample)) for kernel in kernels]
        yield result_of(case, [row(one, case) for one in counts], backend)


def result_of(case: Case, rows: list[dict[str, Any]], backend: str) -> dict[str, Any]:
    options = dict(case.sample.options)

    def taken(kernel: str = "") -> int | None:
        if case.capability != measured.CAPABILITY or case.dtype != torch.float16 or case.backward:
            return None
        cycles = measured.cycles_of(backend, case.op, options, kernel)
        return None if cycles is None else round(cycles)

    return {
        "operator": case.op,
        "backward": case.backward,
        "sample": case.sample.name,
        "options": options,
        "dtype": str(case.dtype).removeprefix("torch."),
        "capability": case.capability,
        "cycles": None if any(one["cycles"] is None for one in rows) else sum(one["cycles"] for one in rows),
        "measured": taken(),
        "launches": [one | {"measured": taken(one["kernel"])} for one in rows],
    }


def show(result: dict[str, Any]) -> None:
    columns = "{:34}{:>6}{:>8}{:>7}{:>7}{:>14}{:>12}{:>11}{:>9}{:>10}"
    options = ", ".join(f"{name} {value}" for name, value in result["options"].items())
    direction = "backward" if result["backward"] else "forward"
    print(
        f"\n{result['operator']} {direction} ({options}), {result['dtype']}, sm_{result['capability']}: "
        f"{'?' if result['cycles'] is None else result['cycles']} cycles per 64 pixels"
        + (f", measured {result['measured']}" if result["measured"] else "")
    )
    print(columns.format(*_COLUMNS.values()))
    for one in result["launches"]:
        print(columns.format(*("" if one[name] is None else one[name] for name in _COLUMNS)))


def triton_results(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    chosen = list(all_cases([cases.DTYPES[n] for n in args.dtypes], args.capabilities, samples=args.samples))
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        for case, found in zip(chosen, pool.map(counts, chosen), strict=True):
            yield result_of(case, [row(one, case) for one in found], "triton")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=("triton", "cuda"), default="triton")
    parser.add_argument("--capabilities", nargs="+", type=int, choices=CHIPS, default=[80, 90], metavar="CC")
    parser.add_argument("--dtypes", nargs="+", choices=cases.DTYPES, default=["float16"])
    parser.add_argument(
        "--samples",
        choices=("network", "norms", "all"),
        default="network",
        help="the network's layers, these with every norm, or all of the operators' samples (default: %(default)s)",
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="how many compile at once")
    parser.add_argument("--json", type=outputs.file)
    parser.add_argument("--quiet", action="store_true", help="no table")
    args = parser.parse_args()
    if interpreted():
        raise SystemExit("TRITON_INTERPRET is set: nothing would be compiled")
    results = []
    for result in cuda_results(args.capabilities) if args.backend == "cuda" else triton_results(args):
        results.append(result)
        if not args.quiet:
            show(result)
    if args.json:
        choices = {chip: _assembler.choose(chip) for chip in args.capabilities}
        assemblers = {
            f"sm_{chip}": one.assembler.identity if one.assembler else str(one) for chip, one in choices.items()
        }
        in_triton: dict[str, Any] = {"triton": triton.__version__, "assemblers": assemblers}
        compiler = in_triton if args.backend == "triton" else {"nvcc": cuda_code.version()}
        facts = compiler | {"date": time.strftime("%Y-%m-%d"), "map": cases.FRAME}
        args.json.write_text(json.dumps(facts | {"results": results}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
