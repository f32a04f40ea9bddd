# SPDX-License-Identifier: Apache-2.0
"""Each operator on a GPU, by every backend that can run it: time, and the share of what the chip allows.

    python -m benchmarks.ops [--sizes 320x180 960x540] [--dtypes float16] [--ops gated_ffn] [--compile]

A contestant is compared with float64 before it is timed: at most twice the error of plain PyTorch in its dtype. Times
are of the GPU alone, with a cold second-level cache, medians and quartiles of interleaved rounds. The share is of a
roof measured in the same run: the least bytes over the rate of a large copy, or the least multiply-adds over the rate
of a large product of matrices, whichever takes longer. "layers" is a stage run operator by operator.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks import cases
from benchmarks import gpu_timing as gpu
from benchmarks.tolerance import assert_as_good
from ditn_kernels import REGISTRY, Op, explain
from ditn_kernels._dispatch import LAYERS, reasons_against
from ditn_kernels._op import Sample

Call = Callable[[], Any]


def contestants(op: Op, args: Mapping[str, Any], *, compiled: bool) -> Iterator[tuple[str, Call]]:
    """The forward by every backend that can, and its definition compiled."""
    for backend in op.backends:
        if not reasons_against(op, backend, args):
            yield backend, lambda backend=backend: op(*args.values(), backend=backend)  # type: ignore[misc]
    if op.layers is not None and explain(op, *args.values(), backend="triton").chosen:
        yield LAYERS, lambda: op.layers(*args.values(), backend="triton")  # type: ignore[misc]
    if compiled:
        function = torch.compile(op.reference, mode="max-autotune-no-cudagraphs", dynamic=False)
        yield "torch.compile", lambda: function(*args.values())


def gradients(op: Op, args: Mapping[str, Any], grad: Tensor) -> Iterator[tuple[str, Call]]:
    """The backward by every backend that can."""
    overload = getattr(torch.ops.ditn, f"{op.name}_backward").default
    for backend in op.backends:
        if not reasons_against(op, backend, args, backward=True):
            yield backend, lambda backend=backend: overload(grad, *args.values(), backend=backend)  # type: ignore[misc]


def check(op: Op, sample: Sample, dtype: torch.dtype, *, compiled: bool) -> None:
    """Every contestant on the operator's own small sample. Raises SystemExit for one that is wrong."""
    args = op.inputs(sample, dtype=dtype, device="cuda")
    wide = {name: value.double() if isinstance(value, Tensor) else value for name, value in args.items()}
    exact, plain = op.reference(**wide), op.reference(**args)
    results = {name: (call(),) for name, call in contestants(op, args, compiled=compiled)}
    compare(op, f"{op.name} {sample.name}", results, (exact,), (plain,), dtype)
    if op.backward is not None:
        grad = torch.randn_like(plain)
        wanted, usual = (op.backward(g, *a.values()) for g, a in ((grad.double(), wide), (grad, args)))
        results = {name: call() for name, call in gradients(op, args, grad)}
        compare(op, f"{op.name} backward {sample.name}", results, wanted, usual, dtype)


def compare(op: Op, what: str, results: Any, exact: tuple[Tensor, ...], plain: Any, dtype: torch.dtype) -> None:
    for name, tensors in results.items():
        try:
            for index, (got, want, base) in enumerate(zip(tensors, exact, plain, strict=True)):
                assert_as_good(got, want, base, op.floor[dtype], f"{what} {name}, result {index}")
        except AssertionError as error:
            raise SystemExit(f"{error}; nothing timed") from error


def roof_ms(op: Op, args: Mapping[str, Any], dtype: torch.dtype) -> float:
    cost = op.cost(args)
    return 1e3 * max(cost.bytes / gpu.copy_bytes_per_second(), cost.macs / gpu.matmul_macs_per_second(dtype))


def rows(op: Op, sample: Sample, dtype: torch.dtype, *, compiled: bool, rounds: int) -> Iterator[dict[str, Any]]:
    args = cases.inputs(op, sample, dtype=dtype, device="cuda")
    grad = torch.randn(op.output_shape(op.check(args), args), dtype=dtype, device="cuda")
    directions = {"forward": dict(contestants(op, args, compiled=compiled))}
    if op.backward is not None:
        directions["backward"] = dict(gradients(op, args, grad.contiguous(memory_format=torch.channels_last)))
    cost = op.cost(args)
    for direction, calls in directions.items():
        for name, times in gpu.cold_milliseconds(calls, rounds).items():
            row: dict[str, Any] = {
                "operator": op.name,
                "direction": direction,
                "options": dict(sample.options),
                "backend": name,
            }
            row |= {"size": f"{sample.axes['W']}x{sample.axes['H']}", "dtype": str(dtype).removeprefix("torch.")}
            row |= gpu.summary(times)
            if direction == "forward":
                seconds = 1e-3 * row["median_ms"]
                row |= {"gb_per_s": cost.bytes / seconds / 1e9, "tflop_per_s": 2 * cost.macs / seconds / 1e12}
                row["share_of_roof"] = roof_ms(op, args, dtype) / row["median_ms"]
            yield row


def line(row: Mapping[str, Any]) -> str:
    options = " ".join(str(value) for value in row["options"].values())
    text = f"{row['operator']:22}{options:9}{row['direction']:9}{row['size']:>9} {row['dtype']:9}{row['backend']:14}"
    text += f"{row['median_ms']:9.3f} ms"
    if "share_of_roof" in row:
        text += f"{row['gb_per_s']:8.0f} GB/s{row['tflop_per_s']:7.1f} TFLOP/s{row['share_of_roof']:7.1%} of the roof"
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = ["320x180", "480x270", "640x360", "960x540"]
    parser.add_argument("--sizes", nargs="+", default=sizes, metavar="WIDTHxHEIGHT", help="padded to multiples of 16")
    parser.add_argument("--dtypes", nargs="+", choices=cases.DTYPES, default=list(cases.DTYPES))
    parser.add_argument("--ops", nargs="+", choices=REGISTRY, default=list(REGISTRY))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile(mode=max-autotune) of the definition, too"
    )
    args = parser.parse_args()
    gpu.require_gpu()
    found = []
    with torch.inference_mode():
        for op in (REGISTRY[name] for name in args.ops):
            for sample in cases.default_samples(op):
                for dtype in (cases.DTYPES[name] for name in args.dtypes):
                    check(op, sample, dtype, compiled=args.compile)
                    for width, height in (map(int, size.split("x")) for size in args.sizes):
                        large = cases.enlarged(sample, -(-height // 16) * 16, -(-width // 16) * 16)
                        for row in rows(op, large, dtype, compiled=args.compile, rounds=args.rounds):
                            found.append(row)
                            print(".", end="", file=sys.stderr, flush=True)
    dtypes = {cases.DTYPES[name] for name in args.dtypes}
    roof: dict[str, Any] = {"copy_gb_per_s": gpu.copy_bytes_per_second() / 1e9}
    roof["matmul_tflop_per_s"] = {str(dtype): 2 * gpu.matmul_macs_per_second(dtype) / 1e12 for dtype in dtypes}
    content = {"machine": gpu.machine(), "cold_second_level_cache": True, "rounds": args.rounds, "roof": roof}
    path = gpu.results_folder() / "ops.json"
    path.write_text(json.dumps(content | {"rows": found}, indent=1) + "\n", encoding="utf-8")
    print("", *map(line, found), f"written to {path.relative_to(gpu.PROJECT)}", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
