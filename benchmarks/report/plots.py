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

from benchmarks.harness import providers
from benchmarks.report.operators import operator_name
from benchmarks.report.peers import whole_stream

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


def fixed(result: dict[str, Any], figure: Any) -> None:
    """Latency and peak memory of a call."""
    left, right = figure.subplots(1, 2, sharey=True)
    _bars(left, result["rows"], lambda row: row["median_s"], "seconds (median)")
    _bars(right, result["rows"], lambda row: row["extra_bytes"] / 2**20, "peak memory of a call, MiB")
    figure.suptitle(f"{result['sizes'][0]}, x{result['upscale']}, float32, {_where(result)}", fontsize=9)


def mixed(result: dict[str, Any], figure: Any) -> None:
    """The whole stream, with everything that it waits for, and once more."""
    left, right = figure.subplots(1, 2, sharey=True)
    _bars(left, result["rows"], whole_stream, "seconds until all are done, compilation and warm-up included")
    _bars(right, result["rows"], lambda row: row["median_s"], "seconds of a warm pass (median)")
    figure.suptitle(f"{len(result['sizes'])} mixed sizes, x{result['upscale']}, float32, {_where(result)}", fontsize=9)


def roofs(result: dict[str, Any], figure: Any) -> None:
    """Each operator under the roof of bandwidth and multiply-adds."""
    axes = figure.subplots()
    bandwidth, peak = result["roof"]["copy_gb_per_s"], 1e3 * result["roof"]["matmul_tflop_per_s"]["torch.float32"]
    rows = [row for row in result["rows"] if row["backend"] == "cpp" and row["direction"] == "forward"]
    points = sorted((2 * row["macs_per_byte"], 1e3 * row["tflop_per_s"], operator_name(row)) for row in rows)
    corners = sorted((points[0][0] / 2, peak / bandwidth, 2 * points[-1][0]))
    axes.plot(corners, [min(peak, bandwidth * intensity) for intensity in corners], color="black")
    for number, (intensity, rate, label) in enumerate(points):
        axes.scatter(intensity, rate, color=COLOURS["ditn-real"])
        place = (0, (6, -11)[number % 2])
        axes.annotate(label, (intensity, rate), place, textcoords="offset points", fontsize=6, ha="center")
    axes.set(xscale="log", yscale="log", xlabel="FLOP per byte of inputs and outputs", ylabel="GFLOP/s")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_title(f"float32, {_where(result)}", fontsize=9)


def _bars(axes: Any, rows: list[dict[str, Any]], value: Callable[[dict[str, Any]], float], title: str) -> None:
    labels = [f"{row['network']}, {providers.title(row['contestant'])}" for row in rows]
    drawn = axes.barh(labels, [value(row) for row in rows], color=[COLOURS[row["network"]] for row in rows])
    axes.bar_label(drawn, fmt="%.3g", fontsize=6, padding=2)
    axes.margins(x=0.15)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(title, fontsize=8)
    axes.tick_params(labelsize=7)
    if not axes.yaxis_inverted():
        axes.invert_yaxis()


def _where(result: dict[str, Any]) -> str:
    return f"{result['machine']['cpu']}, {result['machine']['threads']} threads"


# By the beginning of the results' names.
KINDS: dict[str, Callable[[dict[str, Any], Any], None]] = {"peers-x": fixed, "peers-stream": mixed, "ops-cpu": roofs}


def draw(folder: Path) -> None:
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = "the same file from the same results"
    for source, plot in _sources(folder):
        figure = Figure(figsize=(9, 4.5), layout="constrained")
        plot(json.loads(source.read_text(encoding="utf-8")), figure)
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
