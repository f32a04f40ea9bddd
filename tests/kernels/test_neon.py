# SPDX-License-Identifier: Apache-2.0
"""The NEON level on a machine without it: cross-compiled and run under qemu's user mode, where every kernel must give
what the AVX2 level gives here, which the operator tests hold to float64."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import PROJECT

from setup import LEVELS

CSRC = PROJECT / "csrc"
NEEDED = ("aarch64-linux-gnu-g++", "qemu-aarch64", "g++")
MISSING = [tool for tool in NEEDED if not shutil.which(tool)]
# One order of summation against another in float32, of which gradients that cancel keep four digits; and now and then a
# rounding to 16 bits that falls the other way.
TOLERANCE = {"float": 1e-4, "bfloat16": 4e-3, "float16": 1e-3}


def build(folder: Path, compiler: str, levels: dict[str, list[str]]) -> Path:
    def compile_unit(source: str, level: str) -> str:
        output = str(folder / f"{Path(source).stem}-{level}.o")
        flags = [*levels.get(level, []), f"-DDITN_LEVEL={level}"]
        command = [compiler, "-std=c++20", "-O2", "-w", *flags, "-c", str(CSRC / source), "-o", output]
        subprocess.run(command, check=True)
        return output

    units = [("sanitize.cpp", "none"), ("cpu/level.cpp", "none")]
    units += [(f"cpu/{stem}.cpp", level) for stem in ("kernels", "backward") for level in levels]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda unit: compile_unit(*unit), units))
    program = folder / "sanitize"
    subprocess.run([compiler, "-static", "-pthread", *objects, "-o", str(program)], check=True)
    return program


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason=f"compares with AVX2; this is {platform.machine()}")
@pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)} (Debian: g++-aarch64-linux-gnu, qemu-user, g++)")
def test_neon_gives_what_avx2_gives(tmp_path) -> None:
    neon, avx2 = tmp_path / "neon", tmp_path / "x86"
    neon.mkdir()
    avx2.mkdir()
    programs = {
        "neon": ["qemu-aarch64", str(build(neon, "aarch64-linux-gnu-g++", LEVELS["aarch64"]))],
        "avx2": [str(build(avx2, "g++", LEVELS["x86_64"]))],
    }
    for channels in ("7", "20"):
        lines = []
        for level, program in programs.items():
            command = [*program, "--digest", channels]
            environment = os.environ | {"DITN_CPU_LEVEL": level}
            result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            assert result.returncode == 0, f"{level}: {result.stdout[-2000:]}{result.stderr}"
            lines.append(result.stdout.splitlines()[:-1])  # the last names the level
        assert len(lines[0]) == len(lines[1]) > 100
        for got, want in zip(*lines, strict=True):
            *what, sizes, places = got.split()
            *expected_what, expected_sizes, expected_places = want.split()
            assert what == expected_what
            # Relative to the sum of sizes: the other sum can cancel, and its errors do not.
            bound = TOLERANCE[what[-1]] * float(expected_sizes)
            assert abs(float(sizes) - float(expected_sizes)) <= bound, f"{got} / {want}"
            assert abs(float(places) - float(expected_places)) <= bound, f"{got} / {want}"
