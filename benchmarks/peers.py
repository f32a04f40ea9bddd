# SPDX-License-Identifier: Apache-2.0
"""DITN and its peers side by side: SwinIR-light, ELAN-light, and both at DITN-Real's depth.

    python -m benchmarks.peers --scales 4              # 1280x720 out of images of fixed size
    python -m benchmarks.peers --stream                # twenty images of mixed sizes, x4
    python -m benchmarks.peers --device cuda           # the same in float16

Needs `pip install .[bench]`. The peers have random weights and their best settings: batch norms folded, position biases
and masks kept, the faster memory layout. Every provider is a process of its own, checked against its network in
float64 (shape, finite, error) before `harness/contest.py` times it. At a fixed size, providers may optimise for it.
In a stream they may not, and beside the passes over warm code the first one is told with everything that it waited for:
export, compilation, recompilation, warm-up. Written to `benchmarks/results/` after each part: `peers-x<scale>.json` and
`peers-stream.json`, on a GPU in its folder.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import gpu_timing, outputs
from benchmarks.harness.contest import contest
from benchmarks.harness.machine import machine, versions
from benchmarks.harness.networks import MODELS, new_network
from benchmarks.harness.outputs import PROJECT, RESULTS
from benchmarks.harness.peers import PEERS, REDUCED
from benchmarks.harness.processes import Job
from benchmarks.harness.providers import AS_INSTALLED, INFERENCE, RUNTIMES, Published, title
from ditn_kernels.backends.native import _libraries

# Inputs that give 1280x720; at x3 a column too many.
SIZES = {2: "640x360", 3: "427x240", 4: "320x180"}
STREAM_SCALE = 4
BUILDERS = 2  # at fixed sizes, where getting ready is not timed
# The graph of a DITN that each runtime is faster on, by `benchmarks.cpu`; eager PyTorch has both.
DITN_ON_CPU = (
    "PyTorch eager, published",
    "PyTorch eager, folded",
    "torch.compile, published",
    "AOTInductor, folded",
    "ONNX Runtime, published",
    "OpenVINO f32, published",
    "fused float32",
    f"PyTorch eager, published{AS_INSTALLED}",
    f"fused float32{AS_INSTALLED}",
)
# What is left of them and of a peer's where all would take too long, or at x2 more memory than there is: each keeps its
# own until the last round. Of DITN's exported graphs, OpenVINO's is the fastest.
FEW_ON_CPU = (
    "PyTorch eager",
    "OpenVINO f32",
    "PyTorch eager, published",
    "OpenVINO f32, published",
    "fused float32",
)


def stream_sizes(images: int = 20, sides: tuple[int, int] = (32, 160)) -> tuple[str, ...]:
    """Each side drawn by itself, always the same ones."""
    draw = random.Random(0)
    return tuple(f"{draw.randint(*sides)}x{draw.randint(*sides)}" for _ in range(images))


def entrants(device: str, *, stream: bool, scale: int) -> list[tuple[str, str]]:
    """(network, provider), in the order of the tables. All of them at x4; in the stream all of DITN-Real's."""
    peers = [name for name in PEERS if name not in REDUCED or (scale == 4 and not stream)]
    if device == "cuda":
        found = [(peer, runtime) for peer in peers for runtime in RUNTIMES[device]]
        found += [("ditn-real", name) for name in INFERENCE[device]]
        return found + [(name, "fused") for name in ("ditn-tiny", "ditn")]
    at_x4 = scale == 4 and not stream
    runtimes = [name for name in RUNTIMES[device] if "AOTInductor" not in name and "bf16" not in name]
    found = [
        (peer, runtime)
        for peer in peers
        for runtime in runtimes
        if runtime in FEW_ON_CPU or (at_x4 and peer not in REDUCED)
    ]
    ours = [name for name in DITN_ON_CPU if name in FEW_ON_CPU or scale == 4]
    found += [("ditn-real", name) for name in ours if at_x4 or not name.endswith(AS_INSTALLED)]
    return found + [(name, "fused float32") for name in ("ditn-tiny", "ditn")]


def facts(name: str, scale: int, size: str) -> dict[str, int]:
    """Parameters as trained, and multiply-adds of the network as published for one image: products and convolutions."""
    network = new_network(name, scale)
    width, height = map(int, size.split("x"))
    formula = Published(network) if name in MODELS else network
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        formula.to("meta")(torch.empty(1, 3, height, width))
    return {"parameters": sum(p.numel() for p in network.parameters()), "macs": counter.get_total_flops() // 2}


def part(args: argparse.Namespace, scale: int, sizes: tuple[str, ...]) -> dict[str, Any]:
    """One contest, as it is written down."""
    stream = len(sizes) > 1
    chosen = [
        (network, provider)
        for network, provider in entrants(args.device, stream=stream, scale=scale)
        if (not args.networks or network in args.networks) and (not args.only or provider in args.only)
    ]
    jobs = [Job(*entrant, scale, sizes, args.threads, device=args.device) for entrant in chosen]
    found = contest(
        [(job, PROJECT) for job in jobs],
        rounds=args.rounds,
        seconds=60 * args.minutes,
        builders=1 if stream else BUILDERS,
        forgiving=True,
    )
    where = machine() | versions() if args.device == "cpu" else gpu_timing.machine()
    return {
        "machine": where | {"threads": args.threads},
        "device": args.device,
        "upscale": scale,
        "sizes": list(sizes),
        "networks": {name: facts(name, scale, sizes[0]) for name in dict.fromkeys(network for network, _ in chosen)},
        "rounds": max(len(entrant.passes) for entrant in found),
        "rows": [entrant.row() for entrant in found if not entrant.failure],
        "failed": {str(entrant): entrant.failure for entrant in found if entrant.failure},
    }


def show(result: dict[str, Any]) -> None:
    sizes = result["sizes"]
    print(f"x{result['upscale']}, {sizes[0] if len(sizes) == 1 else f'{len(sizes)} sizes'}, {result['device']}")
    for name, about in result["networks"].items():
        print(f"  {name}: {about['parameters']:,} parameters, {about['macs'] / 1e9:.1f} GMAC for {sizes[0]}")
    for row in result["rows"]:
        low, high = row["quartiles_s"]
        line = f"  {row['network']:16}{title(row['contestant']):44}{row['median_s']:8.3f} s ({low:.3f}..{high:.3f})"
        line += f"{len(sizes) / row['median_s']:8.1f} per s{row['extra_bytes'] / 2**20:8.0f} MiB"
        print(f"{line}, ready after {row['ready_s']:.1f} s, cold {sum(row['first_s']):.2f} s", flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--scales", nargs="*", type=int, choices=SIZES, help="fixed sizes (default 4, 3, 2)")
    parser.add_argument("--stream", action="store_true", help="mixed sizes; alone without --scales")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--minutes", type=float, default=3, help="of rounds in each part, at least three (default 3)")
    parser.add_argument("--networks", nargs="+", choices=[*PEERS, *MODELS], help="default all")
    parser.add_argument("--only", nargs="+", metavar="PROVIDER", help="of each network; default all")
    quick = "tiny images: whether it works, not how fast; written to --results alone"
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--results", type=outputs.folder, help="folder (benchmarks/results, or the GPU's there)")
    args = parser.parse_args(arguments)
    if args.device == "cuda":
        gpu_timing.require_gpu()
    elif reason := _libraries.why_missing():
        raise SystemExit(f"nothing to measure: the compiled library {reason}")
    folder = args.results
    if not folder and not args.quick:
        folder = gpu_timing.results_folder() if args.device == "cuda" else RESULTS
    fixed = args.scales if args.scales is not None else [] if args.stream else [4, 3, 2]
    parts: dict[str, tuple[int, tuple[str, ...]]] = {
        f"peers-x{scale}.json": (scale, ("17x9" if args.quick else SIZES[scale],)) for scale in fixed
    }
    if args.stream or args.scales is None:
        sizes = stream_sizes(3, (9, 24)) if args.quick else stream_sizes()
        parts["peers-stream.json"] = (STREAM_SCALE, sizes)
    for name, (scale, sizes) in parts.items():
        result = part(args, scale, sizes)
        if folder:
            (folder / name).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        show(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
