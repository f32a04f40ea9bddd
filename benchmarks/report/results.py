# SPDX-License-Identifier: Apache-2.0
"""Where results lie in a project's folder, how they are read, and the table that several pages have of them."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Content = dict[str, Any]
NOT_MEASURED = "Not measured yet."


def folder(project: Path) -> Path:
    return project / "benchmarks" / "results"


def load(path: Path) -> Content:
    content: Content = json.loads(path.read_text(encoding="utf-8"))
    return content


def load_if_there(path: Path) -> Content | None:
    return load(path) if path.exists() else None


def find(result: Content, **wanted: object) -> Content:
    """The first row with these values; empty if there is none."""
    rows: list[Content] = result["rows"]
    return next((row for row in rows if all(row[name] == value for name, value in wanted.items())), {})


def bullet(text: str) -> str:
    """A point of a list in Markdown, wrapped."""
    return textwrap.fill(text, 120, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False)


def side_by_side(
    results: Iterable[Content],
    cell: Callable[[Content, str], str],
    head: Callable[[Content], str],
    *,
    name: Callable[[str], str] = str,
    last: tuple[str, Callable[[Content], str]] | None = None,
) -> str:
    """A table for each result: a row for each provider, a column for each run; `last` is one more row."""
    tables = []
    for result in results:
        runs, machine = result["runs"], result["machine"]
        lines = [
            f"| {result['model']} x{result['upscale']} | {' | '.join(map(head, runs))} |",
            "|---|" + "---|" * len(runs),
        ]
        for provider in dict.fromkeys(row["contestant"] for run in runs for row in run["rows"]):
            lines.append(f"| {name(provider)} | {' | '.join(cell(run, provider) for run in runs)} |")
        lines += [f"| {last[0]} | {' | '.join(map(last[1], runs))} |"] if last else []
        used = ", ".join(f"{package} {machine[package]}" for package in ("torch", "onnxruntime", "openvino"))
        tables.append("\n".join([*lines, "", f"Measured on: {machine['cpu']}, {used}, {machine['date']}."]))
    return "\n\n".join(tables) or NOT_MEASURED
