# SPDX-License-Identifier: Apache-2.0
"""DITN beside other networks, from what `benchmarks.peers` wrote: work, claims, times, the paper's figures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness.providers import AS_INSTALLED, title
from benchmarks.report.results import NOT_MEASURED, Content, find, folder, load, load_if_there

OURS = ("ditn-real", "fused float32")
# Milliseconds and GB on the authors' poster, x2, x3, x4, by TensorRT at fixed sizes. It names neither GPU, precision,
# TensorRT's version nor sizes; that the result's size is held is inferred from how times scale.
POSTER = {
    "SwinIR-Tiny": ((131, 55, 34), (2.2, 2.0, 1.9)),
    "ELAN-Tiny": ((62, 30, 17), (1.9, 1.6, 1.5)),
    "DITN-Tiny": ((57, 27, 16), (1.5, 1.3, 1.2)),
    "DITN-Real": ((42, 19, 11), (1.4, 1.2, 1.1)),
}
# The poster's names and the providers that come nearest. Its peers are defined nowhere; these are this project's
# reductions to DITN-Real's depth, by the faster of the runtimes.
NEAREST = {
    "SwinIR-Tiny": "swinir-8-layers",
    "ELAN-Tiny": "elan-8-blocks",
    "DITN-Tiny": "ditn-tiny",
    "DITN-Real": "ditn-real",
}


def networks(project: Path) -> str:
    """Parameters and work, of the networks as published."""
    results = dict(_fixed(folder(project)))
    if not results:
        return NOT_MEASURED
    lines = ["| network | parameters, x4 | " + " | ".join(f"GMAC, x{scale}" for scale in results) + " |"]
    lines.append("|---|---|" + "---|" * len(results))
    for name in next(iter(results.values()))["networks"]:
        about = [result["networks"].get(name) for result in results.values()]
        cells = [f"{facts['macs'] / 1e9:.1f}" if facts else "" for facts in about]
        lines.append(f"| {name} | {about[0]['parameters']:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def peers(project: Path) -> str:
    """Latency, pictures per second and peak memory at fixed sizes; a table for each machine and scale."""
    machines = _machines(folder(project))
    tables = [_peers_table(*found, plotted=place == machines[0]) for place in machines for found in _fixed(place)]
    return "\n\n".join(tables) or NOT_MEASURED


def _peers_table(scale: int, result: Content, *, plotted: bool) -> str:
    base = _row(result, *OURS)["median_s"]
    lines = [
        f"| x{scale}, {result['sizes'][0]} | | median | quartiles | per second | times DITN-Real fused | memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        low, high = row["quartiles_s"]
        lines.append(
            f"| {row['network']} | {title(row['contestant'])} | {row['median_s']:.3f} s | {low:.3f} to {high:.3f} | "
            f"{1 / row['median_s']:.2f} | {row['median_s'] / base:.2f} | {row['extra_bytes'] / 2**20:.0f} MiB |"
        )
    lines += ["", measured_on(result)]
    if plotted:
        lines += ["", f"![latency and memory at x{scale}](../benchmarks/results/peers-x{scale}.svg)"]
    return "\n".join(lines)


def stream(project: Path) -> str:
    """Images of mixed sizes: until the first result, until the last one, and once everything is warm."""
    result = load_if_there(folder(project) / "peers-stream.json")
    if result is None:
        return NOT_MEASURED
    base = _row(result, *OURS)
    lines = [
        f"| {len(result['sizes'])} sizes, x{result['upscale']} | | first result after | all after | warm pass "
        "| quartiles | times DITN-Real fused |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        low, high = row["quartiles_s"]
        ratio = row["median_s"] / base["median_s"]
        lines.append(
            f"| {row['network']} | {title(row['contestant'])} | {first_result(row):.1f} s | "
            f"{whole_stream(row):.1f} s | {row['median_s']:.2f} s | {low:.2f} to {high:.2f} | {ratio:.2f} |"
        )
    plot = "![images done against time](../benchmarks/results/peers-stream.svg)"
    return "\n".join([*lines, "", f"Sizes: {', '.join(result['sizes'])}. {measured_on(result)}", "", plot])


def first_result(row: Content) -> float:
    """Seconds from the network in memory to its first result."""
    return float(row["ready_s"] + row["first_s"][0])


def whole_stream(row: Content) -> float:
    """Seconds from the network in memory to the last image's result."""
    return float(row["ready_s"] + sum(row["first_s"]))


def claims(project: Path) -> str:
    """What was claimed before anything was measured, and whether it holds on every machine that measured it."""
    machines = _machines(folder(project))
    tables = [list(_claims(place)) for place in machines]
    names = [load(place / "peers-x4.json")["machine"]["cpu"] for place in machines]
    lines = [f"| claim | at least | {' | '.join(names)} | |", "|---|---|" + "---|" * (len(names) + 1)]
    for on_machines in zip(*tables, strict=True):
        claim, least, _ = on_machines[0]
        ratios = [ratio for _, _, ratio in on_machines]
        known = [ratio for ratio in ratios if ratio is not None]
        verdict = "not measured" if not known else "holds" if min(known) >= least else "**withdrawn**"
        cells = ["" if ratio is None else f"{ratio:.2f} x" for ratio in ratios]
        lines.append(f"| {claim} | {least:g} x | {' | '.join(cells)} | {verdict} |")
    return "\n".join(lines)


def _claims(place: Path) -> Iterator[tuple[str, float, float | None]]:
    """Each claim, the least ratio that it names, and the measured one."""
    fixed, mixed = (load_if_there(place / f"peers-{what}.json") for what in ("x4", "stream"))
    for peer, name, eager, best in (("swinir-light", "SwinIR-light", 17, 5), ("elan-light", "ELAN-light", 12, 3.5)):
        ratio = _ratio(fixed, (OURS[0], OURS[1] + AS_INSTALLED), (peer, "PyTorch eager" + AS_INSTALLED), "median_s")
        yield f"fused DITN-Real is faster than {name} in eager PyTorch, both as installed", eager, ratio
        ratio = _ratio(fixed, OURS, (peer, "PyTorch eager"), "median_s")
        yield "... both with freed memory kept", eager, ratio
        yield f"... than {name} in its fastest runtime", best, _ratio(fixed, OURS, (peer, None), "median_s")
        ratio = _ratio(fixed, OURS, (peer, None), "extra_bytes")
        yield f"... takes less peak memory than {name} in its leanest runtime", 4, ratio
    ratio = _ratio(fixed, ("ditn", OURS[1]), ("elan-light", None), "median_s")
    yield "fused DITN (3 UFONEs) is faster than ELAN-light in its fastest runtime", 1.5, ratio
    for runtime in ("ONNX Runtime", "OpenVINO f32"):
        ratio = _ratio(mixed, OURS, ("ditn-real", f"{runtime}, published"), "median_s")
        yield f"mixed sizes: fused DITN-Real is faster than DITN-Real in warm {runtime}", 2, ratio
    slow = None if mixed is None else _row(mixed, "ditn-real", "torch.compile, published")
    waited = first_result(slow) / whole_stream(_row(mixed, *OURS)) if mixed and slow else None
    yield "mixed sizes: all results before `torch.compile` of DITN-Real has its first one", 1, waited


def _ratio(result: Content | None, ours: tuple[str, str], theirs: tuple[str, str | None], what: str) -> float | None:
    """Their least value, over all providers of the network or one, over ours; None if one is missing."""
    if result is None:
        return None
    values = [r[what] for r in result["rows"] if r["network"] == theirs[0] and theirs[1] in (None, r["contestant"])]
    own = _row(result, *ours)
    return float(min(values) / own[what]) if values and own else None


def paper(project: Path) -> str:
    """The poster's figures at fixed sizes, each network relative to DITN-Real, beside ours."""
    results = dict(_fixed(folder(project)))
    scales = (2, 3, 4)
    lines = [
        "| poster, TensorRT | nearest here | "
        + " | ".join(f"x{s} poster | x{s} here" for s in scales)
        + " | GB on the poster, x4 | MiB here, x4 |",
        "|---|---|" + "---|---|" * len(scales) + "---|---|",
    ]
    for name, (milliseconds, gigabytes) in POSTER.items():
        cells = []
        for index, scale in enumerate(scales):
            ratio = milliseconds[index] / POSTER["DITN-Real"][0][index]
            best = _best(results.get(scale), NEAREST[name])
            base = _best(results.get(scale), "ditn-real")
            ours = (
                f"{1e3 * best['median_s']:.0f} ms, {best['median_s'] / base['median_s']:.2f}" if best and base else ""
            )
            cells.append(f"{milliseconds[index]} ms, {ratio:.2f} | {ours}")
        best = _best(results.get(4), NEAREST[name])
        memory = f"{best['extra_bytes'] / 2**20:.0f}" if best else ""
        what = f"{NEAREST[name]}, {title(best['contestant'])}" if best else NEAREST[name]
        lines.append(f"| {name} | {what} | {' | '.join(cells)} | {gigabytes[2]} | {memory} |")
    here = measured_on(results[4]) if 4 in results else NOT_MEASURED
    return "\n".join([*lines, "", "The second number is relative to DITN-Real. " + here])


def _best(result: Content | None, network: str) -> Content | None:
    rows = [row for row in result["rows"] if row["network"] == network] if result else []
    return min(rows, key=lambda row: float(row["median_s"]), default=None)


def _fixed(place: Path) -> Iterator[tuple[int, Content]]:
    for scale in (4, 3, 2):
        result = load_if_there(place / f"peers-x{scale}.json")
        if result is not None:
            yield scale, result


def _row(result: Content, network: str, provider: str) -> Content:
    return find(result, network=network, contestant=provider)


def measured_on(result: Content) -> str:
    machine = result["machine"]
    used = ", ".join(f"{name} {machine[name]}" for name in ("torch", "onnxruntime", "openvino") if name in machine)
    chip = machine.get("gpu") or f"{machine['cpu']}, {machine['threads']} threads"
    failed = f" Did not run: {'; '.join(result['failed'])}." if result["failed"] else ""
    return f"Measured on: {chip}, {used}, {machine['date']}, {result['rounds']} rounds.{failed}"


def _machines(results: Path) -> list[Path]:
    """The folders with the results of CPUs: the first machine's, then one for each of the others."""
    found = [results / "peers-x4.json", *sorted(results.glob("*/peers-x4.json"))]
    return [path.parent for path in found if path.exists() and load(path)["device"] == "cpu"]
