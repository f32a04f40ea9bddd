# SPDX-License-Identifier: Apache-2.0
"""GPUs: networks and operators, from the folders that `benchmarks.gpu` and `benchmarks.ops` wrote."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from benchmarks.report.results import Content, bullet, folder, load

BASE = "published, eager"
HEADLINE, HEADLINE_SIZE = ("ditn-real", 4, "float16"), "960x540"
NOT_MEASURED = "Not measured yet: `make gpu` writes it."


def headline(project: Path) -> str:
    """The one line about each GPU that measured HEADLINE: the fastest provider, and a training step."""
    return "\n".join(filter(None, map(_headline, _networks(project)))) or NOT_MEASURED


def _headline(results: list[Content]) -> str:
    ours = [result for result in results if (result["model"], result["upscale"], result["dtype"]) == HEADLINE]
    rows = [row for result in ours for row in result["rows"] if row["what"] == HEADLINE_SIZE]
    base = next((row["median_ms"] for row in rows if row["contestant"] == BASE), None)
    if base is None:
        return ""
    fastest, machine = min(rows, key=lambda row: float(row["median_ms"])), ours[0]["machine"]
    name = fastest["contestant"].replace("fused, cuda", "CUDA C++").replace("fused, triton", "Triton")
    text = (
        f"**GPU** ({machine['gpu']}, float16): DITN-Real x4 enlarges {HEADLINE_SIZE} in {fastest['median_ms']:.2f} ms "
        f"({name.replace(', graph', ' in a CUDA graph')}), {base / fastest['median_ms']:.1f} times as fast as the "
        f"published formula in eager PyTorch."
    )
    steps = [row for result in ours for row in result["rows"] if row["what"].startswith("step")]
    fused = [row["median_ms"] for row in steps if row["contestant"].startswith("fused")]
    eager = [row["median_ms"] for row in steps if row["contestant"] == BASE]
    if fused and eager:
        text += f" A training step takes {min(fused) / eager[0]:.1f} times as long as eager."
    return bullet(f"{text} Measured once, on {machine['date']}, at {machine['commit'][:7]}.")


def summary(project: Path) -> str:
    """Whole networks, a line for each input and a column for each provider; a table for each GPU."""
    tables = []
    for results in _networks(project):
        names = list(dict.fromkeys(row["contestant"] for result in results for row in result["rows"]))
        lines = [f"| network | input | {' | '.join(names)} |", "|---|---|" + "---|" * len(names)]
        for result in results:
            for what in dict.fromkeys(row["what"] for row in result["rows"]):
                found = {row["contestant"]: row for row in result["rows"] if row["what"] == what}
                lines.append(f"| {_name(result)} | {what} | {' | '.join(_cells(found, names))} |")
        units = "Milliseconds, and MiB that a call allocates."
        tables.append("\n".join([*lines, "", f"{units} {_conditions(results)}"]))
    return "\n\n".join(tables) or NOT_MEASURED


def _cells(found: dict[str, Content], names: list[str]) -> list[str]:
    """Times and memory; the fastest with how many times faster than the published formula it is."""
    fastest = min(found.values(), key=lambda row: row["median_ms"])
    cells = []
    for row in map(found.get, names):
        text = "" if row is None else f"{row['median_ms']:.2f}"
        if row is not None and row["peak_bytes"] is not None:
            text += f", {_mebibytes(row['peak_bytes'])}"
        if row is fastest and BASE in found:
            text = f"**{text}** ({found[BASE]['median_ms'] / row['median_ms']:.2f} x)"
        cells.append(text)
    return cells


def networks(project: Path) -> str:
    """Whole networks, a line for each input and provider, with the host's time; a table for each GPU."""
    tables = []
    for results in _networks(project):
        lines = [
            "| network | input | | median | until the call returns | against published | memory |",
            "|---|---|---|---|---|---|---|",
        ]
        for result in results:
            base = {row["what"]: row["median_ms"] for row in result["rows"] if row["contestant"] == BASE}
            for row in result["rows"]:
                gain, memory = base[row["what"]] / row["median_ms"], _mebibytes(row["peak_bytes"])
                lines.append(
                    f"| {_name(result)} | {row['what']} | {row['contestant']} | {row['median_ms']:.2f} ms | "
                    f"{_ms(row['host_ms'])} | {gain:.2f} x | {memory} |"
                )
        tables.append("\n".join([*lines, "", _conditions(results)]))
    return "\n\n".join(tables) or NOT_MEASURED


def _name(result: Content) -> str:
    return f"{result['model']} x{result['upscale']}, {result['dtype']}"


def operators(project: Path) -> str:
    """Each operator by each backend against the chip's roof, a line for each; a table for each GPU."""
    tables = []
    for place in _gpus(project, "ops.json"):
        result = load(place / "ops.json")
        rows = [row for row in result["rows"] if row["direction"] == "forward"]
        backends = list(dict.fromkeys(row["backend"] for row in rows))
        lines = [f"| operator | {' | '.join(backends)} | of the roof |", "|---|" + "---|" * (len(backends) + 1)]
        for title in dict.fromkeys(map(_title, rows)):
            found = {row["backend"]: row for row in rows if _title(row) == title}
            fastest = min(found.values(), key=lambda row: row["median_ms"])
            cells = [_microseconds(found.get(name), fastest) for name in backends]
            lines.append(f"| {title} | {' | '.join(cells)} | {fastest['share_of_roof']:.0%} |")
        copied, multiplied = result["roof"]["copy_gb_per_s"], result["roof"]["matmul_tflop_per_s"]
        rates = ", ".join(f"{rate:.0f} TFLOP/s in {dtype.removeprefix('torch.')}" for dtype, rate in multiplied.items())
        roofs = f"Microseconds. Roofs: a copy moves {copied:,.0f} GB/s, a product of matrices makes {rates}."
        tables.append("\n".join([*lines, "", f"{roofs} {_conditions([result])}"]))
    return "\n\n".join(tables) or NOT_MEASURED


def _title(row: Content) -> str:
    options = "".join(f" {value}" for value in row["options"].values())
    return f"`{row['operator']}`{options}, {row['size']}, {row['dtype']}"


def _microseconds(row: Content | None, fastest: Content) -> str:
    if row is None:
        return ""
    text = f"{1e3 * row['median_ms']:,.0f}"
    return f"**{text}**" if row is fastest else text


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} ms"


def _mebibytes(value: int | None) -> str:
    return "" if value is None else f"{value / 2**20:,.0f} MiB"


def _conditions(results: Iterable[Content]) -> str:
    """Where, with what and when it was measured; each once."""
    said = []
    for result in results:
        machine = result["machine"]
        where = f"{machine['gpu']}, driver {machine['driver']}, PyTorch {machine['torch']}, Triton {machine['triton']}"
        where += f", {machine['assembler']}, Python {machine['python']}, at {machine['commit'][:7]}, {machine['date']}."
        said.append(f"Measured on: {where} {result.get('note', '')}".rstrip())
    return "\n\n".join(dict.fromkeys(said))


def _networks(project: Path) -> Iterator[list[Content]]:
    """The networks of each GPU, those that were measured at most sizes first; without what `--only-cuda` measured, of
    code for another chip."""
    for place in _gpus(project, "ditn*-x*-*.json"):
        results = [load(path) for path in sorted(place.glob("ditn*-x*-*.json")) if "-cuda-" not in path.name]
        if results:
            yield sorted(results, key=lambda result: -len(result["rows"]))


def _gpus(project: Path, pattern: str) -> list[Path]:
    """The folders with such results; those of GPUs alone have them."""
    return list(dict.fromkeys(path.parent for path in sorted(folder(project).glob(f"*/{pattern}"))))
