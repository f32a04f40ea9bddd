# SPDX-License-Identifier: Apache-2.0
"""Each operator, by every backend that can run it: time, and the share of what the chip allows.

    python -m benchmarks.ops [--sizes 320x180 960x540] [--dtypes float16] [--ops gated_ffn] [--compile]
    python -m benchmarks.ops --device cpu --sizes 320x180

A provider is compared with float64 before it is timed: at most twice the error of plain PyTorch in its dtype. Times
are medians and quartiles of rounds in turns; on a GPU of the GPU alone, with a cold second-level cache. The share is
of a roof measured in the same run: the least bytes over the rate of a large copy, or the least multiply-adds over the
rate of a large product of matrices (on a CPU, of multiply-adds in registers), whichever takes longer. Weights are
prepared, as a network's are. "layers" is a stage run operator by operator; "cuda, all chips" are, on a chip that has
some of its own, the other kernels. Written to `ops.json` in the GPU's folder of results, or to `results/ops-cpu.json`.

On a GPU the order of the backends goes into `ditn_kernels/backend_order.json`, which they are chosen by from then on:
for operators all of whose kernels were timed, in at least 10 rounds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from benchmarks import order
from benchmarks.harness import cases, cpu_timing, gpu_timing, outputs
from benchmarks.harness.outputs import RESULTS
from benchmarks.oracle.tolerance import assert_as_good
from ditn_kernels import REGISTRY, Op, Prepared, _order, explain, use_backend
from ditn_kernels._axes import is_map
from ditn_kernels._dispatch import DECOMPOSED, reasons_against
from ditn_kernels._op import Sample
from ditn_kernels.backends.native import _hopper, _libraries

Call = Callable[[], Any]
ALL_CHIPS = "cuda, all chips"
# Fewer, such as under a profiler, say nothing about which backend is the faster.
ROUNDS_FOR_AN_ORDER = 10


def timing(device: str) -> ModuleType:
    return gpu_timing if device == "cuda" else cpu_timing


def providers(op: Op, args: Mapping[str, Any], *, compiled: bool) -> Iterator[tuple[str, Call]]:
    """The forward by every backend that can, and its definition compiled."""
    device = next(iter(args.values())).device
    for backend in op.backends:
        if not reasons_against(op, backend, args):
            yield backend, prepared(op, args, backend)
            if backend == "cuda" and _hopper.serves(op.name, device):
                yield ALL_CHIPS, for_all_chips(op, args)
    kernels = "triton" if device.type == "cuda" else "cpp"
    if op.decomposition is not None and explain(op, *args.values(), backend=kernels).chosen:
        yield DECOMPOSED, lambda: op.decomposed(*args.values(), backend=kernels)
    if compiled:
        function = torch.compile(op.definition, mode="max-autotune-no-cudagraphs", dynamic=False)
        structured = list(op.structured(args.values()))
        yield "torch.compile", lambda: function(*structured)


def prepared(op: Op, args: Mapping[str, Any], backend: str) -> Call:
    maps = sum(map(is_map, op.axes.values()))
    given = list(args.values())
    run = Prepared(op, *given[maps:])

    def call() -> Tensor:
        with use_backend(backend):
            return run(*given[:maps])

    return call


def for_all_chips(op: Op, args: Mapping[str, Any]) -> Call:
    """CUDA C++ without the kernels for one chip alone."""
    run, device = prepared(op, args, "cuda"), next(iter(args.values())).device

    def call() -> Any:
        with _hopper.without([op.name], device):
            return run()

    return call


def gradients(op: Op, args: Mapping[str, Any], grad: Tensor) -> Iterator[tuple[str, Call]]:
    """The backward by every backend that can."""
    overload = getattr(torch.ops.ditn, f"{op.name}_backward").default
    for backend in op.backends:
        if not reasons_against(op, backend, args, backward=True):
            yield backend, lambda backend=backend: overload(grad, *args.values(), backend=backend)  # type: ignore[misc]


def check(op: Op, sample: Sample, dtype: torch.dtype, device: str, *, compiled: bool) -> None:
    """Every provider on the operator's own small sample. Raises SystemExit for one that is wrong."""
    args = op.inputs(sample, dtype=dtype, device=device)
    wide = {name: value.double() if isinstance(value, Tensor) else value for name, value in args.items()}
    exact, plain = op.reference(**wide), op.reference(**args)
    results = {name: (call(),) for name, call in providers(op, args, compiled=compiled)}
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
                assert_as_good(got, want, base, op.atol_of_max[dtype], f"{what} {name}, result {index}")
        except AssertionError as error:
            raise SystemExit(f"{error}; nothing timed") from error


def roof_ms(op: Op, args: Mapping[str, Any], dtype: torch.dtype, device: str) -> float:
    cost, clock = op.cost(args), timing(device)
    return 1e3 * float(max(cost.bytes / clock.copy_bytes_per_second(), cost.macs / clock.matmul_macs_per_second(dtype)))


def rows(
    op: Op, sample: Sample, dtype: torch.dtype, device: str, *, compiled: bool, rounds: int
) -> Iterator[dict[str, Any]]:
    args = cases.inputs(op, sample, dtype=dtype, device=device)
    grad = torch.randn(op.output_shape(op.check(args), args), dtype=dtype, device=device)
    directions = {"forward": dict(providers(op, args, compiled=compiled))}
    if op.backward is not None:
        directions["backward"] = dict(gradients(op, args, grad.contiguous(memory_format=torch.channels_last)))
    cost = op.cost(args)
    for direction, calls in directions.items():
        for name, times in timing(device).cold_milliseconds(calls, rounds).items():
            row: dict[str, Any] = {
                "operator": op.name,
                "direction": direction,
                "options": dict(sample.options),
                "backend": name,
            }
            row |= {"size": f"{sample.axes['W']}x{sample.axes['H']}", "dtype": str(dtype).removeprefix("torch.")}
            row |= gpu_timing.summary(times)
            if direction == "forward":
                seconds = 1e-3 * row["median_ms"]
                row |= {"gb_per_s": cost.bytes / seconds / 1e9, "tflop_per_s": 2 * cost.macs / seconds / 1e12}
                row["macs_per_byte"] = cost.macs / cost.bytes
                row["share_of_roof"] = roof_ms(op, args, dtype, device) / row["median_ms"]
            yield row


def line(row: Mapping[str, Any]) -> str:
    options = " ".join(str(value) for value in row["options"].values())
    text = f"{row['operator']:22}{options:9}{row['direction']:9}{row['size']:>9} {row['dtype']:9}{row['backend']:14}"
    text += f"{row['median_ms']:9.3f} ms"
    if "share_of_roof" in row:
        text += f"{row['gb_per_s']:8.0f} GB/s{row['tflop_per_s']:7.1f} TFLOP/s{row['share_of_roof']:7.1%} of the roof"
    return text


def keep_order(machine: Mapping[str, Any], found: list[dict[str, Any]], rounds: int) -> None:
    """Write which backend is the faster, and say what is not written."""
    if rounds < ROUNDS_FOR_AN_ORDER:
        print(f"the order of backends stays: {rounds} rounds are fewer than {ROUNDS_FOR_AN_ORDER}")
        return
    lines = order.lines(machine, found)
    for line in lines:
        if missing := order.untimed(line):
            print(f"the order of {line.operator} {line.direction} {line.dtype} stays: no {', '.join(missing)} here")
    order.write(line for line in lines if not order.untimed(line))
    print(f"the order of backends is in {_order.FILE}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = ["320x180", "480x270", "640x360", "960x540"]
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--threads", type=int, default=2, help="on a CPU (default %(default)s)")
    parser.add_argument("--sizes", nargs="+", default=sizes, metavar="WIDTHxHEIGHT", help="padded to multiples of 16")
    parser.add_argument("--dtypes", nargs="+", choices=cases.DTYPES, help="default all; on a CPU float32")
    parser.add_argument("--ops", nargs="+", choices=REGISTRY, default=list(REGISTRY))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile(mode=max-autotune) of the definition, too"
    )
    parser.add_argument("--json", type=outputs.file, help="in place of benchmarks/results, where docs' tables are from")
    args = parser.parse_args()
    if args.device == "cuda":
        gpu_timing.require_gpu()
        path = args.json or gpu_timing.results_folder() / "ops.json"
    elif reason := _libraries.why_missing():
        raise SystemExit(f"nothing to measure: the compiled library {reason}")
    else:
        torch.set_num_threads(args.threads)
        path = args.json or RESULTS / "ops-cpu.json"
    clock = timing(args.device)
    dtypes = [cases.DTYPES[name] for name in args.dtypes or (cases.DTYPES if args.device == "cuda" else ["float32"])]
    found = []
    with torch.inference_mode():
        for op in (REGISTRY[name] for name in args.ops):
            for sample in cases.default_samples(op):
                for dtype in dtypes:
                    check(op, sample, dtype, args.device, compiled=args.compile)
                    for width, height in (map(int, size.split("x")) for size in args.sizes):
                        large = cases.enlarged(sample, -(-height // 16) * 16, -(-width // 16) * 16)
                        for row in rows(op, large, dtype, args.device, compiled=args.compile, rounds=args.rounds):
                            found.append(row)
                            print(".", end="", file=sys.stderr, flush=True)
    roof: dict[str, Any] = {"copy_gb_per_s": clock.copy_bytes_per_second() / 1e9}
    roof["matmul_tflop_per_s"] = {str(dtype): 2 * clock.matmul_macs_per_second(dtype) / 1e12 for dtype in dtypes}
    content = {"machine": clock.machine(), "cold_second_level_cache": True, "rounds": args.rounds, "roof": roof}
    path.write_text(json.dumps(content | {"rows": found}, indent=1) + "\n", encoding="utf-8")
    print("", *map(line, found), f"written to {path}", sep="\n")
    if args.device == "cuda":
        keep_order(content["machine"], found, args.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
