# SPDX-License-Identifier: Apache-2.0
"""`benchmarks` is houses whose imports point one way, and every command of it that the repository names is there."""

from __future__ import annotations

import ast
import importlib
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

import benchmarks

BENCHMARKS = Path(benchmarks.__file__).parent
PROJECT = BENCHMARKS.parent
# A house imports only from itself and from those before it; what lies in no house is a suite.
ORDER = ("oracle", "harness", "suites", "tools", "report")
HOUSES = [name for name in ORDER if name != "suites"]
TEXTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile", "pyproject.toml", "docs/*.md")
TEXTS += tuple(
    f"{folder}/**/*{suffix}" for folder in ("ditn", "ditn_kernels", "csrc") for suffix in (".py", ".md", ".h")
)
TEXTS += ("benchmarks/**/*.py", "tests/**/*.py", "recipes/**/*.py")


def house(module: str) -> str:
    name = module.split(".")[1]
    return name if name in HOUSES else "suites"


def imports(path: Path) -> set[str]:
    """Modules that a file imports at any depth, and names that it takes from them."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", sorted(BENCHMARKS.rglob("*.py")), ids=lambda path: str(path.relative_to(PROJECT)))
def test_houses_import_from_those_before_them(path) -> None:
    own = house(".".join(path.relative_to(PROJECT).with_suffix("").parts))
    used = {house(name) for name in imports(path) if name.startswith("benchmarks.")}
    assert used <= set(ORDER[: ORDER.index(own) + 1])


def test_the_oracle_needs_no_model() -> None:
    """What tests compare with shares no code with what they test; the rule for results alone is the package's."""
    for path in (BENCHMARKS / "oracle").glob("*.py"):
        ours = {name for name in imports(path) if name.split(".")[0] in ("ditn", "ditn_kernels", "benchmarks")}
        assert ours <= {"ditn_kernels._tolerance.why_not_as_good"}, path


@pytest.mark.parametrize("package", ["ditn", "ditn_kernels"])
def test_what_is_installed_imports_no_benchmarks(package) -> None:
    paths = list((PROJECT / package).rglob("*.py"))
    assert paths
    for path in paths:
        assert not any(name.split(".")[0] == "benchmarks" for name in imports(path)), path


@pytest.mark.parametrize("name", HOUSES)
def test_every_house_says_what_is_in_it(name) -> None:
    text = importlib.import_module(f"benchmarks.{name}").__doc__
    assert text
    assert len(text.splitlines()) <= 3


def named(pattern: str) -> dict[str, Path]:
    """What the repository's texts match, and one of those that do."""
    paths = [path for glob in TEXTS for path in PROJECT.glob(glob)]
    return {found: path for path in paths for found in re.findall(pattern, path.read_text(encoding="utf-8"))}


def test_every_file_that_is_named_is_there() -> None:
    files = named(r"benchmarks/[\w/]+\.py\b")
    assert "benchmarks/oracle/published.py" in files
    assert {file: path for file, path in files.items() if not (PROJECT / file).exists()} == {}


def test_every_command_that_is_named_is_there() -> None:
    commands = named(r"-m\W{1,4}(benchmarks\.[\w.]*\w)")
    assert {"benchmarks.cpu", "benchmarks.report", "benchmarks.tools.tune", "benchmarks.gpu_session"} <= commands.keys()
    for command, path in commands.items():
        spec = find_spec(command)
        assert spec is not None, f"{path} names {command}"
        source = Path(str(spec.origin))
        source = source.with_name("__main__.py") if source.name == "__init__.py" else source
        assert '__name__ == "__main__"' in source.read_text(encoding="utf-8"), f"{path} names {command}"
