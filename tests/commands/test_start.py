# SPDX-License-Identifier: Apache-2.0
"""What a command says before it works: help and wrong usage at once, where it will run, what could be faster."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ditn
from ditn.commands import cli
from ditn_kernels import explain, gated_ffn, info
from ditn_kernels.backends.native import _libraries

PROJECT = Path(__file__).parents[2]
WITHOUT_WORK = {
    "help": ["--help"],
    "no command": [],
    "an unknown command": ["enlarge"],
    **{f"help of {name}": [name, "--help"] for name in cli.COMMANDS},
    "no input": ["upscale"],
    "an unknown option": ["evaluate", "--bogus"],
    "a wrong choice": ["export", "ditn-x4", "-o", "a.onnx", "--format", "tflite"],
    "a wrong value": ["warmup", "--size", "large"],
    "a wrong number": ["upscale", "a.png", "-o", "b.png", "--quality", "300"],
    "a contradiction": ["upscale", "a.png", "-o", "b.png", "--flavor", "neosr"],
}


@pytest.mark.parametrize("arguments", WITHOUT_WORK.values(), ids=WITHOUT_WORK.keys())
def test_help_and_wrong_usage_import_no_torch(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom ditn.commands.cli import main\n"
        "try:\n    code = main(sys.argv[1:])\nexcept SystemExit as error:\n    code = error.code\n"
        "heavy = {'torch', 'triton', 'pyvips', 'PIL', 'ditn_kernels'} & set(sys.modules)\n"
        "sys.exit(100 if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == (0 if "--help" in arguments else 2), done.stderr
    assert "ditn" in (done.stdout if "--help" in arguments else done.stderr)


def test_help_takes_less_than_three_tenths_of_a_second() -> None:
    """Of computing, the least of a few calls: the machine may be busy."""
    taken = []
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "ditn", "--help"], cwd=PROJECT, stdout=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(taken) < 0.3


def test_names_are_imported_when_they_are_asked_for() -> None:
    """And `ditn.export` is the function, though a room has the name, too."""
    code = (
        "import sys, ditn\nassert 'torch' not in sys.modules\nassert set(ditn.__all__) <= set(dir(ditn))\n"
        "from ditn.export.portable import OnGrid\nassert callable(ditn.export) and ditn.export.__name__ == 'export'\n"
        "from ditn import export, load\nassert load is ditn.load and export is ditn.export\n"
        "import ditn.export.formats\nassert callable(ditn.export)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True)
    for name in ditn.__all__:
        assert getattr(ditn, name).__name__ == name
    with pytest.raises(AttributeError, match="module 'ditn' has no attribute 'enlarge'"):
        _ = ditn.enlarge
    with pytest.raises(ImportError, match="enlarge"):
        from ditn import enlarge  # noqa: F401


def chosen() -> str | None:
    device = info()["device"]
    dtype = torch.float32 if device == "cpu" else torch.float16
    return explain(gated_ffn, *gated_ffn.inputs(gated_ffn.samples[0], dtype=dtype, device=device).values()).chosen


def test_info_begins_with_what_runs_where(capsys, monkeypatch) -> None:
    monkeypatch.delenv("DITN_BACKEND", raising=False)
    assert cli.main(["info"]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith(f"ditn-kernels {version('ditn-kernels')} on {info()['device']} (")
    assert f"({chosen()}), " in first
    monkeypatch.setenv("DITN_BACKEND", "torch")
    assert cli.main(["info", "--device", "cpu"]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.endswith(": plain PyTorch (torch), as was asked for")
    assert torch.backends.cpu.get_cpu_capability() in first


@pytest.fixture
def without_library(monkeypatch) -> str:
    reason = "is not built: no C++ compiler was found"
    monkeypatch.delenv("DITN_BACKEND", raising=False)
    monkeypatch.setattr(_libraries, "why_missing", lambda: reason)
    return reason


def test_without_compiled_kernels_it_is_said_once(capsys, without_library, tmp_path) -> None:
    for name in ("a", "b"):
        Image.fromarray(np.full((8, 8, 3), 99, np.uint8)).save(tmp_path / f"{name}.png")
    images = [str(tmp_path / "a.png"), str(tmp_path / "b.png"), "--device", "cpu"]
    arguments = ["upscale", *images, "--model", "ditn-tiny-x2", "-o"]
    assert cli.main([*arguments, str(tmp_path / "out")]) == 0
    said = capsys.readouterr().err
    assert said.count("plain PyTorch runs") == 1
    assert without_library in said
    assert ("pip install" in said) == (sys.platform == "linux")
    # Who asks for it knows.
    assert cli.main([*arguments, str(tmp_path / "more"), "--backend", "torch"]) == 0
    assert "plain PyTorch runs" not in capsys.readouterr().err
    assert cli.main(["info", "--device", "cpu"]) == 0
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first.endswith(f": plain PyTorch (torch), since cpp {without_library}")
    assert second.startswith("plain PyTorch runs")


@pytest.mark.skipif(_libraries.why_missing() is not None, reason=f"the compiled library {_libraries.why_missing()}")
def test_with_them_nothing_is_said() -> None:
    assert info("cpu")["hint"] is None


@pytest.mark.parametrize("module", ["ditn", "ditn_kernels"])
def test_who_reads_only_the_first_lines_sees_no_error(module: str) -> None:
    """The reader has gone before anything is written."""
    arguments = ["info"] if module == "ditn" else []
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", module, *arguments]
    with os.fdopen(writer, "wb") as out:
        done = subprocess.run(command, cwd=PROJECT, stdout=out, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")
