# SPDX-License-Identifier: Apache-2.0
"""Which ptxas assembles the Triton kernels. No release of it is without faults. So of all that are installed the newest
is chosen that has no known fault for the chip. Triton is not imported for this.

    choose(90).assembler    ptxas 12.9.86 (Triton's ptxas-blackwell)

They are looked for in this order: what TRITON_PTXAS_PATH names (from sm_100 on also TRITON_PTXAS_BLACKWELL_PATH, as in
Triton), which is then the only one; the wheel nvidia-cuda-nvcc; the CUDA toolkit; Triton's own two. Of two identical
builds the first found counts.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

import torch

Version = tuple[int, ...]
# The wheel's newest name first: in some releases there was one package for each major version of CUDA.
WHEELS = ("nvidia-cuda-nvcc", "nvidia-cuda-nvcc-cu13", "nvidia-cuda-nvcc-cu12")
TOOLKIT = Path("/usr/local/cuda")
_SECONDS = 30


class AssemblerError(RuntimeError):
    """An environment variable names an assembler that does not exist or is no assembler."""


@dataclass(frozen=True)
class Assembler:
    """One ptxas. `origin` says in words where it is from, `identity` is its build, `chips` are the architectures that
    it assembles for ("sm_90a")."""

    path: Path
    origin: str
    version: Version
    identity: str
    chips: frozenset[str]

    def __str__(self) -> str:
        return f"ptxas {dotted(self.version)} ({self.origin})"


@dataclass(frozen=True)
class Fault:
    """Versions, from `first` on and before `end`, that make wrong code for a chip. Where the fault was measured on this
    package's kernels (`measured_here`), they are never used for matrix products; where others report it of their code,
    they are used after versions without any report."""

    first: Version
    end: Version
    capability: int
    measured_here: bool
    reason: str
    source: str

    def concerns(self, version: Version, capability: int) -> bool:
        return self.first <= version < self.end and capability == self.capability

    def __str__(self) -> str:
        return f"{self.reason} ({self.source})"


# On an H200 these kernels were right with 12.9.86 and 13.0, and gave the same bits every time.
FAULTS = (
    Fault(
        (12, 8),
        (12, 9),
        90,
        measured_here=True,
        reason="computes wgmma's matrix descriptors wrongly in loops",
        source="12.8.93 measured on an H200 with these kernels; github.com/triton-lang/triton/issues/11366",
    ),
    Fault(
        (0,),
        (13, 3),
        90,
        measured_here=False,
        reason="may overwrite a register operand of wgmma before it has been read",
        source="github.com/triton-lang/triton/pull/11781; release notes of CUDA 13.3",
    ),
    Fault(
        (12, 9),
        (13, 0),
        90,
        measured_here=False,
        reason="drops the immediate of a second add.s16x2",
        source="12.9.86: github.com/triton-lang/triton/issues/11581",
    ),
    Fault(
        (13, 0),
        (13, 1),
        90,
        measured_here=False,
        reason="writes beyond shared memory",
        source="13.0.88: github.com/fla-org/flash-linear-attention/pull/1262",
    ),
)


@dataclass(frozen=True)
class Choice:
    """What assembles for a chip; None if nothing can. `refusal`, if not empty, says why it does not assemble matrix
    products; `notes` say what is against each ptxas that was found."""

    assembler: Assembler | None
    refusal: str = ""
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"none: {self.refusal}" if self.refusal else str(self.assembler)


@functools.cache
def choose(capability: int) -> Choice:
    """The choice for a chip (90 for sm_90), made once per process.

    Raises AssemblerError if the environment names one that is no assembler.
    """
    named = explicit(capability, os.environ)
    return select([named] if named else installed(os.environ), capability, driver=_driver())


def select(found: Iterable[Assembler], capability: int, *, driver: int | None) -> Choice:
    """The choice among `found`. `driver` is the major version of CUDA that the driver supports, which loads no machine
    code of newer ones; None where there is no GPU."""
    chip = name(capability)
    usable: list[Assembler] = []
    notes: list[str] = []
    for one in {one.identity: one for one in reversed(list(found))}.values():
        if chip not in one.chips:
            notes.append(f"{one} does not know {chip}")
        elif driver is not None and one.version[0] > driver:
            notes.append(f"{one} makes code that this driver, which is of CUDA {driver}, does not load")
        else:
            usable.append(one)

    def order(one: Assembler) -> tuple[bool, bool, Version]:
        known = faults(one, capability)
        return not any(fault.measured_here for fault in known), not known, one.version

    usable.sort(key=order, reverse=True)
    notes += [
        f"{one}{'' if fault.measured_here else ', with other kernels,'} {fault}"
        for one in usable
        for fault in faults(one, capability)
    ]
    if not usable:
        nothing = f"finds no ptxas that assembles for sm_{capability}"
        return Choice(None, "; ".join([nothing, *notes]), tuple(notes))
    best = usable[0]
    wrong = [fault for fault in faults(best, capability) if fault.measured_here]
    named = best.origin.startswith("TRITON_")
    remedy = f"unset {best.origin}, or name another" if named else "pip install nvidia-cuda-nvcc brings a newer one"
    refusal = f"has only {best} for sm_{capability}, which {' and '.join(map(str, wrong))}; {remedy}" if wrong else ""
    return Choice(best, refusal, tuple(notes))


def faults(assembler: Assembler, capability: int) -> list[Fault]:
    """Its known faults on a chip."""
    return [fault for fault in FAULTS if fault.concerns(assembler.version, capability)]


def explicit(capability: int, environment: Mapping[str, str]) -> Assembler | None:
    """The assembler that the environment names for a chip, if any. Raises AssemblerError if it is none."""
    blackwell = ["TRITON_PTXAS_BLACKWELL_PATH"] if capability >= 100 else []
    for variable in (*blackwell, "TRITON_PTXAS_PATH"):
        if not (value := environment.get(variable)):
            continue
        path = Path(value)
        if not path.is_file():
            raise AssemblerError(f"{variable} is {value!r}, which is no file; it has to be the path of a ptxas")
        if not os.access(path, os.X_OK):
            raise AssemblerError(f"{variable} is {value!r}, which cannot be executed; it has to be the path of a ptxas")
        found = read(path, variable)
        if found is None:
            raise AssemblerError(f"{variable} is {value!r}, which is no ptxas: asked for its version it gives none")
        return found
    return None


def installed(environment: Mapping[str, str]) -> list[Assembler]:
    """Every ptxas that is found without being named and can be run."""
    return [found for path, origin in _places(environment) if (found := read(path, origin))]


def read(path: Path, origin: str) -> Assembler | None:
    """A program's own statements of version and chips; None if it is no ptxas or cannot be run."""
    try:
        about, options = (_output(path, option) for option in ("--version", "--help"))
    except (OSError, subprocess.SubprocessError):
        return None
    version = re.search(r"\bV(\d+)\.(\d+)\.(\d+)", about)
    if "ptx" not in about.lower() or version is None:
        return None
    build = re.search(r"^Build (\S+)", about, re.MULTILINE)
    number = tuple(map(int, version.groups()))
    identity = f"ptxas {dotted(number)}{f' {build[1]}' if build else ''}"
    return Assembler(path, origin, number, identity, frozenset(re.findall(r"'(sm_\w+)'", options)))


def name(capability: int) -> str:
    """The chip as Triton names it to ptxas: from sm_90 on with the features that only this chip has."""
    return f"sm_{capability}{'a' if capability >= 90 else ''}"


def dotted(version: Version) -> str:
    return ".".join(map(str, version))


def _places(environment: Mapping[str, str]) -> Iterator[tuple[Path, str]]:
    for wheel in WHEELS:
        try:
            package = distribution(wheel)
        except PackageNotFoundError:
            continue
        files = [file for file in package.files or () if file.match("bin/ptxas")]
        yield from ((Path(str(package.locate_file(file))), f"the wheel {wheel}") for file in files)
    homes = [environment[variable] for variable in ("CUDA_HOME", "CUDA_PATH") if environment.get(variable)]
    yield from ((Path(home) / "bin" / "ptxas", f"the CUDA toolkit in {home}") for home in homes)
    if on_path := shutil.which("ptxas", path=environment.get("PATH", "")):
        yield Path(on_path), f"the CUDA toolkit, {on_path}"
    yield TOOLKIT / "bin" / "ptxas", f"the CUDA toolkit in {TOOLKIT}"
    # `find_spec` of a package at the top imports nothing.
    if (triton := find_spec("triton")) and triton.origin:
        folder = Path(triton.origin).parent / "backends" / "nvidia" / "bin"
        yield from ((folder / file, f"Triton's {file}") for file in ("ptxas-blackwell", "ptxas"))


def _output(path: Path, option: str) -> str:
    command = [str(path), option]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=_SECONDS).stdout


def _driver() -> int | None:
    """The major version of CUDA that the driver supports. It loads machine code of this version and of earlier ones
    (CUDA Compatibility, "Minor Version Compatibility")."""
    if not torch.cuda.is_available():
        return None
    version: int = torch._C._cuda_getDriverVersion()  # type: ignore[attr-defined]  # 13010 for 13.1
    return version // 1000
