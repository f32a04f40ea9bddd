# SPDX-License-Identifier: Apache-2.0
"""Every command of docs/deployment.md and docs/video.md runs; every picture that the first makes is the right one, and
every film of the other is there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ditn
from ditn.export.formats import FORMATS
from ditn_kernels.backends.native import _libraries

PROJECT = Path(__file__).parent.parent
GUIDE = (PROJECT / "docs" / "deployment.md").read_text(encoding="utf-8")
# Without the one that has numbers and no commands.
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", GUIDE, re.MULTILINE | re.DOTALL))
del SECTIONS["Speed and memory"]


def missing(section: str) -> list[str]:
    """What a section needs and this machine lacks: Python packages, programs, the header of libpng, our library."""
    needs = re.search(r"<!-- needs: (.+) -->", SECTIONS[section])
    present = {
        "libpng": shutil.which("libpng-config") is not None,
        "cmake": shutil.which("cmake") is not None and _libraries.why_missing() is None,
    }
    return [name for name in (needs[1].split() if needs else ()) if not present.get(name, find_spec(name) is not None)]


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A folder with a picture, the source tree, and `ditn`, `python` and `pnnx` to call."""
    Image.open(PROJECT / "examples" / "spiral.png").convert("RGB").save(tmp_path / "photo.png")
    (tmp_path / "ditn-kernels").symlink_to(PROJECT)
    programs = tmp_path / "bin"
    programs.mkdir()
    pnnx = "-c 'import sys, pnnx; sys.exit(pnnx.pnnx())'"
    for name, start in (("python", ""), ("ditn", "-m ditn"), ("pnnx", pnnx)):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" -W ignore {start} "$@"\n')
        (programs / name).chmod(0o755)
    return tmp_path


def execute(blocks: Sequence[tuple[str, str]], workplace: Path) -> None:
    """Blocks of sh and Python, one after the other."""
    paths = os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {
        "PATH": f"{workplace / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": paths,
        "OMP_NUM_THREADS": "1",
    }
    for language, code in blocks:
        command = ["sh", "-e", "-c", code] if language == "sh" else ["python", "-c", code]
        command[0] = str(workplace / "bin" / "python") if language == "python" else "sh"
        done = subprocess.run(command, cwd=workplace, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{code}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


@pytest.mark.slow
@pytest.mark.parametrize("section", SECTIONS)
def test_section(section: str, workplace: Path) -> None:
    if lacking := missing(section):
        pytest.skip(f"not installed: {', '.join(lacking)}")
    blocks = re.findall(r"^```(sh|python)\n(.*?)^```$", SECTIONS[section], re.MULTILINE | re.DOTALL)
    assert blocks
    execute(blocks, workplace)
    named = set(re.findall(r"large-\w+\.png", SECTIONS[section]))
    assert named == {path.name for path in workplace.glob("*.png")} - {"photo.png"}
    with Image.open(workplace / "photo.png") as photo:
        expected = np.asarray(ditn.Upscaler(ditn.load("ditn-real-x4"))(photo)).astype(int)
    for name in named:
        # Where the exact value lies between two levels, float32 may fall to either side.
        assert np.abs(np.asarray(Image.open(workplace / name)).astype(int) - expected).max() <= 1, name


def test_the_guide_has_a_section_for_every_format() -> None:
    for name in FORMATS:
        assert f"--format {name}" in GUIDE
    links = re.findall(r"\]\(#([\w-]+)\)", GUIDE)
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in SECTIONS}
    assert set(links) == anchors


@pytest.mark.slow
def test_films(workplace: Path) -> None:
    """docs/video.md from top to bottom, but for what it installs."""
    av = pytest.importorskip("av", reason="PyAV is not installed")
    import films

    films.make(workplace / "film.mp4", 24, sound="opus")
    text = (PROJECT / "docs" / "video.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(sh|python)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    execute([(language, re.sub("^pip .*", "", code, flags=re.MULTILINE)) for language, code in blocks], workplace)
    outputs = re.findall(r"-o (\S+\.(?:mkv|mp4|webm|gif))", text)
    assert len(outputs) == 8
    for name in outputs:
        with av.open(str(workplace / name)) as film:
            count = sum(1 for _ in film.decode(film.streams.video[0]))
            assert count == (10 if name == "part.mkv" else 24), name
    assert len(list((workplace / "frames").iterdir())) == 24
    assert {path.name for path in (workplace / "large").iterdir()} == {"film.mp4", "film.gif"}
