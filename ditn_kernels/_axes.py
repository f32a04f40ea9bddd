# SPDX-License-Identifier: Apache-2.0
"""Axes of tensors as text: "3 3 2E" is a tensor of shape [3, 3, 2 * E]."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping

import torch


def shape_of(axes: str, sizes: Mapping[str, int]) -> list[int]:
    """The shape that the axes stand for, where each has its size."""
    return [_size(term, sizes) for term in _terms(axes)]


def bind(axes: str, shape: torch.Size, sizes: dict[str, int]) -> str | None:
    """Match a shape with its axes. An axis not met before takes its size from here. Returns what the shape should have
    been if it does not fit."""
    terms = _terms(axes)
    fits = len(shape) == len(terms)
    for term, size in zip(terms, shape, strict=False):
        coefficient, axis = term
        if axis and axis not in sizes:
            sizes[axis] = size // coefficient
        fits = fits and _size(term, sizes) == size
    if fits:
        return None
    return ", ".join(
        f"{text}={_size(term, sizes)}" if term[1] in sizes else text
        for text, term in zip(axes.split(), terms, strict=True)
    )


def fan_in(axes: str, shape: Iterable[int]) -> int:
    """Inputs per output of a weight [C_in, C_out], [k, k, C_in, C_out] or, depthwise, [k, k, C]; with L in front, of
    each layer."""
    named = [(term, size) for term, size in zip(axes.split(), shape, strict=True) if term != "L"]
    channels = [size for term, size in named if not term.isdigit()]
    return math.prod(size for term, size in named if term.isdigit()) * (channels[0] if len(channels) == 2 else 1)


def is_map(axes: str) -> bool:
    """Whether this is an activation: a batch of maps."""
    return axes.startswith("B ")


@functools.cache
def _terms(axes: str) -> tuple[tuple[int, str], ...]:
    """Each term as a number and an axis; one of them may be missing: 1, or no name."""
    names = [(term, term.lstrip("0123456789")) for term in axes.split()]
    return tuple((int(term.removesuffix(name) or 1), name) for term, name in names)


def _size(term: tuple[int, str], sizes: Mapping[str, int]) -> int:
    coefficient, axis = term
    return coefficient * (sizes[axis] if axis else 1)
