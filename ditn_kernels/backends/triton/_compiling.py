# SPDX-License-Identifier: Apache-2.0
"""Says what a first call waits for: which Triton kernels were compiled, and how long that took."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

_log = logging.getLogger("ditn_kernels")


@dataclass(frozen=True)
class Compilation:
    """A kernel that this process compiled or, if `cached`, found on disk, where an earlier process had left it."""

    kernel: str
    seconds: float
    cached: bool


# This process's, in order.
compilations: list[Compilation] = []


def listen() -> None:
    """Have Triton report compilations from now on. A listener that was set before is called as well."""
    import triton

    before = triton.knobs.compilation.listener

    def hear(**facts: Any) -> None:
        if before is not None:
            before(**facts)
        kernel = getattr(facts["src"], "fn", None)
        if kernel is not None and kernel.__module__.startswith("ditn_kernels."):
            name = kernel.__name__.strip("_").removesuffix("_kernel")
            _note(Compilation(name, facts["times"].total / 1e6, facts["cache_hit"]))

    triton.knobs.compilation.listener = hear


def _note(compilation: Compilation) -> None:
    first = all(earlier.cached for earlier in compilations)
    compilations.append(compilation)
    if not compilation.cached:
        # A warning, because it shows without any logging set up: nobody can tell why a first call takes a minute.
        _log.warning(
            "compiled the Triton kernel %s in %.1f s%s",
            compilation.kernel,
            compilation.seconds,
            "; it stays on disk for the next time, and `ditn warmup` does this ahead" if first else "",
        )
