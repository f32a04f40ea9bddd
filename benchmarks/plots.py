# SPDX-License-Identifier: Apache-2.0
"""Plots of `benchmarks/results/`, beside them, as SVG.

Each carries a fingerprint of the results that it was drawn from, so that `benchmarks.report --check` finds a stale one
without matplotlib.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.report_peers import first_result, whole_stream

# Okabe and Ito's colours, which everybody can tell apart.
COLOURS = {
    "swinir-light": "#d55e00",
    "swinir-8-layers": "#e69f00",
    "elan-light": "#009e73",
    "elan-8-blocks": "#8fcfb9",
    "ditn-real": "#0072b2",
    "ditn-tiny": "#56b4e9",
    "ditn": "#cc79a7",
}


def fixed(result: dict[str, Any], axes: Any) -> None:
    """Latency against peak memory."""
    for row in result["rows"]:
        colour, seconds, mebibytes = COLOURS[row["network"]], row["median_s"], row["extra_bytes"] / 2**20
        fused = row["contestant"].startswith("fused")
        axes.scatter(seconds, mebibytes, color=colour, s=110 if fused else 45, marker="*" if fused else "o")
        label = row["contestant"].replace("PyTorch ", "").replace(" float32", "")
        axes.annotate(label, (seconds, mebibytes), xytext=(5, 3), textcoords="offset points", fontsize=6)
    for name in dict.fromkeys(row["network"] for row in result["rows"]):
        axes.scatter([], [], color=COLOURS[name], label=name)
    axes.set(xscale="log", yscale="log", xlabel="seconds (median)", ylabel="peak memory of a call, MiB")
    axes.set_title(f"{result['sizes'][0]}, x{result['upscale']}, float32, {result['machine']['cpu']}", fontsize=9)
    axes.legend(fontsize=7)


def mixed(result: dict[str, Any], axes: Any) -> None:
    """Images that are done against time, everything counted from the network in memory."""
    for row in result["rows"]:
        done, elapsed = [], row["ready_s"]
        for number, seconds in enumerate(row["first_s"], start=1):
            elapsed += seconds
            done.append((elapsed, number))
        fused = row["contestant"].startswith("fused")
        axes.plot(*zip(*done, strict=True), color=COLOURS[row["network"]], linewidth=2.5 if fused else 1)
        axes.annotate(f"{row['network']}, {row['contestant']}", done[-1], rotation=50, fontsize=6)
    last = max(whole_stream(row) for row in result["rows"])
    axes.set(xscale="log", xlabel="seconds since the network was in memory", ylabel="images done")
    axes.set_xlim(min(first_result(row) for row in result["rows"]) / 2, 4 * last)
    axes.set_ylim(0, 1.6 * len(result["sizes"]))
    axes.set_title(f"{len(result['sizes'])} images of mixed sizes, first pass, {result['machine']['cpu']}", fontsize=9)


def roofs(result: dict[str, Any], axes: Any) -> None:
    """Each operator under the roof of bandwidth and multiply-adds."""
    bandwidth, peak = result["roof"]["copy_gb_per_s"], 1e3 * result["roof"]["matmul_tflop_per_s"]["torch.float32"]
    rows = [row for row in result["rows"] if row["backend"] == "cpu" and row["direction"] == "forward"]
    intensities = [2 * row["macs_per_byte"] for row in rows]
    ends = (min(intensities) / 2, 2 * max(intensities))
    corners = (ends[0], peak / bandwidth, ends[1])
    axes.plot(corners, [min(peak, bandwidth * x) for x in corners], color="black")
    for row, intensity in zip(rows, intensities, strict=True):
        rate = 1e3 * row["tflop_per_s"]
        axes.scatter(intensity, rate, color="#0072b2")
        label = " ".join([row["operator"], *(str(value) for value in row["options"].values())])
        axes.annotate(label, (intensity, rate), xytext=(4, -8), textcoords="offset points", fontsize=6)
    axes.set(xscale="log", yscale="log", xlabel="FLOP per byte of inputs and outputs", ylabel="GFLOP/s")
    axes.set_title(f"float32, {result['machine']['threads']} threads, {result['machine']['cpu']}", fontsize=9)


# By the beginning of the results' names.
KINDS: dict[str, Callable[[dict[str, Any], Any], None]] = {"peers-x": fixed, "peers-stream": mixed, "ops-cpu": roofs}


def draw(folder: Path) -> None:
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = "the same file from the same results"
    for source, plot in _sources(folder):
        figure = Figure(figsize=(8, 5), layout="constrained")
        plot(json.loads(source.read_text(encoding="utf-8")), figure.add_subplot())
        metadata = {"Date": None, "Creator": None, "Description": _fingerprint(source)}
        figure.savefig(source.with_suffix(".svg"), metadata=metadata)


def stale(folder: Path) -> list[Path]:
    """Plots that are missing or were drawn from other results."""
    plots = {source.with_suffix(".svg"): _fingerprint(source) for source, _ in _sources(folder)}
    return [path for path, mark in plots.items() if not path.exists() or mark not in path.read_text(encoding="utf-8")]


def _sources(folder: Path) -> Iterator[tuple[Path, Callable[[dict[str, Any], Any], None]]]:
    for start, plot in KINDS.items():
        for source in sorted(folder.glob(f"{start}*.json")):
            yield source, plot


def _fingerprint(source: Path) -> str:
    return "results sha256 " + hashlib.sha256(source.read_bytes()).hexdigest()
