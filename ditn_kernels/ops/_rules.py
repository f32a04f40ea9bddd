# SPDX-License-Identifier: Apache-2.0
"""What options and sizes have to be beyond what their types and axes say: rules that several operators share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ditn_kernels._op import NORMS, Rule


def known_norm(sizes: Mapping[str, int], args: Mapping[str, Any]) -> str | None:
    norm = args["norm"]
    return None if norm in NORMS else f"norm is {norm!r}, must be one of {', '.join(map(repr, NORMS))}"


def patches(*, or_map: bool = False) -> Rule:
    """The map is a grid of patches or, if that is allowed and patch_size is 0, one whole."""

    def rule(sizes: Mapping[str, int], args: Mapping[str, Any]) -> str | None:
        patch_size, height, width = args["patch_size"], sizes["H"], sizes["W"]
        if patch_size == 0 and or_map:
            return None
        if patch_size < 1:
            return f"patch_size is {patch_size}, must be 1 or more{', or 0 for the whole map' if or_map else ''}"
        if height % patch_size or width % patch_size:
            return f"a map of {height}x{width} is not a grid of {patch_size}-pixel patches"
        return None

    return rule


def hidden_channels(sizes: Mapping[str, int], args: Mapping[str, Any]) -> str | None:
    return None if sizes["E"] else "E is 0, must be 1 or more: there are no hidden channels"
