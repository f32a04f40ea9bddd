# SPDX-License-Identifier: Apache-2.0
"""The numbers in README.md and docs/ from `benchmarks/results/`, and the plots beside these.

    python benchmarks/report.py [--check] [--plots]

`results/evaluate-<model>.json` are written by `recipes/ship.py`, `results/model-*.json` by `benchmarks.model`,
`results/cpu-*.json` by `benchmarks.cpu`, `results/deploy-*.json` by `benchmarks.deploy`, `results/peers-*.json` by
`benchmarks.peers`, `results/ops-cpu.json` by `benchmarks.ops`, `results/auto.json` by `benchmarks.auto`; those of
further machines lie in folders, as do those of GPUs, which are written by `benchmarks.gpu` and `benchmarks.ops`. A
block between `<!-- NAME -->` and `<!-- /NAME -->` belongs to the function that stands beside this name in PAGES.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

# Called as a file, too, it finds the package that it belongs to.
sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import auto, deploy, gpu_report, performance, plots
from benchmarks.contestants import AS_INSTALLED
from ditn.recipe import load_recipe
from ditn.scores import overview
from ditn_kernels import REGISTRY
from ditn_kernels._op import Support

PROJECT = Path(__file__).parent.parent
RESULTS = performance.RESULTS
RECIPES, WEIGHTS = PROJECT / "recipes", PROJECT / "ditn" / "weights"


def quality() -> str:
    """PSNR-Y and SSIM-Y of the shipped weights and of bicubic interpolation, and how the weights came about; of images
    degraded as photographs are in a table of their own."""
    rows = [_load(path) for path in sorted(RESULTS.glob("evaluate-*.json"))]
    rows.sort(key=lambda row: (row["scale"], row["model"] == "bicubic", row["model"]))
    photos = [row for row in rows if row["degradation"] == "photo"]
    blocks = [_scores([row for row in rows if row not in photos])]
    if photos:
        blocks += ["The low-resolution images blurred, noisy and compressed (`--degradation photo`):", _scores(photos)]
    return "\n\n".join(blocks)


def _scores(rows: list[dict[str, Any]]) -> str:
    return overview(rows, {"trained": [_training(row["model"]) for row in rows]})


def _training(name: str) -> str:
    """How weights came about, from their recipe, its log and the file's metadata."""
    recipe_file = RECIPES / f"{name}.toml"
    if not recipe_file.exists():
        return ""
    recipe = load_recipe(recipe_file)
    with (RECIPES / f"{name}.log.csv").open(newline="") as file:
        minutes = float(list(csv.DictReader(file))[-1]["seconds"]) / 60
    with safe_open(WEIGHTS / f"{name}.safetensors", framework="pt") as weights:
        hardware = weights.metadata().get("hardware", "CPU")
    start = f"from {recipe.init}" if recipe.init else "from an interpolation" if recipe.interpolation_start else ""
    what = f"{recipe.steps:,} steps of {recipe.batch} x {recipe.patch}x{recipe.patch}"
    return f"{what} {start}, {minutes:.0f} min on {hardware}"


def speed() -> str:
    """Latency of whole networks, each ratio from one interleaved run."""
    lines = ["| model | input | contestant | median | quartiles | against published |", "|---|---|---|---|---|---|"]
    machines = set()
    for path in sorted(RESULTS.glob("model-*.json")):
        result = _load(path)
        machine = result["machine"]
        machines.add(f"{machine['cpu']}, {machine['threads']} threads, PyTorch {machine['torch']}, {machine['date']}")
        base = {row["size"]: row["median_s"] for row in result["rows"] if row["contestant"] == "published"}
        for row in result["rows"]:
            low, high = row["quartiles_s"]
            lines.append(
                f"| {result['model']} x{result['upscale']} | {row['size']} | {row['contestant']} | "
                f"{row['median_s']:.3f} s | {low:.3f} to {high:.3f} | {base[row['size']] / row['median_s']:.2f} x |"
            )
    return "\n".join([*lines, "", f"Measured on: {'; '.join(sorted(machines))}."])


def support() -> str:
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
    return f"{forward}; gradients {backward or 'by `torch`'}" if differentiable else forward


_SHORT = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


def _side_by_side(results: str, cell: Callable[[dict[str, Any], str], str], last: str = "") -> str:
    """A table for each file: a row for each contestant, a column for each run; `last` names one more row, of shares."""
    blocks = []
    for path in sorted(RESULTS.rglob(results)):
        result = _load(path)
        runs, machine = result["runs"], result["machine"]
        names = list(dict.fromkeys(row["contestant"] for run in runs for row in run["rows"]))
        lines = [
            f"| {result['model']} x{result['upscale']} | {' | '.join(map(_head, runs))} |",
            "|---|" + "---|" * len(runs),
        ]
        lines += [f"| {name} | {' | '.join(cell(run, name) for run in runs)} |" for name in names]
        lines += [f"| {last} | {' | '.join(map(_share, runs))} |"] if last else []
        used = ", ".join(f"{name} {machine[name]}" for name in ("torch", "onnxruntime", "openvino"))
        blocks.append("\n".join([*lines, "", f"Measured on: {machine['cpu']}, {used}, {machine['date']}."]))
    return "\n\n".join(blocks) or "Not measured yet."


def cpu() -> str:
    """The C++ kernels against other ways to run the network, a line for each run: ratios alone."""
    lines = [
        "| | fused float32 | PyTorch eager | both as installed | fastest other, float32 | bfloat16: OpenVINO | "
        "share of the float32 peak | memory: eager |",
        "|---|---|---|---|---|---|---|---|",
    ]
    machines: set[str] = set()
    for path in sorted(RESULTS.rglob("cpu-*.json")):
        result = _load(path)
        machine = result["machine"]["cpu"]
        if machine not in machines:
            machines.add(machine)
            lines.append(f"| **{machine}** | | | | | | | |")
        lines += [f"| {result['model']} x{result['upscale']}, {_ratios(run)} |" for run in result["runs"]]
    return "\n".join(lines) if machines else "Not measured yet."


def _ratios(run: dict[str, Any]) -> str:
    fused, eager = _row(run, "fused float32"), _row(run, "PyTorch eager, published")
    others = [
        row for row in run["rows"] if not row["contestant"].startswith("fused") and "bf16" not in row["contestant"]
    ]
    fastest = min(
        (row for row in others if not row["contestant"].endswith(AS_INSTALLED)), key=lambda row: row["median_s"]
    )
    halves = [row["median_s"] for row in run["rows"] if "bf16" in row["contestant"]]
    installed = [_row(run, one + AS_INSTALLED) for one in ("PyTorch eager, published", "fused float32")]
    gain, share = eager["median_s"] / fused["median_s"], fused.get("share_of_peak")
    cells = [
        _head(run),
        f"{fused['median_s']:.3f} s",
        f"{gain:.2f} x",
        f"{installed[0]['median_s'] / installed[1]['median_s']:.2f} x" if all(installed) else "",
        f"{fastest['median_s'] / fused['median_s']:.2f} x ({fastest['contestant']})",
        f"{min(halves) / _row(run, 'fused bfloat16')['median_s']:.2f} x" if halves else "",
        f"{share:.0%}; with all of it {gain / share:.1f} x eager" if share else "",
        f"{eager['extra_bytes'] / fused['extra_bytes']:.1f} x",
    ]
    return " | ".join(cells)


def contest() -> str:
    """Every contestant on a CPU."""
    return _side_by_side("cpu-*.json", _seconds, last="fused float32's share of the float32 peak")


def _head(run: dict[str, Any]) -> str:
    return f"{run['size']}{' training' * (run['task'] == 'training')}, {run['threads']} thr."


def _row(run: dict[str, Any], name: str) -> dict[str, Any]:
    return next((row for row in run["rows"] if row["contestant"] == name), {})


def _seconds(run: dict[str, Any], name: str) -> str:
    """Median, spread, how many times longer than fused float32, peak memory."""
    row = _row(run, name)
    if not row:
        return ""
    low, high = row["quartiles_s"]
    ratio = row["median_s"] / _row(run, "fused float32")["median_s"]
    return f"{row['median_s']:.3f} s ({low:.3f} to {high:.3f}), {ratio:.2f} x, {row['extra_bytes'] / 2**20:.0f} MiB"


def _share(run: dict[str, Any]) -> str:
    share = _row(run, "fused float32").get("share_of_peak")
    return f"{share:.0%} of {run['peak_flops'] / 1e9:.0f} GFLOP/s" if share else ""


def deployed() -> str:
    """Files of `ditn export` in their runtimes."""
    return _side_by_side("deploy-*.json", _gain)


def _gain(run: dict[str, Any], name: str) -> str:
    """Median, ratio to the plain graph in the same runtime, peak memory."""
    row = _row(run, name)
    if not row:
        return ""
    ratio = deploy.gain(row, run["rows"])
    against = "" if ratio is None else f" ({ratio:.2f} x)"
    return f"{row['median_s']:.3f} s{against}, {row['extra_bytes'] / 2**20:.0f} MiB"


def _auto(table: Callable[[dict[str, Any]], str]) -> Callable[[], str]:
    return lambda: table(_load(RESULTS / "auto.json"))


# The blocks of each page.
PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {
        "quality": quality,
        "speed": speed,
        "claims": performance.claims,
        "cpu": cpu,
        "gpu": gpu_report.summary,
        "support": support,
    },
    "docs/performance.md": {
        "networks": performance.networks,
        "claims": performance.claims,
        "peers": performance.peers,
        "contest": contest,
        "stream": performance.stream,
        "paper": performance.paper,
        "roofline": performance.roofline,
        "gpu-networks": gpu_report.networks,
        "gpu-operators": gpu_report.operators,
    },
    "docs/auto.md": {
        "confusion": _auto(auto.confusion_table),
        "clean": _auto(auto.clean_table),
        "cost": _auto(auto.cost_table),
        "real": _auto(auto.real_table),
    },
    "docs/deployment.md": {"deployed": deployed},
}


def rewritten(text: str, page: str) -> str:
    """The text of a page with every block made anew. Raises ValueError for a block that is missing."""
    for name, make in PAGES[page].items():
        text, count = re.subn(
            rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)",
            lambda match, make=make: match[1] + make() + "\n" + match[2],  # type: ignore[misc]
            text,
            flags=re.DOTALL,
        )
        if count != 1:
            raise ValueError(f"{page} has {count} blocks named {name}, expected one")
    return text


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail if pages or plots do not say what the results say")
    parser.add_argument("--plots", action="store_true", help="draw the plots anew; needs matplotlib")
    args = parser.parse_args(arguments)
    if args.plots:
        plots.draw(RESULTS)
    stale = [
        f"{path.relative_to(PROJECT)} is not of these results; run `python -m benchmarks.report --plots`"
        for path in plots.stale(RESULTS)
    ]
    for page in PAGES:
        path = PROJECT / page
        before = path.read_text(encoding="utf-8")
        after = rewritten(before, page)
        if args.check and after != before:
            stale.append(f"{page} differs from benchmarks/results or the operators; run `make format`")
        elif after != before:
            path.write_text(after, encoding="utf-8")
    print(*stale, sep="\n", end="\n" * bool(stale), file=sys.stderr)
    return int(args.check and bool(stale))


def _load(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


if __name__ == "__main__":
    sys.exit(main())
