# SPDX-License-Identifier: Apache-2.0
"""Builds the compiled library `ditn_kernels/_C.so`; everything else is in pyproject.toml.

DITN_BUILD  auto (default): build, or say why not and install without; cpu: build, or fail; none: do not build.

The library uses LibTorch's stable ABI from 2.10 on and no Python: one file serves every Python and every newer torch,
so the wheel is tagged py3-none-<platform>.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

PROJECT = Path(__file__).parent
AVX512 = ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma"]
LEVELS = {
    "x86_64": {
        "avx2": ["-mavx2", "-mfma", "-mf16c"],
        "avx512": AVX512,
        "avx512bf16": [*AVX512, "-mavx512bf16"],
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


class BuildError(Exception):
    """Why there will be no compiled library."""


class BuildLibrary(build_ext):
    def run(self) -> None:
        wanted = os.environ.get("DITN_BUILD", "auto")
        if wanted not in ("auto", "cpu", "none"):
            raise SystemExit(f"DITN_BUILD is {wanted!r}, must be auto, cpu or none")
        folder = PROJECT if self.inplace else Path(self.build_lib)
        folder = folder / "ditn_kernels"
        folder.mkdir(parents=True, exist_ok=True)
        try:
            if wanted == "none":
                raise BuildError("is not built: DITN_BUILD was none")
            info = self._build(folder / "_C.so")
        except BuildError as error:
            if wanted == "cpu":
                raise SystemExit(f"the compiled library {error}") from error
            print(f"warning: the compiled library {error}; installing without it", file=sys.stderr)
            (folder / "_C.so").unlink(missing_ok=True)
            info = {"reason": str(error)}
        (folder / "build_info.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")

    def _build(self, library: Path) -> dict[str, object]:
        compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
        levels = LEVELS.get(platform.machine())
        if platform.system() != "Linux" or levels is None:
            raise BuildError(f"is not built: no kernels for {platform.system()} on {platform.machine()} yet")
        if compiler is None:
            raise BuildError("is not built: no C++ compiler (g++ or clang++) was found")
        try:
            import torch
        except ImportError as error:
            raise BuildError("is not built: torch must be installed first, with --no-build-isolation") from error
        root = Path(torch.__file__).parent
        target = ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-isystem", str(root / "include")]
        units = {"level": ("csrc/cpu/level.cpp", []), "register": ("csrc/register.cpp", target)}
        for name, flags in levels.items():
            for stem in ("kernels", "backward"):
                units[f"{stem}-{name}"] = (f"csrc/cpu/{stem}.cpp", [f"-DDITN_LEVEL={name}", *flags])
        objects = Path(self.build_temp)
        objects.mkdir(parents=True, exist_ok=True)

        def compile_unit(name: str) -> str:
            source, flags = units[name]
            output = str(objects / f"{name}.o")
            _run([compiler, *FLAGS, *flags, "-c", str(PROJECT / source), "-o", output])
            return output

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            compiled = list(pool.map(compile_unit, units))
        partial = library.with_suffix(".partial")
        _run([compiler, "-shared", "-o", str(partial), *compiled, f"-L{root / 'lib'}", "-ltorch_cpu", "-lc10"])
        os.replace(partial, library)
        version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
        return {"levels": list(levels), "compiler": version.splitlines()[0], "torch": torch.__version__}

    def get_outputs(self) -> list[str]:
        folder = Path(self.build_lib) / "ditn_kernels"
        return [str(path) for path in (folder / "_C.so", folder / "build_info.json") if path.exists()]


class PlatformWheel(bdist_wheel):
    """For every Python, on this platform."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise BuildError(f"is not built: {' '.join(command[:1])} failed:\n{result.stderr[-4000:]}")


if __name__ == "__main__":
    setup(
        ext_modules=[Extension("ditn_kernels._C", sources=[])],
        cmdclass={"build_ext": BuildLibrary, "bdist_wheel": PlatformWheel},
    )
