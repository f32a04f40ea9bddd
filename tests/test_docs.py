# SPDX-License-Identifier: Apache-2.0
"""Every command of docs/deployment.md and docs/clusters.md runs, and every picture that it makes is the right one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
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
CLUSTERS = (PROJECT / "docs" / "clusters.md").read_text(encoding="utf-8")


def sections(guide: str) -> dict[str, str]:
    return dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", guide, re.MULTILINE | re.DOTALL))


# Without the one that has numbers and no commands.
SECTIONS = sections(GUIDE)
del SECTIONS["Speed and memory"]
OF_CLUSTERS = {title: text for title, text in sections(CLUSTERS).items() if "```sh" in text}


def missing(section: str) -> list[str]:
    """What a section needs and this machine lacks: Python packages, programs, the header of libpng, our library."""
    needs = re.search(r"<!-- needs: (.+) -->", section)
    present = {
        "libpng": shutil.which("libpng-config") is not None,
        "cmake": shutil.which("cmake") is not None and _libraries.why_missing() is None,
    }
    return [name for name in (needs[1].split() if needs else ()) if not present.get(name, find_spec(name) is not None)]


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A folder with a picture, the source tree, and `ditn`, `python`, `pnnx` and `torchrun` to call."""
    Image.open(PROJECT / "examples" / "spiral.png").convert("RGB").save(tmp_path / "photo.png")
    (tmp_path / "ditn-kernels").symlink_to(PROJECT)
    programs = tmp_path / "bin"
    programs.mkdir()
    pnnx = "-c 'import sys, pnnx; sys.exit(pnnx.pnnx())'"
    torchrun = "-m torch.distributed.run"
    for name, start in (("python", ""), ("ditn", "-m ditn"), ("pnnx", pnnx), ("torchrun", torchrun)):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" -W ignore {start} "$@"\n')
        (programs / name).chmod(0o755)
    return tmp_path


def run_commands(section: str, workplace: Path) -> None:
    """All of a section, one after the other. Each has to end well."""
    if lacking := missing(section):
        pytest.skip(f"not installed: {', '.join(lacking)}")
    blocks = re.findall(r"^```(sh|python)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert blocks
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
    run_commands(SECTIONS[section], workplace)
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
@pytest.mark.exhaustive
@pytest.mark.parametrize("section", OF_CLUSTERS)
def test_section_of_clusters(section: str, workplace: Path) -> None:
    """Whatever shares the work out, the pictures are those of one process."""
    photos = workplace / "photos"
    photos.mkdir()
    for name, part in (("a.png", (0, 0, 48, 40)), ("b.png", (8, 8, 40, 72))):
        with Image.open(workplace / "photo.png") as photo:
            photo.crop(part).save(photos / name)
    with Image.open(workplace / "photo.png") as photo:
        photo.crop((0, 0, 120, 90)).save(workplace / "scan.tif")
    run_commands(OF_CLUSTERS[section], workplace)
    made = [*workplace.glob("large*/*.png"), *workplace.glob("large-scan*.tif")]
    assert len(made) >= 2
    upscaler = ditn.Upscaler("auto", scale=4)
    for path in made:
        source = photos / path.name if path.suffix == ".png" else workplace / "scan.tif"
        with Image.open(source) as picture, Image.open(path) as result:
            expected = np.asarray(upscaler(picture)).astype(int)
            assert np.abs(np.asarray(result).astype(int) - expected).max() <= 1, path
