# SPDX-License-Identifier: Apache-2.0
"""How networks are timed on a CPU: each provider in a process of its own, one pass each per round.

So a machine whose speed drifts drifts for all; the others wait meanwhile.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.harness.machine import machine, versions
from benchmarks.harness.processes import Job, prepare

PAUSE = 0.2  # seconds between turns, in which the threads of the last one stop spinning
LEAST_ROUNDS = 3  # quartiles need them


class Failed(SystemExit):
    """A provider's process came to its end, with what it wrote last."""


class Entrant:
    """A provider in a process of its own, which waits to be asked for a pass. Its packages are those in `tree`."""

    def __init__(self, job: Job, folder: Path, tree: Path) -> None:
        self.job = job
        self.passes: list[list[float]] = []
        self.failure = ""
        command = [sys.executable, "-m", "benchmarks.harness.processes", json.dumps(asdict(job)), str(folder)]
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by `leave`)
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, cwd=tree
        )

    def ready(self) -> None:
        """Wait until it has built itself. Raises SystemExit if it failed or is wrong."""
        self.facts: dict[str, Any] = self._read()
        if not self.facts["error"] <= self.job.tolerance:
            raise SystemExit(
                f"{self} is wrong: relative error {self.facts['error']:.2g}, at most {self.job.tolerance} allowed"
            )

    def turn(self) -> float:
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self.passes.append(self._read())
        return sum(self.passes[-1])

    def leave(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def row(self) -> dict[str, Any]:
        seconds = [sum(images) for images in self.passes]
        low, middle, high = statistics.quantiles(seconds, n=4)
        row = {"network": self.job.network, "contestant": self.job.provider}  # "contestant" is the files' word
        return row | {"median_s": middle, "quartiles_s": [low, high], "seconds": seconds} | self.facts

    def __str__(self) -> str:
        return f"{self.job.network}, {self.job.provider}"

    def _read(self) -> Any:
        assert self._process.stdout
        # Libraries print to standard output, too; ours are the lines that are JSON.
        for line in self._process.stdout:
            try:
                return json.loads(line)
            except json.JSONDecodeError:
                continue
        self._process.wait()
        self._errors.seek(0)
        raise Failed(f"{self} failed:\n{self._errors.read()[-4000:]}")


def contest(
    jobs: Sequence[tuple[Job, Path]],
    *,
    rounds: int,
    seconds: float = float("inf"),
    builders: int = 1,
    forgiving: bool = False,
    each_round: Callable[[], object] = lambda: None,
) -> list[Entrant]:
    """Check and time the jobs, each on the packages in its tree: `rounds` rounds, or as many as fit into `seconds` but
    no fewer than three. So many providers build themselves at a time. Raises SystemExit if one is wrong or fails;
    `forgiving` keeps the reason of one that does not get ready in `failure`, and times the others.
    """
    started: list[Entrant] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def start(job: Job, tree: Path) -> Entrant:
            entrant = Entrant(job, folder, tree)
            started.append(entrant)
            try:
                entrant.ready()
            except Failed as failure:
                if not forgiving:
                    raise
                entrant.failure = str(failure)
                print(entrant.failure, file=sys.stderr, flush=True)
                return entrant
            print(f"  {entrant}: error {entrant.facts['error']:.1e}", file=sys.stderr, flush=True)
            return entrant

        try:
            for job, _ in jobs:
                prepare(job, folder)
            with ThreadPoolExecutor(builders) as pool:
                entrants = list(pool.map(start, *zip(*jobs, strict=True)))
            end = time.monotonic() + seconds
            for number in range(rounds):
                if number >= LEAST_ROUNDS and time.monotonic() > end:
                    break
                time.sleep(PAUSE)
                each_round()
                for entrant in (one for one in entrants if not one.failure):
                    time.sleep(PAUSE)
                    entrant.turn()
        finally:
            for entrant in started:
                entrant.leave()
    return entrants


def keep_runs(path: Path, runs: list[dict[str, Any]], **network: Any) -> None:
    """Write runs of a network into a file, beside those that it has already; they replace any of the same task, size
    and threads. Raises SystemExit if the earlier ones are of another machine, version or network."""
    about = {"machine": machine() | versions(), **network}
    del about["machine"]["threads"]  # each run has its own
    earlier = json.loads(path.read_text()) if path.exists() else about | {"runs": []}
    for name, value in about.items():
        if _undated(earlier[name]) != _undated(value):
            raise SystemExit(f"the file's {name} is {earlier[name]}, not {value}: write to a new file")

    def what(run: dict[str, Any]) -> tuple[Any, ...]:
        return run["task"], run["size"], run["threads"]

    kept = [run for run in earlier["runs"] if what(run) not in map(what, runs)]
    path.write_text(json.dumps(about | {"runs": kept + runs}, indent=2) + "\n")


def _undated(value: Any) -> Any:
    return {k: v for k, v in value.items() if k != "date"} if isinstance(value, dict) else value
