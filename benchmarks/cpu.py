# SPDX-License-Identifier: Apache-2.0
"""The C++ kernels against whatever else runs a DITN on a CPU.

    python -m benchmarks.cpu --model ditn-real --sizes 320x180 128x128 --threads 2 --training --json FILE

Needs `pip install .[bench]`. Every contestant is a process of its own, whose result is first checked against the
published formula in float64. Then they take turns, one call each per round, so that a machine whose speed drifts
drifts for all; the others wait. Beside them, in the same rounds, a loop of register-only multiply-adds measures the
machine's float32 peak, which is the best of its rounds. Printed and written: medians, quartiles, every round, ratios,
the peak memory of a call beyond what the process held before it, the fused network's share of the peak.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import ditn
from benchmarks.contestants import INFERENCE, TRAINING, Published, Task, is_bfloat16, training_step
from benchmarks.model import MODELS, machine
from ditn_kernels import REGISTRY, _native

# Largest difference to float64 over the largest value. float32: what a network of this depth loses, with room for the
# order of summation; bfloat16: 8 bits, and as much room.
TOLERANCE = {False: 1e-4, True: 5e-2}
# Gradients: float32 sums over 18,432 pixels.
TRAINING_TOLERANCE = 1e-3
PAUSE = 0.2  # seconds between turns, in which the last contestant's threads stop spinning


def task(arguments: argparse.Namespace, size: str, threads: int, folder: Path, *, training: bool) -> Task:
    """The same model and image in every process."""
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    model = MODELS[arguments.model](arguments.upscale).eval().requires_grad_(False)
    for parameter in model.parameters():  # a new SAL's scale is 0; nothing may be free to compute
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    width, height = map(int, size.split("x"))
    batch = 8 if training else 1
    image = torch.rand(batch, 3, height, width)
    scale = arguments.upscale
    target = torch.rand(batch, 3, height * scale, width * scale) if training else None
    return Task(model, image, target, threads, folder)


def exact(work: Task) -> Tensor:
    """The result in float64 by the published formula: the image, or the gradients."""
    network = Published(work.model.state_dict()).double().requires_grad_(False)
    target = None if work.target is None else work.target.double()
    work = Task(work.model, work.image.double(), target, work.threads, work.folder)
    with torch.no_grad():
        return network(work.image) if target is None else training_step(network, work)()


def compete(arguments: argparse.Namespace) -> int:
    """A contestant's process: get ready, say how wrong the result is, then one call for every line that comes in."""
    name, size, threads, folder, training = json.loads(arguments.contestant)
    with tempfile.TemporaryDirectory() as own:
        work = task(arguments, size, threads, Path(own), training=training)
        with torch.no_grad():
            call = (TRAINING if training else INFERENCE)[name](work)
            Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
            before = _status("VmRSS")
            result = call()
            extra = _status("VmHWM") - before
        expected = torch.load(Path(folder) / "exact.pt", mmap=True)
        error = float((result.double() - expected).abs().max() / expected.abs().max())
        print(json.dumps({"error": error, "extra_bytes": extra}), flush=True)
        del result, expected
        with torch.no_grad():
            for _ in sys.stdin:
                start = time.perf_counter()
                call()
                print(time.perf_counter() - start, flush=True)
    return 0


class Contestant:
    """A process of its own, which waits until it is asked for a call."""

    def __init__(self, name: str, command: list[str]) -> None:
        self.name = name
        self.seconds: list[float] = []
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def ready(self, tolerance: float) -> None:
        """Wait until it has built itself. Raises SystemExit if it failed or is wrong."""
        line = self._read()
        self.error, self.extra_bytes = line["error"], line["extra_bytes"]
        if not self.error <= tolerance:
            raise SystemExit(f"{self.name} is wrong: relative error {self.error:.2g}, at most {tolerance} allowed")

    def turn(self) -> float:
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self._read())

    def leave(self) -> None:
        self.process.kill()
        self.process.communicate()

    def _read(self) -> Any:
        assert self.process.stdout
        # Libraries print to standard output, too; ours are the lines that are JSON.
        for line in self.process.stdout:
            try:
                return json.loads(line)
            except json.JSONDecodeError:
                continue
        raise SystemExit(f"{self.name} failed:\n{self.process.communicate()[1][-4000:]}")


def measure(
    arguments: argparse.Namespace, size: str, threads: int, *, training: bool
) -> tuple[list[dict[str, Any]], list[float]]:
    """A row for each contestant, and the peak in FLOP/s in each round."""
    names = [name for name in (TRAINING if training else INFERENCE) if not arguments.only or name in arguments.only]
    contestants: list[Contestant] = []
    peaks: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        torch.save(exact(task(arguments, size, threads, Path(folder), training=training)), Path(folder) / "exact.pt")
        try:
            for name in names:
                asked = json.dumps([name, size, threads, folder, training])
                options = ["--model", arguments.model, "--upscale", str(arguments.upscale), "--contestant", asked]
                contestants.append(Contestant(name, [sys.executable, "-m", "benchmarks.cpu", *options]))
                contestants[-1].ready(TRAINING_TOLERANCE if training else TOLERANCE[is_bfloat16(name)])
                print(f"  {name}: error {contestants[-1].error:.1e}", file=sys.stderr, flush=True)
            for number in range(arguments.rounds + 1):  # the first does not count
                time.sleep(PAUSE)
                peaks += [fma_peak()] if number else []
                for contestant in contestants:
                    time.sleep(PAUSE)
                    seconds = contestant.turn()
                    contestant.seconds += [seconds] if number else []
        finally:
            for contestant in contestants:
                contestant.leave()
    rows = []
    for contestant in contestants:
        low, middle, high = statistics.quantiles(contestant.seconds, n=4)
        numbers = {"median_s": middle, "quartiles_s": [low, high], "seconds": contestant.seconds}
        about = {"extra_bytes": contestant.extra_bytes, "error": contestant.error}
        rows.append({"contestant": contestant.name} | numbers | about)
    return rows, peaks


def fma_peak() -> float:
    """FLOP/s of this process' threads in a loop of multiply-adds that touches nothing but registers."""
    start = time.perf_counter()
    flops = torch.ops.ditn_native.fma_loop(500 * torch.get_num_threads())
    return float(flops / (time.perf_counter() - start))


def flops(model: ditn.DITN, size: str) -> int:
    """The folded network's, two per multiply-add, on the padded image."""
    c = model.config
    width, height = (-(-int(length) // c.grid) * c.grid for length in size.split("x"))
    axes = {"B": 1, "H": height, "W": width, "N": c.in_channels, "C": c.dim, "E": c.hidden}
    axes["D"] = c.out_channels * c.upscale**2
    itls, sals = axes | {"L": c.itls}, axes | {"L": c.sals}
    body = c.ufones * (REGISTRY["inner_patch_stage"].macs(itls) + REGISTRY["spatial_stage"].macs(sals))
    return 2 * (REGISTRY["image_head"].macs(axes) + body + REGISTRY["image_tail"].macs(axes))


def show(run: dict[str, Any]) -> None:
    print(f"{run['task']} {run['size']}, {run['threads']} threads, float32 peak {run['peak_flops'] / 1e9:.0f} GFLOP/s")
    base = run["rows"][0]["median_s"]
    for row in run["rows"]:
        low, high = row["quartiles_s"]
        line = (
            f"  {row['contestant']:28} {row['median_s']:8.3f} s ({low:.3f}..{high:.3f}) {base / row['median_s']:6.2f} x"
        )
        share = f"  {row['share_of_peak']:.0%} of peak" if "share_of_peak" in row else ""
        print(f"{line}  {row['extra_bytes'] / 2**20:7.0f} MiB{share}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="ditn-real")
    parser.add_argument("--upscale", type=int, default=4)
    parser.add_argument("--sizes", nargs="*", default=["320x180"], metavar="WIDTHxHEIGHT")
    parser.add_argument("--threads", nargs="+", type=int, default=[2])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", nargs="+", metavar="CONTESTANT", help=f"of {', '.join(INFERENCE)}; default all")
    parser.add_argument("--training", action="store_true", help="and a training step on a batch of 8 of 48x48")
    parser.add_argument("--json", type=Path, help="where the runs go, beside those that the file has already")
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contestant:
        return compete(arguments)
    if reason := _native.why_missing():
        raise SystemExit(f"nothing to measure: the compiled library {reason}")
    runs = []
    jobs = [(size, threads, False) for size in arguments.sizes for threads in arguments.threads]
    jobs += [("48x48", threads, True) for threads in arguments.threads if arguments.training]
    model = MODELS[arguments.model](arguments.upscale)
    for size, threads, training in jobs:
        rows, peaks = measure(arguments, size, threads, training=training)
        peak = max(peaks)  # what disturbs can only lower it
        for row in rows:
            if row["contestant"] == "fused float32" and not training:
                row["share_of_peak"] = flops(model, size) / row["median_s"] / peak
        runs.append({"task": "training" if training else "inference", "size": size, "threads": threads})
        runs[-1] |= {"peak_flops": peak, "rows": rows}
        show(runs[-1])
    if arguments.json:
        about = {"machine": machine() | versions(), "model": arguments.model, "upscale": arguments.upscale}
        runs = added(json.loads(arguments.json.read_text()), about, runs) if arguments.json.exists() else runs
        arguments.json.write_text(json.dumps(about | {"runs": runs}, indent=2) + "\n")
    return 0


def added(old: dict[str, Any], about: dict[str, Any], runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs of an earlier file and these, which replace any of the same task, size and threads.

    Raises SystemExit if the earlier ones are of another machine, version or network.
    """
    for name, value in about.items():
        if _undated(old[name]) != _undated(value):
            raise SystemExit(f"the file's {name} is {old[name]}, not {value}: write to a new file")

    def what(run: dict[str, Any]) -> tuple[Any, ...]:
        return run["task"], run["size"], run["threads"]

    return [run for run in old["runs"] if what(run) not in map(what, runs)] + runs


def _undated(value: Any) -> Any:
    return {k: v for k, v in value.items() if k != "date"} if isinstance(value, dict) else value


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("onnxruntime", "openvino") if find_spec(name)}


def _status(field: str) -> int:
    """A size in bytes from /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    sys.exit(main())
