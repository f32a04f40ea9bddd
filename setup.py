# SPDX-License-Identifier: Apache-2.0
"""Builds the compiled libraries `ditn_kernels/_C.so` and, for CUDA, `_C_cuda.so`; all else is in pyproject.toml.

DITN_BUILD       auto (default): build, or say why not and install without; CUDA only for a torch that has it.
                 cpu: build for the CPU, or fail; cuda: build both, or fail; none: build nothing.
DITN_CUDA_ARCHS  what nvcc compiles for, such as "7.5;8.0+PTX"; by default for every chip from Turing on.

The libraries use LibTorch's stable ABI from 2.10 on and no Python: one file serves every Python and every newer torch,
so the wheel is tagged py3-none-<platform>.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

PROJECT = Path(__file__).parent
AVX512 = ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma"]
AMX = [*AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16"]
LEVELS = {
    "x86_64": {
        "avx2": ["-mavx2", "-mfma", "-mf16c"],
        "avx512": AVX512,
        "avx512bf16": [*AVX512, "-mavx512bf16"],
        "amx": AMX,
    },
    "aarch64": {"neon": []},
}
# GCC 12 takes the undefined operands inside its own AVX-512 header for a mistake.
FLAGS = [
    "-std=c++20",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Wno-maybe-uninitialized",
    "-Wno-uninitialized",
]
TORCH_FLAGS = ["-DTORCH_TARGET_VERSION=0x020a000000000000"]
# Newer chips of a generation run what was compiled for its first: for sm_86 and sm_89 nvcc makes the instructions of
# sm_80 but for 0.1 %. sm_110, a generation of one small chip, gets PTX, and so does what is newer than all.
CUDA_ARCHS = "7.5;8.0;9.0;10.0+PTX;12.0+PTX"
# Chips of this capability have kernels of their own beside those for all, which no other chip runs.
HOPPER, HOPPER_FLAGS = "9.0", ["-gencode=arch=compute_90a,code=sm_90a"]
CUDA_FLAGS = ["-std=c++20", "-O3", "-Xcompiler", "-fPIC,-fvisibility=hidden,-Wall,-Wextra"]


class BuildError(Exception):
    """Why there will be no compiled library."""


class BuildLibrary(build_ext):
    def run(self) -> None:
        wanted = os.environ.get("DITN_BUILD", "auto")
        if wanted not in ("auto", "cpu", "cuda", "none"):
            raise SystemExit(f"DITN_BUILD is {wanted!r}, must be auto, cpu, cuda or none")
        folder = PROJECT if self.inplace else Path(self.build_lib)
        self._folder = folder / "ditn_kernels"
        self._folder.mkdir(parents=True, exist_ok=True)
        Path(self.build_temp).mkdir(parents=True, exist_ok=True)
        info = self._attempt("_C.so", self._build, wanted, must=wanted in ("cpu", "cuda"))
        info["cuda"] = self._attempt("_C_cuda.so", self._build_cuda, wanted, must=wanted == "cuda")
        (self._folder / "build_info.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")

    def _attempt(
        self, name: str, build: Callable[[Path, str], dict[str, object]], wanted: str, *, must: bool
    ) -> dict[str, object]:
        """What is to be known about a library, or the reason why there is none."""
        library = self._folder / name
        try:
            if wanted == "none":
                raise BuildError("is not built: DITN_BUILD was none")
            return build(library, wanted)
        except BuildError as error:
            if must:
                raise SystemExit(f"the compiled library {name} {error}") from error
            print(f"warning: the compiled library {name} {error}; installing without it", file=sys.stderr)
            library.unlink(missing_ok=True)
            return {"reason": str(error)}

    def _build(self, library: Path, wanted: str) -> dict[str, object]:
        levels = LEVELS.get(platform.machine())
        if platform.system() != "Linux" or levels is None:
            raise BuildError(f"is not built: no kernels for {platform.system()} on {platform.machine()} yet")
        compiler, root = _compiler(), _torch()
        if "amx" in levels and not _takes(compiler, AMX):
            levels = {name: flags for name, flags in levels.items() if name != "amx"}
        target = [*TORCH_FLAGS, "-isystem", str(root / "include"), f"-I{self._interface()}"]
        known = ["-DDITN_AMX"] if "amx" in levels else []
        units = {"level": ("csrc/cpu/level.cpp", known), "register": ("csrc/register.cpp", target)}
        for name, flags in levels.items():
            for stem in ("kernels", "backward") if name != "amx" else ("kernels",):
                units[f"{stem}-{name}"] = (f"csrc/cpu/{stem}.cpp", [f"-DDITN_LEVEL={name}", *flags])

        def compile_unit(name: str) -> str:
            source, flags = units[name]
            output = str(Path(self.build_temp) / f"{name}.o")
            _run([compiler, *FLAGS, *flags, "-c", str(PROJECT / source), "-o", output])
            return output

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            compiled = list(pool.map(compile_unit, units))
        partial = library.with_suffix(".partial")
        # -s: without the names of functions that only it calls, a tenth of the file.
        _run([compiler, "-shared", "-s", "-o", str(partial), *compiled, f"-L{root / 'lib'}", "-ltorch_cpu", "-lc10"])
        os.replace(partial, library)
        import torch

        return {"levels": list(levels), "compiler": _version(compiler)[0], "torch": torch.__version__}

    def _build_cuda(self, library: Path, wanted: str) -> dict[str, object]:
        root, temporary = _torch(), Path(self.build_temp)
        import torch

        if wanted == "cpu":
            raise BuildError("is not built: DITN_BUILD was cpu")
        if wanted == "auto" and torch.version.cuda is None:
            raise BuildError("is not built: this PyTorch is a build without CUDA (DITN_BUILD=cuda builds it anyway)")
        nvcc = os.environ.get("CUDACXX") or shutil.which("nvcc")
        if nvcc is None:
            raise BuildError("is not built: nvcc was not found (environment variable CUDACXX, or PATH)")
        asked = os.environ.get("DITN_CUDA_ARCHS") or CUDA_ARCHS
        codes = [code for arch in asked.split(";") for code in _codes(arch)]
        compile_to = [nvcc, "-ccbin", _compiler(), *CUDA_FLAGS, "-c", "-o"]
        hopper = any(arch.split("+")[0] == HOPPER for arch in asked.split(";"))
        headers = [f"-I{PROJECT / 'csrc/cuda'}", *(["-DDITN_HOPPER"] if hopper else [])]
        target = ["-DUSE_CUDA", *TORCH_FLAGS, "-isystem", str(root / "include"), f"-I{self._interface()}"]
        generate = ["--threads", "0", *(f"-gencode={code}" for code in codes)]
        units = {"kernels.cu": [*generate, *headers], "register.cpp": target}
        if hopper:
            units["hopper.cu"] = [*HOPPER_FLAGS, *headers]
        objects = [str(temporary / f"cuda-{Path(source).stem}.o") for source in units]
        for (source, flags), output in zip(units.items(), objects, strict=True):
            _run([*compile_to, output, *flags, str(PROJECT / "csrc/cuda" / source)])
        libraries = root / "lib"
        if not (libraries / "libtorch_cuda.so").exists():
            # A torch without CUDA: another library stands in for the one that will be there where this one is loaded.
            libraries = temporary / "stand-in"
            libraries.mkdir(exist_ok=True)
            source = libraries / "libtorch_cuda.cpp"
            source.write_text('extern "C" void aoti_torch_get_current_cuda_stream() {}\n', encoding="utf-8")
            stand_in = ["-shared", "-Wl,-soname,libtorch_cuda.so", "-o", str(libraries / "libtorch_cuda.so")]
            _run([_compiler(), *stand_in, str(source)])
        partial = library.with_suffix(".partial")
        link = [nvcc, "-ccbin", _compiler(), "-shared", "-cudart", "static", "-o", str(partial), *objects]
        names = ["-Xlinker", "--no-as-needed,-z,defs", "-ltorch_cuda", "-ltorch_cpu", "-lc10"]
        _run([*link, f"-L{libraries}", f"-L{root / 'lib'}", *names])
        os.replace(partial, library)
        (compiler,) = (line for line in _version(nvcc) if "release" in line)
        (toolkit,) = re.findall(r"release (\d+\.\d+)", compiler)
        facts = {"architectures": asked.split(";"), "toolkit": toolkit, "compiler": compiler}
        return facts | {"torch": torch.__version__}

    def _interface(self) -> Path:
        """The folder of the C++ headers that are written from the operators' definitions."""
        folder = Path(self.build_temp).absolute() / "interface"
        # In a process of its own, for which this folder is where packages are.
        _run([sys.executable, "-m", "ditn_kernels._interface", str(folder)], PROJECT)
        return folder

    def get_outputs(self) -> list[str]:
        folder = Path(self.build_lib) / "ditn_kernels"
        names = ("_C.so", "_C_cuda.so", "build_info.json")
        return [str(folder / name) for name in names if (folder / name).exists()]


class PlatformWheel(bdist_wheel):
    """For every Python, on this platform."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


def _compiler() -> str:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise BuildError("is not built: no C++ compiler (g++ or clang++) was found")
    return compiler


def _torch() -> Path:
    """The folder of the torch that is installed."""
    try:
        import torch
    except ImportError as error:
        raise BuildError("is not built: torch must be installed first, with --no-build-isolation") from error
    return Path(torch.__file__).parent


def _codes(arch: str) -> list[str]:
    """What nvcc's -gencode takes for "7.5" or "7.5+PTX"."""
    found = re.fullmatch(r"(\d+)\.(\d)(\+PTX)?", arch)
    if found is None:
        raise SystemExit(f"DITN_CUDA_ARCHS holds {arch!r}, must be such as 7.5 or 7.5+PTX, separated by semicolons")
    number = found[1] + found[2]
    kinds = ["sm", "compute"] if found[3] else ["sm"]
    return [f"arch=compute_{number},code={kind}_{number}" for kind in kinds]


def _version(compiler: str) -> list[str]:
    return subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()


def _takes(compiler: str, flags: list[str]) -> bool:
    """Whether a compiler knows these flags; GCC knows AMX from release 11 on."""
    command = [compiler, *flags, "-E", "-x", "c++", os.devnull]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _run(command: list[str], folder: Path | None = None) -> None:
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode:
        raise BuildError(f"is not built: {' '.join(command[:1])} failed:\n{result.stderr[-4000:]}")


if __name__ == "__main__":
    setup(
        ext_modules=[Extension("ditn_kernels._C", sources=[])],
        cmdclass={"build_ext": BuildLibrary, "bdist_wheel": PlatformWheel},
    )
