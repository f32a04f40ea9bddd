# SPDX-License-Identifier: Apache-2.0
"""A provider's process; `benchmarks.harness.contest` starts them and asks them in turns.

It gets ready and runs its images once, which is timed as its cold pass and on which its peak memory is read; it runs
them a second time, on which its results are checked; then it waits, and times one pass whenever it is asked.

From the second pass on, the C library keeps the memory that it was given back, but for providers "as installed".
Otherwise the system takes the pages of every map away and clears new ones at the next call, which was 40 % of the time
of SwinIR-light in eager PyTorch. "eager" alone therefore says too little: `providers.title`.

`benchmarks.compare` runs this with packages of other commits, so only what is public is imported until a provider needs
more.
"""

from __future__ import annotations

import ctypes
import json
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import ditn
from benchmarks.harness import providers
from benchmarks.harness.networks import new_network
from benchmarks.harness.peers import PEERS
from benchmarks.harness.runtimes import Call, Task
from benchmarks.harness.timing import seconds

# Largest difference to float64 over the largest value. float32: what a network of this depth loses, with room for the
# order of summation; float16 and bfloat16: 11 and 8 bits, and as much room.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
# Gradients: float32 sums over 18,432 pixels; 8 bits through 40 operations and back.
TRAINING_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
TRAINING_BATCH = 8
# Arguments of glibc's mallopt: how much may be free before it is returned, how many blocks may be mapped.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


@dataclass(frozen=True)
class Job:
    """A provider's task. `sizes` are WIDTHxHEIGHT of images that come one after the other; of several, none may be
    optimised for."""

    network: str
    provider: str
    upscale: int
    sizes: tuple[str, ...]
    threads: int
    training: bool = False
    device: str = "cpu"

    @property
    def case(self) -> str:
        """The file with network, images and the right results, which providers share."""
        return f"{self.network}-x{self.upscale}-{'-'.join(self.sizes)}{'-training' * self.training}.pt"

    @property
    def tolerance(self) -> float:
        return (TRAINING_TOLERANCE if self.training else TOLERANCE)[providers.dtype_of(self.provider, self.device)]


def prepare(job: Job, folder: Path) -> None:
    """Write the job's case, unless it is there: what the network has to give, in float64, by the published formula."""
    path = folder / job.case
    if path.exists():
        return
    network = new_network(job.network, job.upscale)
    images, target = [], None
    for width, height in (map(int, size.split("x")) for size in job.sizes):
        images.append(torch.rand(TRAINING_BATCH if job.training else 1, 3, height, width))
    if job.training:
        batch, _, height, width = images[0].shape
        target = torch.rand(batch, 3, height * job.upscale, width * job.upscale)
    case = {"state": network.state_dict(), "images": images, "target": target}
    exact = network if job.network in PEERS else providers.Published(network)
    exact = exact.double().requires_grad_(False)
    with torch.no_grad():
        if target is None:
            results = [exact(image.double()) for image in images]
        else:
            task = Task([images[0].double()], target.double(), job.upscale, 8, job.threads, folder)
            results = [providers.training_step(exact, task)(images[0].double())]
    torch.save(case, path)
    torch.save(results, folder / f"exact-{job.case}")


def main() -> int:
    """A provider's process: say how it went, then run a pass for every line that comes in."""
    job = Job(**json.loads(sys.argv[1]))
    folder = Path(sys.argv[2])
    torch.set_num_threads(job.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    case = torch.load(folder / job.case)
    with tempfile.TemporaryDirectory() as own, torch.no_grad():
        start = time.perf_counter()
        make, network, task = _built(job, case, Path(own))
        call = make(network, task)
        ready = time.perf_counter() - start
        before = _reset_peak(job.device)
        first = _pass(call, task.images)
        extra = _peak(job.device) - before
        if not job.provider.endswith(providers.AS_INSTALLED):
            _keep_freed_memory()
        expected = torch.load(folder / f"exact-{job.case}", mmap=True)
        error = max(_error(call(image), exact) for image, exact in zip(task.images, expected, strict=True))
        del expected
        print(json.dumps({"ready_s": ready, "first_s": first, "extra_bytes": extra, "error": error}), flush=True)
        for _ in sys.stdin:
            print(json.dumps(_pass(call, task.images)), flush=True)
    return 0


def _built(job: Job, case: Mapping[str, Any], folder: Path) -> tuple[Any, nn.Module, Task]:
    network = new_network(job.network, job.upscale)
    network.load_state_dict(case["state"])
    dtype = torch.float16 if job.device == "cuda" else torch.float32
    grid = network.config.grid if isinstance(network, ditn.DITN) else network.grid
    images = [image.to(job.device, dtype) for image in case["images"]]
    task = Task(images, case["target"], job.upscale, grid, job.threads, folder)  # type: ignore[arg-type]
    if job.network in PEERS:
        network.fold()  # type: ignore[operator]
        table: Mapping[str, Any] = providers.RUNTIMES[job.device]
    else:
        table = providers.TRAINING if job.training else {**providers.INFERENCE[job.device], **providers.DEPLOYMENT}
    return table[job.provider], network.to(job.device, dtype), task


def _pass(call: Call, images: Iterable[Tensor]) -> list[float]:
    """Seconds of each image."""
    return [seconds(lambda image=image: call(image)) for image in images]  # type: ignore[misc]


def _error(result: Tensor, exact: Tensor) -> float:
    """Relative to the largest value. Raises SystemExit for a result of the wrong shape or with values that are none."""
    if result.shape != exact.shape or not result.isfinite().all():
        raise SystemExit(
            f"the result is {list(result.shape)}, finite: {bool(result.isfinite().all())}; "
            f"must be {list(exact.shape)} and finite"
        )
    return float((result.cpu().double() - exact).abs().max() / exact.abs().max())


def _keep_freed_memory() -> None:
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def _reset_peak(device: str) -> int:
    """Bytes held now; the peak is counted from here."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else _status("VmHWM")


def _status(field: str) -> int:
    """A size in bytes from /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    sys.exit(main())
