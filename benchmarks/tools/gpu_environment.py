# SPDX-License-Identifier: Apache-2.0
"""What `make gpu` finds on the machine: versions, the GPU, the assembler, and what can run. With `--build` it builds
the compiled libraries in the source tree if they do not load.

    python -m benchmarks.tools.gpu_environment [--build]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys

from benchmarks.harness import gpu_timing as gpu
from benchmarks.harness.outputs import PROJECT
from ditn_kernels import __main__ as table
from ditn_kernels.backends.native import _libraries
from ditn_kernels.backends.triton import _assembler
from ditn_kernels.backends.triton._dispatch import why_missing


def build() -> int:
    """Exit code 0 if the libraries load, or CUDA's cannot be built here, which is said."""
    if _libraries.why_no_cuda() is None:
        print(f"the compiled libraries are there, for {', '.join(_libraries.build_info()['cuda']['architectures'])}")
        return 0
    print(f"the CUDA library {_libraries.why_no_cuda()}", flush=True)
    nvcc = shutil.which("nvcc")
    # Machine code for the GPU that is here only: for all of them it would take several times as long.
    capability = gpu.capability()
    wanted = {"DITN_BUILD": "cuda" if nvcc else "auto", "DITN_CUDA_ARCHS": f"{capability // 10}.{capability % 10}"}
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    code = subprocess.run(command, cwd=PROJECT, env=wanted | os.environ).returncode
    print("building failed" if code else f"built {'with CUDA' if nvcc else 'without CUDA: there is no nvcc'}")
    return code


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", action="store_true", help="build the compiled libraries if they do not load")
    args = parser.parse_args()
    gpu.require_gpu()
    if args.build:
        return build()
    table.main([])
    print("\n" + "\n".join(f"{name:16} {value}" for name, value in gpu.machine().items()))
    choice = _assembler.choose(gpu.capability())
    print(f"\n{', '.join(why_missing()) or 'Triton is there'}; CUDA C++ {_libraries.why_no_cuda() or 'is there'}")
    print(f"assembler sm_{gpu.capability()}  {choice}")
    return int(bool(choice.refusal or why_missing()))


if __name__ == "__main__":
    sys.exit(main())
