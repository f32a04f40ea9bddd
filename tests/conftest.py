# SPDX-License-Identifier: Apache-2.0
"""Fixtures that several test files share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Where pytest-xdist shares the tests out, its processes share the cores, and so do the programs that they start. OpenMP
# reads this when torch is imported.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))

import pytest
import torch

CUDA = torch.cuda.is_available()
# Triton reads this when a kernel file is imported: without a GPU its interpreter runs the kernels on the CPU.
if not CUDA:
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Backends are compared as they are: one that failed its proof would be passed over. test_proof.py turns it on.
os.environ.setdefault("DITN_PROOF", "off")

PROJECT = Path(__file__).parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cuda" if CUDA else "cpu", help="where operators are tested (%(default)s)")


@pytest.fixture
def without_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain PyTorch, which results are held to, in full float32; its convolutions would not be on a GPU."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def device(request: pytest.FixtureRequest, without_tf32: None) -> Iterator[torch.device]:
    """Where new tensors are made during the test."""
    with torch.device(request.config.getoption("--device")) as chosen:
        yield chosen


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of golden records and images (environment variable DITN_SHARED, default ../shared)."""
    folder = Path(os.environ.get("DITN_SHARED", PROJECT.parent / "shared"))
    if not (folder / "golden").is_dir():
        pytest.skip(f"no golden records: {folder / 'golden'} is not a folder (set DITN_SHARED)")
    return folder


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def compiler() -> Iterator[None]:
    """torch.compile gives a function up that was compiled for many models, as tests do."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Memory that nobody has written reads as NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> str:
    """A file of a small network's."""
    from networks import small  # what TRITON_INTERPRET decides is imported behind it

    import ditn

    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    ditn.save(small(), path)
    return str(path)
