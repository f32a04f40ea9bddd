# SPDX-License-Identifier: Apache-2.0
"""Importing costs nothing, and imports point one way."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ditn
import ditn_kernels
from ditn_kernels import REGISTRY
from ditn_kernels.backends import BACKENDS
from ditn_kernels.backends.native import _limits as native_limits
from ditn_kernels.backends.triton import _limits as triton_limits

PROJECT = Path(ditn_kernels.__file__).parent.parent
# The rooms of `ditn` and the files in each, lowest first: a file imports only from files before it.
ROOMS = {
    "imaging": [
        *("arrays", "atomic", "exif", "xmp", "metadata", "png", "jpeg", "webp", "tiff", "bmp", "boxes", "containers"),
        *("colour", "by_pillow", "pil", "resample", "files", "output", "tiled_tiff", "regions"),
        *("resize", "metrics", "contact_sheet", "sample"),
    ],
    "model": [
        *("config", "variants", "folding", "layers", "constants", "network", "threads"),
        *("tensor_file", "checkpoint", "accelerate"),
    ],
    "inference": [
        *(
            "options",
            "placement",
            "tiles",
            "memory",
            "plan",
            "capture",
            "graphs",
            "ensemble",
            "guard",
            "alpha",
            "tile_loop",
        ),
        *("compression", "recompression", "judge", "chooser", "upscaler"),
    ],
    "video": ["layout", "colour", "source", "film", "pictures", "encoding", "sound", "joining", "stream", "work"],
    "training": [
        *("degradation", "canvas", "drawn", "recipe", "data", "batches", "warm_start", "process_group"),
        *("update", "trainer", "log", "train"),
    ],
    "work": ["items", "here", "child", "ranks", "on_ray"],
    "export": ["options", "portable", "plugins", "formats", "export"],
    "commands": [
        *("arguments", "device", "names", "signals", "scores", "found", "jobs", "report", "film"),
        *("pictures", "parted", "row_plan", "rows", "segments", "upscale"),
        *("export", "info", "verify", "warmup", "train", "evaluate", "cli"),
    ],
}
RANK = {name: number for number, name in enumerate(f"ditn.{room}.{file}" for room in ROOMS for file in ROOMS[room])}


def imports(path: Path) -> set[str]:
    """Every module that a file imports, at any depth, absolute."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_import_is_lean() -> None:
    code = (
        "import ditn, ditn_kernels, sys, torch;"
        "assert not torch.cuda.is_initialized();"
        "heavy = {'triton', 'pyvips', 'PIL', 'torch._inductor'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PROJECT)


def test_model_code_uses_public_kernel_names_only() -> None:
    public = {f"ditn_kernels.{name}" for name in ditn_kernels.__all__} | {"ditn_kernels"}
    for path in (PROJECT / "ditn").rglob("*.py"):
        used = {name for name in imports(path) if name.split(".")[0] == "ditn_kernels"}
        assert used <= public, f"{path} imports {used - public}"
        assert not any(name.split(".")[0] == "triton" for name in imports(path)), path


def test_rooms_point_downwards() -> None:
    folder = PROJECT / "ditn"
    files = {f"ditn.{path.parent.name}.{path.stem}": path for path in folder.glob("*/*.py") if path.stem != "__init__"}
    assert files.keys() == RANK.keys()
    for name, path in files.items():
        for other in imports(path) & RANK.keys():
            assert RANK[other] < RANK[name], f"{name} imports {other}, which stands above it"


def test_every_room_says_what_is_in_it() -> None:
    for room in ROOMS:
        path = PROJECT / "ditn" / room / "__init__.py"
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), f"{path} says nothing"
        assert len(tree.body) == 1, f"{path} does more than say what is in the room"


def test_the_tree_in_contributing_names_every_room_and_its_files() -> None:
    """`ditn`'s part of it: the rooms in their order, and of each the files that there are, every one."""
    text = (PROJECT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    tree = re.search(r"^    ditn/ .*\n((?:      .*\n)+)", text, re.MULTILINE)
    assert tree is not None
    found: dict[str, list[str]] = {}
    for line in tree[1].splitlines():
        if room := re.match(r"      (\w+)/", line):
            found[room[1]] = []
        found[list(found)[-1]] += re.findall(r"`(\w+)`", line)
    assert list(found) == list(ROOMS)
    assert {room: sorted(files) for room, files in found.items()} == {room: sorted(ROOMS[room]) for room in ROOMS}


def test_the_tree_in_contributing_has_all_files_of_ditn_kernels() -> None:
    text = (PROJECT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    tree = re.search(r"^    ditn_kernels/ .*\n((?:      .*\n)+)", text, re.MULTILINE)
    assert tree is not None
    named = set(re.findall(r"\b(?<!/)\w+\.py\b", tree[1]))
    package = PROJECT / "ditn_kernels"
    own = {path.name for path in package.glob("*.py")} - {"__init__.py", "__main__.py"}
    assert own <= named
    assert named <= own | {path.name for path in package.glob("backends/**/*.py")}


def test_every_test_is_in_its_room_or_of_the_whole_project() -> None:
    folders = {path.name for path in (PROJECT / "tests").iterdir() if any(path.glob("test_*.py"))}
    assert folders == {*ROOMS, "kernels", "benchmarks"}


def test_definitions_import_no_backend() -> None:
    for path in (PROJECT / "ditn_kernels" / "ops").glob("*.py"):
        used = {name.split(".")[0] for name in imports(path)}
        assert "triton" not in used, path
        backends = ("ditn_kernels._dispatch", "ditn_kernels._library", "ditn_kernels.backends")
        assert not any(name.startswith(backends) for name in imports(path)), path


def test_every_operator_has_one_stem() -> None:
    stems = {path.stem for path in (PROJECT / "ditn_kernels" / "ops").glob("[a-z]*.py")}
    assert stems == set(REGISTRY)
    # A stage's C++ is the loop over its layers, in kernels.cpp; every other kernel has its operator's name.
    kernels = {op.name for op in REGISTRY.values() if "cpp" in op.backends and op.decomposition is None}
    assert kernels <= {path.stem for path in (PROJECT / "csrc" / "cpu").glob("*.h")}
    supports = {op.name: op.backends["triton"] for op in REGISTRY.values() if "triton" in op.backends}
    kernels = set(supports) | {f"{name}_backward" for name, support in supports.items() if support.backward}
    assert kernels == {path.stem for path in (PROJECT / "ditn_kernels" / "backends" / "triton").glob("[a-z]*.py")}


def test_a_backend_is_a_folder_and_a_line() -> None:
    folders = [path.parent for path in (PROJECT / "ditn_kernels" / "backends").glob("*/__init__.py")]
    assert {path.name for path in folders} == {type(one).__module__.split(".")[2] for one in BACKENDS.values()}
    for folder in folders:
        assert {"_dispatch.py", "_limits.py"} <= {path.name for path in folder.iterdir()}, folder


def test_limits_are_of_operators() -> None:
    """A table's misspelt line would be of no operator, and its kernels would never run."""
    assert set(triton_limits.LIMITS) | set(native_limits.CPU) | set(native_limits.CUDA) <= set(REGISTRY)


@pytest.mark.parametrize("module", [ditn, ditn_kernels], ids=lambda module: module.__name__)
def test_all_is_true(module) -> None:
    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        assert hasattr(module, name)


@pytest.mark.parametrize("op", REGISTRY.values(), ids=lambda op: op.name)
def test_every_operator_is_documented(op) -> None:
    assert op.__doc__
    assert "[B, " in op.__doc__


def test_source_files_carry_their_licence() -> None:
    for folder in ("ditn", "ditn_kernels", "tests", "benchmarks", "csrc"):
        for path in (PROJECT / folder).rglob("*"):
            if path.suffix in (".py", ".cpp", ".h", ".cu", ".cuh"):
                assert "SPDX-License-Identifier: Apache-2.0" in path.read_text(encoding="utf-8")[:60], path


def test_kernels_use_what_the_interpreter_can() -> None:
    """Which proves them without a GPU (CONTRIBUTING, "Kernels")."""
    for path in (PROJECT / "ditn_kernels").rglob("*.py"):
        found = re.findall(r"libdevice|make_block_ptr|triton\.autotune", path.read_text(encoding="utf-8"))
        assert not found, f"{path}: {found}"
