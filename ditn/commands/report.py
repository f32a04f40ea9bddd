# SPDX-License-Identifier: Apache-2.0
"""What `ditn upscale` tells at its end: each failure, what was left out, the counts; and its report in JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from ditn.commands.found import counted
from ditn.commands.jobs import Plan
from ditn.commands.names import utf8
from ditn.imaging.atomic import atomic_write


def tell(plan: Plan) -> None:
    """On standard error."""
    for job in plan.jobs:
        if job.status == "failed":
            print(f"{job.input}: {job.reason}", file=sys.stderr)
    if plan.left_out:
        print(f"left out: {counted(plan.left_out)}", file=sys.stderr)
    counts = [f"{plan.count(status)} {status}" for status in ("done", "skipped", "failed")]
    if planned := plan.count("planned"):
        counts.append(f"{planned} not begun")
    print(", ".join(counts), file=sys.stderr)


def write_report(path: Path, plan: Plan, *, model: str, backends: Mapping[str, str | None]) -> None:
    """The report, with `pictures`, the jobs, and `left_out`, the other files of folders."""
    report = {
        "model": model,
        "backends": backends,
        "pictures": [job.entry() for job in plan.jobs],
        "left_out": [asdict(one) for one in plan.left_out],
    }
    with atomic_write(path) as temporary:
        temporary.write_bytes(utf8(json.dumps(report, indent=2, ensure_ascii=False) + "\n"))
