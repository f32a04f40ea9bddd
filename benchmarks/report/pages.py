# SPDX-License-Identifier: Apache-2.0
"""The numbers in README.md and docs/ from `benchmarks/results/`, and the plots beside these.

    python -m benchmarks.report [--check] [--plots]

`results/evaluate-<model>*.json` are written by `recipes/ship.py`, `results/cpu-*.json` by `benchmarks.cpu`,
`results/deploy-*.json` by `benchmarks.deploy`, `results/peers-*.json` by `benchmarks.peers`, `results/ops-cpu.json` by
`benchmarks.ops`, `results/files.json` by `benchmarks.files`, `results/auto.json` by `benchmarks.auto`,
`results/video.json` by `benchmarks.video`, `results/model-*.json` by a timer that is gone; those of further machines
lie in folders, as do those of GPUs, which are written by `benchmarks.gpu` and `benchmarks.ops`. A block between
`<!-- NAME -->` and `<!-- /NAME -->` belongs to the function that stands beside this name in PAGES.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import video
from benchmarks.harness.outputs import PROJECT
from benchmarks.report import auto, cpu, deploy, gpu, operators, peers, plots, quality, sizing
from benchmarks.report.results import Content, folder, load

# A block's content, from the results in a project's folder.
Block = Callable[[Path], str]


def _auto(table: Callable[[Content], str]) -> Block:
    return lambda project: table(load(folder(project) / "auto.json"))


def _speed(project: Path) -> str:
    return f"{cpu.headline(project)}\n{gpu.headline(project)}"


# The blocks of each page.
PAGES: dict[str, dict[str, Block]] = {
    "README.md": {
        "quality": quality.at_x4,
        "speed": _speed,
    },
    "docs/models.md": {"quality": quality.quality},
    "docs/support.md": {"support": operators.support},
    "docs/performance.md": {
        "networks": peers.networks,
        "claims": peers.claims,
        "peers": peers.peers,
        "cpu": cpu.ratios,
        "contest": cpu.every_provider,
        "one-process": cpu.in_one_process,
        "stream": peers.stream,
        "paper": peers.paper,
        "roofline": operators.roofline,
        "gpu": gpu.summary,
        "gpu-networks": gpu.networks,
        "gpu-operators": gpu.operators,
    },
    "docs/auto.md": {name: _auto(table) for name, table in auto.TABLES.items()},
    "docs/deployment.md": {"deployed": deploy.deployed},
    "docs/clusters.md": {"pictures": sizing.per_picture, "scan": sizing.scan},
    "docs/video.md": {"video": lambda project: video.table(load(folder(project) / "video.json"))},
}


def rewritten(text: str, page: str, project: Path) -> str:
    """The text of a page, its blocks as the project's results say. Raises ValueError for a block that is missing."""
    for name, make in PAGES[page].items():
        text, count = re.subn(
            rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)",
            lambda match, make=make: match[1] + make(project) + "\n" + match[2],  # type: ignore[misc]
            text,
            flags=re.DOTALL,
        )
        if count != 1:
            raise ValueError(f"{page} has {count} blocks named {name}, expected one")
    return text


def main(arguments: list[str] | None = None, project: Path = PROJECT) -> int:
    """The pages of a project's folder."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="fail if pages or plots do not say what the results say")
    parser.add_argument("--plots", action="store_true", help="draw the plots; needs matplotlib")
    args = parser.parse_args(arguments)
    if args.plots:
        plots.draw(folder(project))
    stale = [
        f"{path.relative_to(project)} is not of these results; run `python -m benchmarks.report --plots`"
        for path in plots.stale(folder(project))
    ]
    for page in PAGES:
        path = project / page
        before = path.read_text(encoding="utf-8")
        after = rewritten(before, page, project)
        if args.check and after != before:
            stale.append(f"{page} differs from benchmarks/results or the operators; run `make format`")
        elif after != before:
            path.write_text(after, encoding="utf-8")
    print(*stale, sep="\n", end="\n" * bool(stale), file=sys.stderr)
    return int(args.check and bool(stale))
