# SPDX-License-Identifier: Apache-2.0
"""A kernel compiled by the two assemblers that Triton brings along, for a chip that is not here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import PROJECT

# One kernel, compiled by each of two assemblers and by Triton itself, with one cache on disk.
KERNEL = """
import triton
import triton.language as tl

def copy(source, target, N: tl.constexpr):
    index = tl.arange(0, N)
    tl.store(target + index, tl.load(source + index))

kernel = triton.jit(copy)
another = triton.jit(copy)
"""
COMPILED = """
import hashlib, json, os, sys, torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from ditn_kernels.backends.triton import _assembler
from ditn_kernels.backends.triton import _ptxas, _compile
from ditn_kernels.backends.triton._config import Config
from ditn_kernels.backends.triton._launch import Launch
from written import another, kernel

class Device:  # as much of a driver as compiling asks
    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)

def state():
    knobs = triton.knobs.nvidia, triton.knobs.runtime, triton.knobs.compilation
    there = repr([vars(one) for one in knobs]), sorted(os.environ.items()), repr(triton.backends.backends)
    return *there, triton.compile.__globals__["make_backend"], triton.knobs.nvidia.ptxas.path

def facts(compiled):
    return compiled.hash, compiled.asm["ptx"], hashlib.sha256(compiled.asm["cubin"]).hexdigest()

tensors = [torch.empty(64, dtype=torch.float16, device="meta") for _ in range(2)]
launch = Launch(kernel, "copy", tensors[0].device, tuple(tensors), {"N": 64}, Config(1, 1), {}, 1)
options = {"num_warps": 1, "num_stages": 1}
driver.set_active(Device())
found = []
for path in sys.argv[1:]:
    chosen = _assembler.read(path, "a test")
    _assembler.choose = lambda capability: _assembler.Choice(chosen)
    before = state()
    found.append(facts(_compile.compiled(launch, 90)))
    assert state() == before
_ptxas.own(kernel)
launched, theirs = (fn.warmup(torch.float16, torch.float16, N=64, grid=(1,), **options) for fn in (kernel, another))
assert state() == before
plain = triton.compile(_compile.source(launch), target=GPUTarget("cuda", 90, 32), options=options)
print(json.dumps([*found, *map(facts, (plain, launched, theirs))]))
"""


@pytest.mark.slow  # imports torch and Triton in a process of its own, where nothing is interpreted
def test_a_kernel_compiled_by_two_assemblers(tmp_path) -> None:
    """Each makes its own code, kept under its own key, while Triton's state and others' kernels stay as they were."""
    if find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    tools = Path(find_spec("triton").origin).parent / "backends" / "nvidia" / "bin"
    (tmp_path / "written.py").write_text(KERNEL)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": f"{PROJECT}{os.pathsep}{tmp_path}"}
    command = [sys.executable, "-c", COMPILED, *(str(tools / name) for name in ("ptxas", "ptxas-blackwell"))]
    run = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, env=environment)
    assert run.returncode == 0, run.stderr
    own, newer, plain, launched, theirs = json.loads(run.stdout)
    key, ptx, code = range(3)
    assert own[ptx] == newer[ptx] == plain[ptx] == launched[ptx]
    assert own[code] == plain[code]  # Triton's own choice for this chip
    assert newer[code] == launched[code] != own[code] == theirs[code]
    assert len({one[key] for one in (own, newer)}) == 2
    assert launched[key] != theirs[key]
