# SPDX-License-Identifier: Apache-2.0
"""Is a commit slower than another one? Both are built, and run side by side.

    python -m benchmarks.compare BASE [NEW] [--device cuda]

Each commit is checked out into a folder of its own (`git worktree`) and built there; NEW is HEAD unless it is given.
What is not committed is not measured. This tree's benchmarks run both packages: every case as five processes of each
commit, checked against float64, in turns (`harness/contest.py`). A process' time is its median. Exit status 1 if in
some case every process of NEW is slower than every process of BASE: the base's own spread is the measured noise, and
equal commits come out like this once in 252 cases.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.harness.contest import contest
from benchmarks.harness.outputs import PROJECT
from benchmarks.harness.processes import Job

PROCESSES = 5


def cases(device: str, threads: int) -> dict[str, Job]:
    """What is guarded. DITN-Real in every way it is used, and the other norm."""
    if device == "cuda":
        return {
            f"{network} x4 {size} float16": Job(network, "fused", 4, (size,), threads, device=device)
            for network, size in (("ditn-real", "320x180"), ("ditn-real", "960x540"), ("ditn-tiny", "320x180"))
        }
    return {
        "ditn-real x4 320x180 float32": Job("ditn-real", "fused float32", 4, ("320x180",), threads),
        "ditn-real x4 320x180 bfloat16": Job("ditn-real", "fused bfloat16", 4, ("320x180",), threads),
        "ditn-real x2 48x48 float32": Job("ditn-real", "fused float32", 2, ("48x48",), threads),
        "ditn-tiny x4 320x180 float32": Job("ditn-tiny", "fused float32", 4, ("320x180",), threads),
        "ditn-real x4 training step": Job("ditn-real", "fused float32", 4, ("48x48",), threads, training=True),
    }


@contextlib.contextmanager
def built(commit: str, folder: Path) -> Iterator[Path]:
    """A tree of the commit's packages, compiled, and of these benchmarks. Raises SystemExit if it does not build."""
    checkout, tree = folder / "checkout", folder / "tree"
    tree.mkdir(parents=True)
    _run("git", "worktree", "add", "--detach", str(checkout), commit, cwd=PROJECT)
    try:
        _run(sys.executable, "setup.py", "build_ext", "--inplace", cwd=checkout, environment={"DITN_BUILD": "cpu"})
        for package, source in (("ditn", checkout), ("ditn_kernels", checkout), ("benchmarks", PROJECT)):
            (tree / package).symlink_to(source / package)
        yield tree
    finally:
        _run("git", "worktree", "remove", "--force", str(checkout), cwd=PROJECT)


def verdict(base: Sequence[float], new: Sequence[float]) -> tuple[float, float, bool]:
    """Of the processes' times: the ratio of medians, the noise (how far apart the base's own are, relative to their
    median), and whether the new commit is slower than that."""
    middle = statistics.median(base)
    return statistics.median(new) / middle, (max(base) - min(base)) / middle, min(new) > max(base)


def measure(job: Job, base: Path, new: Path, *, rounds: int, processes: int) -> tuple[list[float], list[float]]:
    """The processes' median times of both trees."""
    found = contest([(job, tree) for _ in range(processes) for tree in (base, new)], rounds=rounds)
    times = [statistics.median(sum(images) for images in entrant.passes) for entrant in found]
    return times[0::2], times[1::2]


def _run(*command: str, cwd: Path, environment: dict[str, str] | None = None) -> None:
    everything = os.environ | (environment or {})
    result = subprocess.run(command, cwd=cwd, env=everything, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{result.stderr[-4000:]}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="the commit to compare with")
    parser.add_argument("new", nargs="?", default="HEAD")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--cases", nargs="+", metavar="WORD", default=[""], help="those with one of these words")
    args = parser.parse_args(arguments)
    slower = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with built(args.base, folder / "base") as base, built(args.new, folder / "new") as new:
            for what, job in cases(args.device, args.threads).items():
                if not any(word in what for word in args.cases):
                    continue
                times = measure(job, base, new, rounds=args.rounds, processes=PROCESSES)
                ratio, noise, is_slower = verdict(*times)
                slower += [what] if is_slower else []
                word = "SLOWER" if is_slower else "ok"
                print(f"{what:32}{statistics.median(times[1]):9.4f} s, {ratio:.3f} x BASE, noise {noise:.3f}  {word}")
    return int(bool(slower))


if __name__ == "__main__":
    sys.exit(main())
