# SPDX-License-Identifier: Apache-2.0
"""A DITN on a CPU, fused and in other runtimes, from what `benchmarks.cpu` wrote."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness.providers import AS_INSTALLED, title
from benchmarks.report.results import NOT_MEASURED, Content, bullet, find, folder, load, side_by_side

EAGER, FUSED = "PyTorch eager, published", "fused float32"
HEADLINE = ("ditn-real", 4, "inference", "320x180", 2)  # model, scale, task, size, threads


def headline(project: Path) -> str:
    """The one line about CPUs: a range over all machines that measured HEADLINE."""
    found = [
        (result["machine"]["cpu"], run)
        for result in _results(project)
        for run in result["runs"]
        if (result["model"], result["upscale"], run["task"], run["size"], run["threads"]) == HEADLINE
        and all(_row(run, name + kept) for name in (EAGER, FUSED) for kept in ("", AS_INSTALLED))
    ]
    if not found:
        return NOT_MEASURED
    cpus, runs = dict.fromkeys(cpu for cpu, _ in found), [run for _, run in found]
    times = [_row(run, FUSED)["median_s"] for run in runs]
    kept, installed, fastest = (_range([of(run) for run in runs]) for of in (_kept, _installed, _fastest_ratio))
    return bullet(
        f"**CPU** (float32, {HEADLINE[4]} threads): DITN-Real x4 enlarges {HEADLINE[3]} in "
        f"{min(times):.2f} to {max(times):.2f} s. That is {kept} times as fast as the published formula in eager "
        f"PyTorch with freed memory kept, {installed} times with PyTorch as installed, and {fastest} times as fast as "
        f"the fastest other runtime ({', '.join(cpus)})."
    )


def _range(ratios: list[float]) -> str:
    return f"{min(ratios):.1f} to {max(ratios):.1f}"


def ratios(project: Path) -> str:
    """Against other ways to run the network, a line for each run: ratios alone."""
    lines = [
        f"| | {FUSED} | eager, freed memory kept | eager, as installed | fastest other, float32 | bfloat16: OpenVINO | "
        "share of the float32 peak | memory: eager |",
        "|---|---|---|---|---|---|---|---|",
    ]
    machines: set[str] = set()
    for result in _results(project):
        machine = result["machine"]["cpu"]
        if machine not in machines:
            machines.add(machine)
            lines.append(f"| **{machine}** | | | | | | | |")
        lines += [f"| {result['model']} x{result['upscale']}, {line(run)} |" for run in result["runs"]]
    return "\n".join(lines) if machines else NOT_MEASURED


def line(run: Content) -> str:
    """The cells of a run."""
    fused, eager = _row(run, FUSED), _row(run, EAGER)
    halves = [row["median_s"] for row in run["rows"] if "bf16" in row["contestant"]]
    share = fused.get("share_of_peak")
    cells = [
        _head(run),
        f"{fused['median_s']:.3f} s",
        f"{_kept(run):.2f} x",
        f"{_installed(run):.2f} x" if _row(run, EAGER + AS_INSTALLED) else "",
        f"{_fastest_ratio(run):.2f} x ({title(_fastest(run)['contestant'])})",
        f"{min(halves) / _row(run, 'fused bfloat16')['median_s']:.2f} x" if halves else "",
        f"{share:.0%}; with all of it {_kept(run) / share:.1f} x eager" if share else "",
        f"{eager['extra_bytes'] / fused['extra_bytes']:.1f} x",
    ]
    return " | ".join(cells)


def _kept(run: Content) -> float:
    return float(_row(run, EAGER)["median_s"] / _row(run, FUSED)["median_s"])


def _installed(run: Content) -> float:
    """Both as installed."""
    return float(_row(run, EAGER + AS_INSTALLED)["median_s"] / _row(run, FUSED + AS_INSTALLED)["median_s"])


def _fastest(run: Content) -> Content:
    """Of all others that compute in float32 and keep freed memory."""
    names = ("fused", AS_INSTALLED, "bf16")
    others: list[Content] = [row for row in run["rows"] if not any(name in row["contestant"] for name in names)]
    return min(others, key=lambda row: float(row["median_s"]))


def _fastest_ratio(run: Content) -> float:
    return float(_fastest(run)["median_s"] / _row(run, FUSED)["median_s"])


def every_provider(project: Path) -> str:
    """Every way to run the network, with spread and memory."""
    return side_by_side(
        _results(project), cell, _head, name=title, last=(f"{FUSED}'s share of the float32 peak", _share)
    )


def cell(run: Content, provider: str) -> str:
    """Median, quartiles, how many times longer than fused float32, peak memory."""
    row = _row(run, provider)
    if not row:
        return ""
    low, high = row["quartiles_s"]
    ratio = row["median_s"] / _row(run, FUSED)["median_s"]
    return f"{row['median_s']:.3f} s ({low:.3f} to {high:.3f}), {ratio:.2f} x, {row['extra_bytes'] / 2**20:.0f} MiB"


def _share(run: Content) -> str:
    share = _row(run, FUSED).get("share_of_peak")
    return f"{share:.0%} of {run['peak_flops'] / 1e9:.0f} GFLOP/s" if share else ""


def _head(run: Content) -> str:
    return f"{run['size']}{' training' * (run['task'] == 'training')}, {run['threads']} thr."


def _row(run: Content, provider: str) -> Content:
    return find(run, contestant=provider)


def _results(project: Path) -> Iterator[Content]:
    """Of all machines."""
    return map(load, sorted(folder(project).rglob("cpu-*.json")))


def in_one_process(project: Path) -> str:
    """What an earlier timer measured, which ran all providers in one process, whose freed memory went back."""
    lines = ["| model | input | provider | median | quartiles | against published |", "|---|---|---|---|---|---|"]
    machines = set()
    for result in map(load, sorted(folder(project).glob("model-*.json"))):
        machine = result["machine"]
        machines.add(f"{machine['cpu']}, {machine['threads']} threads, PyTorch {machine['torch']}, {machine['date']}")
        for row in result["rows"]:
            low, high = row["quartiles_s"]
            ratio = find(result, size=row["size"], contestant="published")["median_s"] / row["median_s"]
            name = row["contestant"] if row["contestant"] == "fused" else f"PyTorch eager, {row['contestant']}"
            lines.append(
                f"| {result['model']} x{result['upscale']} | {row['size']} | {name}{AS_INSTALLED}, one process | "
                f"{row['median_s']:.3f} s | {low:.3f} to {high:.3f} | {ratio:.2f} x |"
            )
    return "\n".join([*lines, "", f"Measured on: {'; '.join(sorted(machines))}."])
