# SPDX-License-Identifier: Apache-2.0
"""What `benchmarks.auto` found, as tables of docs/auto.md."""

from __future__ import annotations

from typing import Any

from ditn.model.variants import SUITED


def _confusion(result: dict[str, Any]) -> str:
    lines = [f"| pictures | number | {' | '.join(SUITED)} | right | seen |", f"|---|---|{'---|' * len(SUITED)}---|---|"]
    for row in result["confusion"]:
        shares = " | ".join(f"{row[kind] / row['pictures']:.1%}" for kind in SUITED)
        seen = ", ".join(f"{what} {count}" for what, count in sorted(row["seen"].items(), key=lambda one: -one[1]))
        lines.append(f"| {row['label']} | {row['pictures']} | {shares} | {row['wanted']} | {seen} |")
    return "\n".join(lines)


def _clean(result: dict[str, Any]) -> str:
    lines = [
        "| clean pictures | number | taken for others | mean loss at x4 | which |",
        "|---|---|---|---|---|",
    ]
    for row in result["clean"]:
        loss = "" if row["loss_db"] is None else f"{row['loss_db']:.4f} dB"
        few = row["others"][:3] + ["..."] * (len(row["others"]) > 3)
        lines.append(
            f"| {row['set']} {row['input']} | {row['pictures']} | {len(row['others'])} | {loss} | {'; '.join(few)} |"
        )
    return "\n".join(lines)


def _worth(result: dict[str, Any]) -> str:
    columns = ("bicubic", *SUITED, "auto")
    lines = [f"| pictures | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for row in result["worth"]:
        best = max(row[kind] for kind in SUITED)
        cells = (f"**{row[name]:.2f}**" if row[name] == best else f"{row[name]:.2f}" for name in columns)
        lines.append(f"| {row['label']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cost(result: dict[str, Any]) -> str:
    lines = ["| picture | choosing | of the enlargement |", "|---|---|---|"]
    for row in result["cost"]:
        share = "" if row["share"] is None else f"{row['share']:.1%}"
        lines.append(f"| {row['size']} | {1000 * row['judge_s']:.0f} ms | {share} |")
    return "\n".join(lines)


def _real(result: dict[str, Any]) -> str:
    lines = ["| file | model for | why |", "|---|---|---|"]
    return "\n".join(lines + [f"| {row['file']} | {row['kind']} | {row['reason']} |" for row in result["real"]])


# By their marks in the page.
TABLES = {"confusion": _confusion, "clean": _clean, "worth": _worth, "cost": _cost, "real": _real}
