# SPDX-License-Identifier: Apache-2.0
"""All that is to be asked of a GPU, in a quarter of an hour: `make gpu`, or `make gpu STAGES="networks training"`.

    python -m benchmarks.gpu_session [--stages correctness networks] [--minutes 9] [--jobs 16]

Each stage is a process of its own, with a time limit and an output file, `benchmarks/results/<gpu>/<stage>.txt`. One
that takes too long is stopped with all that it started, and the next begins, as it does after one that fails. When the
time of all is up, the stage that runs is stopped and no other begins. The summary at the end is also in `summary.txt`.
Exit code 1 if a stage failed or was not begun. In order:
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from benchmarks.harness import gpu_timing as gpu
from benchmarks.harness.outputs import PROJECT

_TUNED = "inner_patch_stage gated_ffn dilated_gate image_tail inner_patch_attention image_head"
_TUNE = f"benchmarks.tools.tune --shapes network --dtypes float16 --minutes 1.5 --ops {_TUNED}"
_WIDTH = 118


@dataclass(frozen=True)
class Stage:
    """A command, after python's name, that has to end within `seconds`. The summary shows its last `shown` lines."""

    command: tuple[str, ...]
    seconds: int
    about: str
    shown: int = 1


@dataclass(frozen=True)
class Result:
    """How a stage ended: "ok", "failed (exit code 1)", "stopped after 90 s" or "not begun, time is up"."""

    stage: str
    verdict: str
    seconds: float
    lines: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return self.verdict == "ok"


def stages(jobs: int, folder: Path) -> dict[str, Stage]:
    """Those of a GPU, in order; `jobs` processes compile and test at once."""

    def module(command: str, seconds: int, about: str, shown: int = 1) -> Stage:
        return Stage(("-m", *command.split()), seconds, about, shown)

    # Tests share the GPU if pytest-xdist is there.
    several = f"-n {jobs} --dist loadgroup" if find_spec("xdist") else ""
    tests = (
        f"pytest -vv --tb=short {several} tests/kernels/test_ops.py tests/kernels/test_dispatch.py tests/test_gpu.py"
    )
    return {
        "environment": module("benchmarks.tools.gpu_environment", 60, "versions, assembler, what can run", 3),
        "build": module(
            "benchmarks.tools.gpu_environment --build", 300, "the compiled libraries, if they are not there"
        ),
        "kernels": module(
            f"benchmarks.tools.ahead --jobs {jobs}", 150, "all Triton kernels compiled, all cores at once"
        ),
        "correctness": module(tests, 180, "operators in all dtypes, official images, graphs, beyond 2^31"),
        "networks": module("benchmarks.gpu --compile none", 60, "DITN-Real x4 by each backend against eager", 13),
        "operators": module("benchmarks.ops --dtypes float16 --sizes 960x540", 60, "each operator by each backend"),
        "training": module("benchmarks.gpu --training", 60, "a training step against eager", 4),
        "tuning": module(
            f"{_TUNE} --jobs {jobs} --tables {folder / 'configs'}",
            180,
            "launch configurations measured, written into the folder of results",
        ),
        "counters": module("benchmarks.tools.counters", 120, "every own kernel under Nsight Compute"),
        "sanitizer": module("benchmarks.tools.sanitize", 420, "every kernel under compute-sanitizer"),
    }


def run_all(
    chosen: Mapping[str, Stage], folder: Path, say: Callable[[str], None] = print, *, seconds: float = math.inf
) -> list[Result]:
    """Every stage, whatever has become of those before, as far as `seconds` for all of them allow."""
    results = []
    end = time.monotonic() + seconds
    for number, (name, stage) in enumerate(chosen.items(), 1):
        limit = int(min(stage.seconds, end - time.monotonic()))
        say(f"[{number}/{len(chosen)}] {name}: {stage.about} (at most {max(limit, 0)} s)")
        if limit > 0:
            results.append(run(name, replace(stage, seconds=limit), folder / f"{name}.txt"))
        else:
            results.append(Result(name, "not begun, time is up", 0.0, ()))
        say(f"    {results[-1].verdict}, {results[-1].seconds:.0f} s")
    return results


def run(name: str, stage: Stage, path: Path) -> Result:
    """The stage's output goes into the file as it comes: what has been said before a stop is there."""
    start = time.monotonic()
    with path.open("w", encoding="utf-8") as file:
        # A session of its own, which can be stopped as a whole: a stage's children are compilers and tests.
        process = subprocess.Popen(
            [sys.executable, *stage.command],
            cwd=PROJECT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(stage.seconds)
            verdict = f"failed (exit code {code})" if code else "ok"
        except subprocess.TimeoutExpired:
            verdict = f"stopped after {stage.seconds} s"
        finally:
            _stop(process)
    lines = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return Result(name, verdict, time.monotonic() - start, tuple(lines[-stage.shown :]))


def _stop(process: subprocess.Popen[bytes]) -> None:
    """All of the process's session that is still there."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def summary(results: Iterable[Result]) -> str:
    """A line for each stage, and below it what it said last."""
    lines = []
    for result in results:
        lines.append(f"{result.stage:13}{result.verdict:24}{result.seconds:6.0f} s")
        lines += [f"    {line[:_WIDTH]}" for line in result.lines]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    known = stages(os.cpu_count() or 1, Path())
    listed = "\n".join(f"    {name:13}{stage.about} ({stage.seconds} s)" for name, stage in known.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_session",
        description=f"{__doc__}\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # No `choices`: with them an empty list, which `make gpu` gives, would be an error.
    parser.add_argument("--stages", nargs="*", default=[], metavar="STAGE", help="which, instead of all")
    parser.add_argument("--minutes", type=float, default=15, help="for all stages together (%(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at once (%(default)s)")
    args = parser.parse_args(arguments)
    if unknown := [name for name in args.stages if name not in known]:
        parser.error(f"no such stage: {', '.join(unknown)}; there are {', '.join(known)}")
    gpu.require_gpu()
    folder = gpu.results_folder()
    ready = stages(args.jobs, folder)
    chosen = {name: stage for name, stage in ready.items() if name in (args.stages or ready)}
    results = run_all(chosen, folder, seconds=60 * args.minutes)
    text = summary(results)
    (folder / "summary.txt").write_text(f"{text}\n", encoding="utf-8")
    print("", text, f"outputs are in {folder.relative_to(PROJECT)}", sep="\n")
    return int(not all(result.ok for result in results))


if __name__ == "__main__":
    sys.exit(main())
