# SPDX-License-Identifier: Apache-2.0
"""The wheel that carries CUDA C++: what it holds, and that it installs and loads without compiler, GPU and driver."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest
import torch
from test_package import build, setup_script

from benchmarks.tools import sass

NVCC = os.environ.get("CUDACXX") or shutil.which("nvcc")
LIBRARY = "ditn_kernels/_C_cuda.so"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.exhaustive,
    pytest.mark.skipif(not NVCC, reason="needs nvcc, which is not installed"),
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make wheel` builds where there is nvcc."""
    return build(tmp_path_factory.mktemp("dist"), DITN_BUILD="cuda", DITN_CUDA_ARCHS="")


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that pip installed it into, finding no compiler."""
    folder, empty = (tmp_path_factory.mktemp(name) for name in ("installed", "empty"))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", folder, wheel]
    subprocess.run(command, check=True, env={"PATH": str(empty), "HOME": str(empty)})
    return folder


def run(installed: Path, folder: Path, code: str, *arguments: object) -> str:
    """What a program prints that finds the installed packages, and neither a compiler nor the source tree."""
    environment = {"PATH": str(folder), "HOME": str(folder), "PYTHONPATH": str(installed)}
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_size_and_what_it_says(wheel, installed) -> None:
    with zipfile.ZipFile(wheel) as archive:
        without = wheel.stat().st_size - archive.getinfo(LIBRARY).compress_size
    assert wheel.stat().st_size < 40e6
    assert without < 12e6
    facts = json.loads((installed / "ditn_kernels" / "build_info.json").read_text())
    assert facts["levels"]
    assert facts["cuda"]["architectures"] == setup_script().CUDA_ARCHS.split(";")
    said = subprocess.run([NVCC, "--version"], check=True, capture_output=True, text=True).stdout
    assert f"release {facts['cuda']['toolkit']}," in said


def test_machine_code_of_every_generation(installed) -> None:
    """As another program reads it off the file."""
    library = installed / LIBRARY
    elf = sass.cuobjdump("-lelf", library)
    assert [chip for chip in ("sm_75", "sm_80", "sm_90", "sm_100", "sm_120") if f".{chip}.cubin" not in elf] == []
    ptx = sass.cuobjdump("-lptx", library)
    assert [chip for chip in ("sm_100", "sm_120") if f".{chip}.ptx" not in ptx] == []


def test_on_a_machine_without_compiler_the_cpu_runs(installed, tmp_path) -> None:
    code = """
    import json, shutil, torch, ditn_kernels
    from ditn_kernels import explain, info
    from ditn_kernels.backends.native import _libraries
    assert not [name for name in ("nvcc", "g++", "gcc", "cc", "clang") if shutil.which(name)]
    op = ditn_kernels.gated_ffn
    args = op.inputs(op.samples[0])
    assert explain(op, *args.values()).chosen == "cpp", explain(op, *args.values())
    exact = op.reference(*op.inputs(op.samples[0], dtype=torch.float64).values())
    error = float((op(*args.values()) - exact).abs().max() / exact.abs().max())
    reasons = info("cpu")["operators"]["gated_ffn"]["forward"]["cuda"]
    print(json.dumps({"file": ditn_kernels.__file__, "error": error, "cuda": reasons}))
    """
    found = json.loads(run(installed, tmp_path, code))
    assert Path(found["file"]).is_relative_to(installed)
    # A sum of 120 products in float32, and the rounding of its result.
    assert found["error"] < 120 * torch.finfo(torch.float32).eps
    if torch.version.cuda is None:
        assert found["cuda"][0] == "needs a PyTorch with CUDA (this one is a build without)"


def test_it_loads_without_a_driver_into_any_torch(installed, tmp_path) -> None:
    """For a torch without CUDA a library of the same name stands in for the one that the kernels' would find in torch's
    folder. The runtime of CUDA is inside, and asks for a driver only when something is launched."""
    listed = subprocess.run(["readelf", "-d", installed / LIBRARY], check=True, capture_output=True, text=True).stdout
    needed = {line.split("[")[1].rstrip("]\n ") for line in listed.splitlines() if "(NEEDED)" in line}
    system = {
        "libstdc++.so.6",
        "libgcc_s.so.1",
        "libc.so.6",
        "libm.so.6",
        "libdl.so.2",
        "librt.so.1",
        "libpthread.so.0",
    }
    system |= {"ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
    assert needed - system == {"libtorch_cuda.so", "libtorch_cpu.so", "libc10.so"}
    listed = subprocess.run(["nm", "-D", "-u", installed / LIBRARY], check=True, capture_output=True, text=True).stdout
    unstable = ("Py", "_Py", "_ZN3c10", "_ZNK3c10", "_ZN2at", "_ZNK2at", "_ZN5torch")
    assert [line for line in listed.splitlines() if line.split()[-1].startswith(unstable)] == []
    stand_in = tmp_path / "libtorch_cuda.so"
    source = "void aoti_torch_get_current_cuda_stream() {}"
    command = ["gcc", "-shared", "-x", "c", "-Wl,-soname,libtorch_cuda.so", "-o", stand_in, "-"]
    subprocess.run(command, input=source, text=True, check=True)
    code = """
    import ctypes, sys, torch
    from ditn_kernels.backends.native import _libraries
    if torch.version.cuda is None:
        ctypes.CDLL(sys.argv[1], ctypes.RTLD_GLOBAL)
    assert _libraries.why_missing() is None, _libraries.why_missing()
    torch.ops.load_library(_libraries.FOLDER / "_C_cuda.so")
    for name in ("gated_ffn", "image_tail"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"ditn_native::{name}", "CUDA"), name
    """
    run(installed, tmp_path, code, stand_in)
