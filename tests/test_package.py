# SPDX-License-Identifier: Apache-2.0
"""What is installed is what was meant to be; README, CHANGELOG and examples say what is so."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.harness.outputs import RESULTS
from benchmarks.report import pages
from ditn.commands import cli
from ditn.imaging.resize import downscale
from ditn_kernels import info
from ditn_kernels.backends.native import _libraries
from ditn_kernels.backends.native._libraries import runs_on

PROJECT = Path(__file__).parent.parent
README, MODELS, SUPPORT, TRAINING = (
    (PROJECT / page).read_text(encoding="utf-8")
    for page in ("README.md", "docs/models.md", "docs/support.md", "docs/training.md")
)
EXAMPLE = PROJECT / "examples" / "spiral.png"
LIBRARY = "ditn_kernels/_C.so"
# Turing to Blackwell, Thor, and what may follow.
CHIPS = [(7, 5), (8, 0), (8, 6), (8, 7), (8, 9), (9, 0), (10, 0), (10, 3), (11, 0), (12, 0), (12, 1), (13, 0)]


def test_one_version() -> None:
    declared = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"]
    newest = re.search(r"^## (\S+)", (PROJECT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest
    assert version("ditn-kernels") == declared == newest[1]


def test_readme_says_what_was_measured() -> None:
    assert pages.main(["--check"]) == 0


def test_a_number_that_was_not_measured_is_found(tmp_path) -> None:
    results = tmp_path / "benchmarks" / "results"
    shutil.copytree(RESULTS, results)
    for folder in ("recipes", "ditn/weights"):
        (tmp_path / folder).parent.mkdir(exist_ok=True)
        (tmp_path / folder).symlink_to(PROJECT / folder)
    for page in pages.PAGES:
        (tmp_path / page).parent.mkdir(exist_ok=True)
        shutil.copy(PROJECT / page, tmp_path / page)
    measured = next(results.glob("evaluate-*.json"))
    measured.write_text(re.sub(r'"psnr_y": \d+', '"psnr_y": 99', measured.read_text()))
    assert pages.main(["--check"], tmp_path) == 1
    assert (tmp_path / "docs/models.md").read_text(encoding="utf-8") == MODELS
    assert pages.main([], tmp_path) == 0
    assert "99." in (tmp_path / "docs/models.md").read_text(encoding="utf-8")
    assert pages.main(["--check"], tmp_path) == 0


@pytest.mark.parametrize("line", re.findall(r"^ditn (.+)$", README + TRAINING, re.MULTILINE))
def test_commands_of_readme_and_training_are_understood(line, monkeypatch) -> None:
    arguments = shlex.split(line, comments=True)
    module, _ = cli.COMMANDS[arguments[0]]
    monkeypatch.setattr(importlib.import_module(module), "run", lambda args: 0)
    assert cli.main(arguments) == 0


def test_every_environment_variable_is_documented() -> None:
    patterns = ("ditn/**/*.py", "ditn_kernels/**/*.py", "csrc/**/*.c*", "setup.py", "tests/conftest.py")
    sources = [path.read_text(encoding="utf-8") for pattern in patterns for path in PROJECT.glob(pattern)]
    used = {name for source in sources for name in re.findall(r'"(DITN_[A-Z_]+)"', source)}
    assert "DITN_BACKEND" in used
    assert used == set(re.findall(r"^\| `(DITN_[A-Z_]+)` \|", SUPPORT, re.MULTILINE))


@pytest.mark.parametrize(
    "document",
    [
        "README.md",
        "CONTRIBUTING.md",
        "examples/README.md",
        *(f"docs/{page.name}" for page in (PROJECT / "docs").glob("*.md")),
    ],
)
def test_links_lead_to_files(document) -> None:
    path = PROJECT / document
    links = re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text(encoding="utf-8"))
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_side_by_side_shows_all(tmp_path) -> None:
    small, one, other, sheet = (tmp_path / f"{name}.png" for name in ("small", "one", "other", "sheet"))
    Image.new("RGB", (8, 6), "red").save(small)
    Image.new("RGB", (32, 24), "blue").save(one)
    Image.new("RGB", (32, 24), "lime").save(other)
    script = PROJECT / "examples" / "side_by_side.py"
    rows = [small, f"one={one}", f"the other={other}", one, f"small={small}"]
    subprocess.run([sys.executable, script, sheet, *rows], check=True)
    with Image.open(sheet) as image:
        width, height = image.size
        assert width >= 3 * 32
        assert height >= 24 + 6
        first = [image.getpixel((x, height - 6 - 18 - 4 - 1)) for x in (0, width // 2, width - 1)]
        second = [image.getpixel((x, height - 1)) for x in (0, 8 + 4)]
    assert first == [(255, 0, 0), (0, 0, 255), (0, 255, 0)]
    assert second == [(0, 0, 255), (255, 0, 0)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("dist"))


def build(folder: Path, **environment: str) -> Path:
    """The wheel that `make wheel` builds: of the sdist, so that it also shows what the sdist lacks."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, PROJECT]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | environment)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        assert not [name for name in archive.getnames() if name.endswith(".so")]
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.slow
def test_wheel_holds_the_packages_weights_and_licences(wheel) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata_name,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = message_from_bytes(archive.read(metadata_name))
    expected = {
        path.relative_to(PROJECT).as_posix()
        for package in ("ditn", "ditn_kernels")
        for path in (PROJECT / package).rglob("*")
        if path.suffix in (".py", ".typed", ".safetensors", ".tsv") or path.suffix == ".json"
    }
    assert {"ditn/weights/ditn-real-x4.safetensors", "ditn/py.typed", "ditn_kernels/py.typed"} <= expected
    assert (expected | {"ditn/weights/SHA256SUMS"}) - names == set()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"ditn", "ditn_kernels"}
    licences = {"LICENSE", "NOTICE", "ditn/weights/LICENSE.md", "ditn/weights/ATTRIBUTION.tsv"}
    assert {metadata_name.replace("METADATA", f"licenses/{name}") for name in licences} <= names
    assert metadata["License-Expression"] == "Apache-2.0 AND CC-BY-SA-4.0"
    assert (LIBRARY in names) == (_libraries.why_missing() is None)
    # What CUDA C++ adds is looked at by test_wheel.py.
    assert "ditn_kernels/_C_cuda.so" in names or wheel.stat().st_size < 12e6


@pytest.mark.slow
def test_wheel_without_the_library_says_why(tmp_path) -> None:
    with zipfile.ZipFile(build(tmp_path, DITN_BUILD="none")) as archive:
        assert LIBRARY not in archive.namelist()
        assert "DITN_BUILD" in json.loads(archive.read("ditn_kernels/build_info.json"))["reason"]


def _cpu(operators: dict) -> dict:
    return {name: {way: found["cpp"] for way, found in ways.items()} for name, ways in operators.items()}


@pytest.mark.slow
def test_wheel_upscales_in_an_empty_environment_and_leaves_torch_alone(wheel, tmp_path) -> None:
    binaries = tmp_path / "venv" / "bin"
    subprocess.run([sys.executable, "-m", "venv", binaries.parent], check=True)
    installed = torch.__version__.split("+")[0]
    for package in (f"torch=={installed}", str(wheel)):
        subprocess.run([binaries / "pip", "install", "--quiet", package], check=True)
    probe = "import torch; print(torch.__version__)"
    found = subprocess.run([binaries / "python", "-c", probe], check=True, capture_output=True, text=True)
    assert found.stdout.split("+")[0].strip() == installed
    facts = subprocess.run([binaries / "ditn", "info", "--json"], check=True, capture_output=True, cwd=tmp_path).stdout
    # Triton is not among what the wheel brings.
    assert _cpu(json.loads(facts)["operators"]) == _cpu(info()["operators"])
    output = tmp_path / "large.png"
    subprocess.run([binaries / "ditn", "upscale", EXAMPLE, "-o", output], check=True, cwd=tmp_path)
    with Image.open(EXAMPLE) as small, Image.open(output) as large:
        given, enlarged = np.asarray(small.convert("RGB")), np.asarray(large)
    assert enlarged.shape == (4 * given.shape[0], 4 * given.shape[1], 3)
    # A good enlargement shrinks back to what it was made of.
    error = downscale(enlarged, 4).astype(float) - given
    assert np.sqrt((error**2).mean()) < 2


def setup_script() -> ModuleType:
    """setup.py as a module."""
    spec = importlib.util.spec_from_file_location("setup_script", PROJECT / "setup.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("chip", CHIPS, ids=str)
def test_by_default_there_is_code_for_every_chip(chip: tuple[int, int]) -> None:
    assert runs_on(setup_script().CUDA_ARCHS.split(";"), chip)


@pytest.mark.skipif(not shutil.which("make"), reason="needs make, which is not installed")
@pytest.mark.parametrize(("found", "build"), [(True, "cuda"), (False, "auto")])
def test_make_wheel_builds_cuda_where_nvcc_is(found: bool, build: str, tmp_path) -> None:
    if found:
        (tmp_path / "nvcc").touch(mode=0o755)
    # Only make and what it calls at once.
    for name in ("make", "sh", "python3"):
        (tmp_path / name).symlink_to(shutil.which(name))
    command = [tmp_path / "make", "--dry-run", "--always-make", "wheel"]
    environment = {"PATH": str(tmp_path)}
    text = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=True).stdout
    assert text.splitlines()[-1] == f"DITN_BUILD={build} .venv/bin/python -m build --no-isolation"
