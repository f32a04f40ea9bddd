# SPDX-License-Identifier: Apache-2.0
"""Every kernel for GPUs once, on a small sample, under NVIDIA's compute-sanitizer: accesses out of bounds, races.

    python -m benchmarks.tools.sanitize

Exit code 0 if nothing was found, or, as is said, if compute-sanitizer is not installed.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator

import torch

from benchmarks.harness import cases
from benchmarks.harness import gpu_timing as gpu
from benchmarks.harness.outputs import PROJECT
from ditn_kernels import REGISTRY, Op, compilations
from ditn_kernels._dispatch import reasons_against

TOOLS = ("memcheck", "racecheck")
FOUND_SOMETHING = 9


def samples(op: Op) -> Iterator[str]:
    """Run the operator's first sample, forward and backward, in every dtype that Triton or CUDA C++ has kernels for."""
    for backend, dtype in itertools.product(("triton", "cuda"), cases.DTYPES.values()):
        args = op.inputs(op.samples[0], dtype=dtype, device="cuda")
        if not reasons_against(op, backend, args):
            op(*args.values(), backend=backend)
            yield f"{op.name} {backend} {dtype}"
        if not reasons_against(op, backend, args, backward=True):
            grad = torch.randn(op.output_shape(op.check(args), args), dtype=dtype, device="cuda")
            getattr(torch.ops.ditn, f"{op.name}_backward").default(grad, *args.values(), backend=backend)
            yield f"{op.name} backward {backend} {dtype}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inside", action="store_true", help="only run the samples, as the sanitizer's program")
    args = parser.parse_args()
    gpu.require_gpu()
    if args.inside:
        run = [what for op in REGISTRY.values() for what in samples(op)]
        torch.cuda.synchronize()
        print(f"ran {len(run)} samples, {len({one.kernel for one in compilations})} Triton kernels: {', '.join(run)}")
        return 0
    program = gpu.cuda_program("compute-sanitizer")
    if program is None:
        print("skipped: compute-sanitizer is not installed (CUDA's toolkit brings it; looked in PATH and CUDA_HOME)")
        return 0
    # Without the caching allocator every tensor is an allocation of its own, and what lies beyond it is out of bounds.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    failed = []
    for tool in TOOLS:
        command = [program, "--tool", tool, "--error-exitcode", str(FOUND_SOMETHING)]
        command += [sys.executable, "-m", "benchmarks.tools.sanitize", "--inside"]
        print(f"compute-sanitizer, {tool}:", flush=True)
        if subprocess.run(command, cwd=PROJECT, env=environment).returncode:
            failed.append(tool)
    print(f"found something: {', '.join(failed)}" if failed else "found nothing")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
