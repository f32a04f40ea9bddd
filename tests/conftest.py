# SPDX-License-Identifier: Apache-2.0
"""Fixtures that several test files share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# Triton reads this when a kernel file is imported: without a GPU its interpreter runs the kernels on the CPU.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

PROJECT = Path(__file__).parent.parent


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
def poisoned() -> Iterator[None]:
    """Memory that nobody has written reads as NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
