# SPDX-License-Identifier: Apache-2.0
"""A hash of files, by which proofs know the code that they are about."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path


@functools.cache
def digest(*paths: Path) -> str:
    """A hash of files' contents."""
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:16]
