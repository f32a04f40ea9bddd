# SPDX-License-Identifier: Apache-2.0
"""Which ptxas assembles: chosen on installations that are made up, of scripts that answer as a ptxas does. What it
then makes of a kernel is in test_assembled.py."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ditn.commands import cli
from ditn_kernels import REGISTRY
from ditn_kernels import __main__ as command
from ditn_kernels.backends import BACKENDS
from ditn_kernels.backends.triton import _assembler
from ditn_kernels.backends.triton._assembler import Assembler, AssemblerError, select
from ditn_kernels.backends.triton._dispatch import why_not_assembled

CHIPS = ("sm_80", "sm_90", "sm_90a", "sm_100a")


def assembler(*version: int, origin: str = "somewhere", chips: tuple[str, ...] = CHIPS) -> Assembler:
    return Assembler(Path("ptxas"), origin, version, f"ptxas {version}", frozenset(chips))


def program(path: Path, version: str, chips: tuple[str, ...] = CHIPS) -> Path:
    """A script that says of itself what a ptxas of this version would."""
    path.parent.mkdir(parents=True, exist_ok=True)
    listed = ",".join(f"'{chip}'" for chip in chips)
    path.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = --help ]; then\n'
        f'  echo "--gpu-name <gpu name>  Allowed values for this option:  {listed}."\n'
        "else\n"
        '  echo "ptxas: NVIDIA (R) Ptx optimizing assembler"\n'
        f'  echo "Cuda compilation tools, release {version.rpartition(".")[0]}, V{version}"\n'
        f'  echo "Build cuda_{version}/compiler.1_0"\n'
        "fi\n"
    )
    path.chmod(0o755)
    return path


@pytest.fixture
def bare(monkeypatch, tmp_path) -> Path:
    """A machine without any ptxas, and a folder to put some into."""

    def no_wheel(name: str) -> None:
        raise _assembler.PackageNotFoundError(name)

    for variable in ("TRITON_PTXAS_PATH", "TRITON_PTXAS_BLACKWELL_PATH", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(_assembler, "TOOLKIT", tmp_path / "none")
    monkeypatch.setattr(_assembler, "distribution", no_wheel)
    monkeypatch.setattr(_assembler, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    _assembler.choose.cache_clear()
    yield tmp_path
    _assembler.choose.cache_clear()


# (Capability, what is there, what is taken.)
CHOICES = [
    (90, [(12, 8, 93), (12, 9, 86)], (12, 9, 86)),
    (90, [(12, 9, 86), (13, 0, 88), (12, 8, 93)], (13, 0, 88)),  # both with reports of others: the newest
    (90, [(13, 5, 37), (13, 0, 88), (12, 8, 93)], (13, 5, 37)),
    (90, [(13, 3, 33), (13, 2, 51)], (13, 3, 33)),
    (90, [(12, 8, 61), (12, 4, 131)], (12, 4, 131)),  # of another kind of fault, rather than known wrong here
    (80, [(12, 8, 93), (12, 4, 131)], (12, 8, 93)),  # no fault is known there
    (100, [(12, 9, 86), (12, 8, 93)], (12, 9, 86)),
]


@pytest.mark.parametrize(("capability", "found", "taken"), CHOICES)
def test_the_newest_without_a_known_fault_is_taken(capability, found, taken) -> None:
    for order in (found, found[::-1]):
        choice = select([assembler(*version) for version in order], capability, driver=None)
        assert choice.assembler.version == taken
        assert not choice.refusal


def test_where_only_a_wrong_one_is_products_are_refused() -> None:
    choice = select([assembler(12, 8, 93, origin="Triton's ptxas")], 90, driver=None)
    assert choice.assembler.version == (12, 8, 93)  # kernels without a product may have it
    assert "has only ptxas 12.8.93 (Triton's ptxas) for sm_90, which computes wgmma's" in choice.refusal
    assert "triton/issues/11366" in choice.refusal
    assert "pip install nvidia-cuda-nvcc" in choice.refusal
    assert str(choice).startswith("none: has only ptxas 12.8.93")


def test_chips_that_an_assembler_does_not_know() -> None:
    old, new = assembler(12, 9, 86, chips=("sm_70", "sm_90a")), assembler(13, 5, 37)
    assert select([old, new], 70, driver=None).assembler is old
    nothing = select([new], 70, driver=None)
    assert nothing.assembler is None
    assert nothing.refusal == "finds no ptxas that assembles for sm_70; ptxas 13.5.37 (somewhere) does not know sm_70"


def test_code_that_the_driver_does_not_load_is_not_made() -> None:
    """A driver loads code of its own major version and of earlier ones."""
    found = [assembler(13, 5, 37), assembler(12, 9, 86)]
    assert select(found, 90, driver=12).assembler.version == (12, 9, 86)
    assert "this driver, which is of CUDA 12" in select(found, 90, driver=12).notes[0]
    for driver in (13, 14, None):
        assert select(found, 90, driver=driver).assembler.version == (13, 5, 37)


def test_installations_are_found(bare, monkeypatch) -> None:
    wheel = program(bare / "site" / "nvidia" / "cu13" / "bin" / "ptxas", "13.5.37")
    home = program(bare / "cuda" / "bin" / "ptxas", "13.0.88")
    on_path = program(bare / "bin" / "ptxas", "12.6.20")
    inside = bare / "triton" / "backends" / "nvidia" / "bin"
    program(inside / "ptxas", "12.8.93")
    program(inside / "ptxas-blackwell", "12.9.86")

    def distribution(name: str) -> SimpleNamespace:
        if name != "nvidia-cuda-nvcc":
            raise _assembler.PackageNotFoundError(name)
        files = [Path("nvidia/cu13/bin/nvcc"), Path("nvidia/cu13/bin/ptxas")]
        return SimpleNamespace(files=files, locate_file=lambda file: bare / "site" / file)

    monkeypatch.setattr(_assembler, "distribution", distribution)
    monkeypatch.setattr(_assembler, "find_spec", lambda name: SimpleNamespace(origin=str(bare / name / "__init__.py")))
    found = _assembler.installed({"CUDA_HOME": str(bare / "cuda"), "PATH": str(bare / "bin")})
    assert [(one.path, str(one)) for one in found] == [
        (wheel, "ptxas 13.5.37 (the wheel nvidia-cuda-nvcc)"),
        (home, f"ptxas 13.0.88 (the CUDA toolkit in {bare / 'cuda'})"),
        (on_path, f"ptxas 12.6.20 (the CUDA toolkit, {on_path})"),
        (inside / "ptxas-blackwell", "ptxas 12.9.86 (Triton's ptxas-blackwell)"),
        (inside / "ptxas", "ptxas 12.8.93 (Triton's ptxas)"),
    ]
    assert all(one.chips == set(CHIPS) for one in found)
    assert len({one.identity for one in found}) == len(found)


def test_of_equal_builds_the_first_found_counts() -> None:
    first, second = (assembler(13, 5, 37, origin=origin) for origin in ("the wheel", "the toolkit"))
    assert select([first, second], 90, driver=None).assembler.origin == "the wheel"


def test_what_is_named_is_the_only_one(bare, monkeypatch) -> None:
    named = program(bare / "mine", "12.9.86")
    monkeypatch.setenv("CUDA_HOME", str(program(bare / "cuda" / "bin" / "ptxas", "13.5.37").parent.parent))
    monkeypatch.setenv("TRITON_PTXAS_PATH", str(named))
    for capability in (80, 90, 100):
        _assembler.choose.cache_clear()
        assert str(_assembler.choose(capability).assembler) == "ptxas 12.9.86 (TRITON_PTXAS_PATH)"
    monkeypatch.setenv("TRITON_PTXAS_BLACKWELL_PATH", str(program(bare / "other", "13.0.88")))
    _assembler.choose.cache_clear()
    assert _assembler.choose(100).assembler.version == (13, 0, 88)
    assert _assembler.choose(90).assembler.version == (12, 9, 86)
    program(named, "12.8.93")
    _assembler.choose.cache_clear()
    assert "unset TRITON_PTXAS_PATH, or name another" in _assembler.choose(90).refusal


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "is no file"),
        (Path.mkdir, "is no file"),
        (lambda path: path.write_text("#!/bin/sh\n"), "cannot be executed"),
        (lambda path: program(path, "1").write_text("#!/bin/sh\necho gcc 12.2.0\n"), "is no ptxas"),
        (lambda path: program(path, "1").write_text("#!/bin/sh\nexit 3\n"), "is no ptxas"),
        (lambda path: program(path, "1").write_bytes(b"\x7fELF nothing"), "is no ptxas"),
    ],
)
def test_a_path_that_names_no_assembler_is_an_error(bare, make, reason, monkeypatch) -> None:
    make(bare / "named")
    monkeypatch.setenv("TRITON_PTXAS_PATH", str(bare / "named"))
    with pytest.raises(AssemblerError, match=rf"TRITON_PTXAS_PATH is '{bare / 'named'}', which {reason}"):
        _assembler.choose(90)
    with pytest.raises(SystemExit, match=f"TRITON_PTXAS_PATH.*{reason}"):
        command.main(["--capability", "90"])


def test_operators_are_refused_with_the_reason(bare, monkeypatch) -> None:
    monkeypatch.setenv("TRITON_PTXAS_PATH", str(program(bare / "ptxas", "12.8.93")))
    for op in REGISTRY.values():
        reasons = why_not_assembled(op, (9, 0))
        assert len(reasons) == (op.name != "layer_norm2d"), op.name  # the only one without a product of matrices
        assert all("12.8.93" in reason for reason in reasons)
        assert why_not_assembled(op, (8, 0)) == []
        (reason,) = why_not_assembled(op, (7, 0))
        assert reason.startswith("finds no ptxas that assembles for sm_70; ptxas 12.8.93 (TRITON_PTXAS_PATH) does not")


def test_the_backend_gives_the_reason(bare, monkeypatch) -> None:
    """As on a GPU: Triton is not chosen for it, and `explain` says why."""
    if find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    monkeypatch.setenv("TRITON_PTXAS_PATH", str(program(bare / "ptxas", "12.8.93")))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    backend = BACKENDS["triton"]
    reasons = backend.missing(REGISTRY["gated_ffn"], torch.device("cuda"), backward=False)
    assert [reason.partition(",")[0] for reason in reasons] == ["has only ptxas 12.8.93 (TRITON_PTXAS_PATH) for sm_90"]
    assert backend.missing(REGISTRY["layer_norm2d"], torch.device("cuda"), backward=False) == []


def test_the_table_has_a_line_for_a_chip_that_is_not_here(bare, monkeypatch, capsys) -> None:
    monkeypatch.setenv("CUDA_HOME", str(bare))
    program(bare / "bin" / "ptxas", "12.9.86")
    command.main(["--capability", "90", "75"])
    lines = capsys.readouterr().out.splitlines()
    does_not = f"ptxas 12.9.86 (the CUDA toolkit in {bare}) does not know"
    assert f"assembler sm_90  ptxas 12.9.86 (the CUDA toolkit in {bare})" in lines
    assert f"assembler sm_75  none: finds no ptxas that assembles for sm_75; {does_not} sm_75" in lines


def test_the_command_line_has_a_line_for_each_kind_of_gpu(bare, monkeypatch, capsys) -> None:
    monkeypatch.setenv("CUDA_HOME", str(bare))
    program(bare / "bin" / "ptxas", "12.9.86")
    monkeypatch.setattr(_assembler, "_driver", lambda: 12)
    there = {"is_available": lambda: True, "device_count": lambda: 3, "get_device_name": lambda index: f"GPU {index}"}
    there["get_device_capability"] = lambda index: ((9, 0), (8, 0), (9, 0))[index]
    for name, function in there.items():
        monkeypatch.setattr(torch.cuda, name, function)
    assert cli.main(["info", "--device", "cpu"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("assembler")]
    assert lines == [f"assembler {chip}  ptxas 12.9.86 (the CUDA toolkit in {bare})" for chip in ("sm_90", "sm_80")]
    monkeypatch.setenv("TRITON_PTXAS_PATH", "/nowhere/ptxas")
    _assembler.choose.cache_clear()
    assert cli.main(["info", "--device", "cpu"]) == 1
    assert "ditn info: TRITON_PTXAS_PATH is '/nowhere/ptxas', which is no file" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["9.0", "sm_90", "9", "-90", "", "9000"])
def test_a_value_that_is_no_capability_is_an_error(value, capsys) -> None:
    with pytest.raises(SystemExit) as error:
        command.main([f"--capability={value}"])
    assert error.value.code == 2
    assert f"{value!r} is no compute capability; write 90 for sm_90" in capsys.readouterr().err
