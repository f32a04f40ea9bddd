# SPDX-License-Identifier: Apache-2.0
"""Operators: which backend runs which, and each on a CPU against its roof."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.report.results import NOT_MEASURED, Content, folder, load_if_there
from benchmarks.tools import estimate
from ditn_kernels import REGISTRY
from ditn_kernels._support import Support


def support(project: Path) -> str:
    """Which backend runs which operator in which dtypes, from the operators' own tables."""
    names = list(dict.fromkeys(name for op in REGISTRY.values() for name in op.backends if name != "torch"))
    lines = [f"| operator | {' | '.join(f'`{name}`' for name in names)} |", f"|---|{'---|' * len(names)}"]
    for op in REGISTRY.values():
        cells = (_dtypes(op.backends.get(name), differentiable=op.backward is not None) for name in names)
        lines.append(f"| `{op.name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _dtypes(support: Support | None, *, differentiable: bool) -> str:
    if support is None:
        return "its layers"
    forward, backward = (", ".join(_SHORT[dtype] for dtype in some) for some in (support.dtypes, support.backward))
    forward += "".join(f", {_SHORT[dtype]} on {_chips(some)}" for dtype, some in support.forward_in.items())
    return f"{forward}; gradients {backward or 'by `torch`'}" if differentiable else forward


def _chips(support: Support) -> str:
    """Those that it is limited to, by their compute capability."""
    chips = [chip for chip in estimate.CHIPS if not support.why_not_on(divmod(chip, 10), backward=False)]
    return ", ".join(f"sm_{chip}" for chip in chips)


_SHORT = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


def roofline(project: Path) -> str:
    """Each operator's rate on a CPU against the lower of two roofs that were measured in the same run."""
    result = load_if_there(folder(project) / "ops-cpu.json")
    if result is None:
        return NOT_MEASURED
    machine, roof = result["machine"], result["roof"]
    lines = [
        "| operator | size | median | multiply-adds per byte | GFLOP/s | of the roof |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        if row["backend"] == "cpp" and row["direction"] == "forward":
            lines.append(
                f"| {operator_name(row)} | {row['size']} | {row['median_ms']:.2f} ms | {row['macs_per_byte']:.1f} | "
                f"{1e3 * row['tflop_per_s']:.0f} | {row['share_of_roof']:.0%} |"
            )
    flops = roof["matmul_tflop_per_s"]["torch.float32"] * 1e3
    where = f"{machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}, {machine['date']}"
    roofs = f"a copy moves {roof['copy_gb_per_s']:.1f} GB/s, multiply-adds in registers make {flops:.0f} GFLOP/s"
    plot = "![operators under their roofs](../benchmarks/results/ops-cpu.svg)"
    return "\n".join([*lines, "", f"Roofs: {roofs}. Measured on: {where}, {result['rounds']} rounds.", "", plot])


def operator_name(row: Content) -> str:
    """With its options: the norm, and 8 for patches or 0 for the whole map."""
    return " ".join([row["operator"], *(str(value) for value in row["options"].values())])
