# SPDX-License-Identifier: Apache-2.0
"""Files of `ditn export` in their runtimes, from what `benchmarks.deploy` wrote."""

from __future__ import annotations

from pathlib import Path

from benchmarks import deploy
from benchmarks.report.results import Content, find, folder, load, side_by_side


def deployed(project: Path) -> str:
    return side_by_side(map(load, sorted(folder(project).rglob("deploy-*.json"))), _cell, _head)


def _cell(run: Content, provider: str) -> str:
    """Median, ratio to the plain graph in the same runtime, peak memory."""
    row = find(run, contestant=provider)
    if not row:
        return ""
    ratio = deploy.gain(row, run["rows"])
    against = "" if ratio is None else f" ({ratio:.2f} x)"
    return f"{row['median_s']:.3f} s{against}, {row['extra_bytes'] / 2**20:.0f} MiB"


def _head(run: Content) -> str:
    return f"{run['size']}, {run['threads']} thr."
