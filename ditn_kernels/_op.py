# SPDX-License-Identifier: Apache-2.0
"""What an operator is: one decorated function plus the facts that tests, benchmarks and dispatch need about it.

An operator is defined in its file in `ops/` and nowhere else. The decorated function is the formula, the documentation
and the plain PyTorch backend at once; `define` attaches the rest to it.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ditn_kernels._support import Support
from ditn_kernels.backends import BACKENDS

NORMS = ("tanh", "layernorm", "none")


@dataclass(frozen=True)
class Sample:
    """A set of arguments to try an operator with: the sizes of its named axes and its options."""

    name: str
    axes: Mapping[str, int]
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Cost:
    """The least that one call has to do: bytes over the memory bus, multiply-adds on the matrix or vector units."""

    bytes: int
    macs: int


@dataclass(frozen=True, eq=False)
class Op:
    """One operator. Calling it runs the best backend that can: `op(*args, backend=None)`.

    `axes` names the axes of every tensor argument ("3 3 2E" is a tensor of shape [3, 3, 2 * E]): shapes are checked,
    samples are drawn and costs are counted from it. `output_shape` gives the result's shape from these sizes and the
    arguments. A stage also has a `decomposition`, the same computation as a chain of other operators. It runs where a
    gradient is wanted and where no backend has a kernel for the whole.
    `atol_of_max` is an absolute tolerance for each dtype, relative to the largest output: the error against float64 may
    be that much more than twice the error of plain PyTorch.
    """

    name: str
    reference: Callable[..., Tensor]
    axes: Mapping[str, str]
    output_shape: Callable[[Mapping[str, int], Mapping[str, Any]], tuple[int, ...]]
    backends: Mapping[str, Support]
    samples: tuple[Sample, ...]
    macs: Callable[[Mapping[str, int]], int]
    backward: Callable[..., tuple[Tensor, ...]] | None
    decomposition: Callable[..., Tensor] | None
    atol_of_max: Mapping[torch.dtype, float]

    def __post_init__(self) -> None:
        function = self.reference
        vars(self).update(__doc__=function.__doc__, __module__=function.__module__, __wrapped__=function)

    def __call__(self, *args: Any, backend: str | None = None, **options: Any) -> Tensor:
        overload = getattr(torch.ops.ditn, self.name).default
        result: Tensor = overload(*args, **options, backend=backend)
        return result

    def named(self, args: Iterable[Any], options: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Positional and keyword arguments as one dict in signature order, defaults filled in."""
        bound = inspect.signature(self.reference).bind(*args, **(options or {}))
        bound.apply_defaults()
        return bound.arguments

    def check(self, args: Mapping[str, Any]) -> dict[str, int]:
        """The size of every named axis. Raises ValueError or TypeError that names the argument, its shape, and
        the shape, dtype or device that was expected."""
        sizes: dict[str, int] = {}
        first_name = next(iter(self.axes))
        first = args[first_name]
        for name, axes in self.axes.items():
            tensor = args[name]
            if tensor.dtype != first.dtype or tensor.device != first.device:
                raise TypeError(
                    f"{self.name}: {name} is {tensor.dtype} on {tensor.device}, "
                    f"but {first_name} is {first.dtype} on {first.device}; all tensors must agree"
                )
            _bind(self.name, name, tensor.shape, axes, sizes)
        norm, patch_size = args.get("norm", "none"), args.get("patch_size", 0)
        if norm not in NORMS:
            raise ValueError(f"{self.name}: norm is {norm!r}, must be one of {', '.join(map(repr, NORMS))}")
        if patch_size and (sizes["H"] % patch_size or sizes["W"] % patch_size):
            raise ValueError(
                f"{self.name}: a map of {sizes['H']}x{sizes['W']} is not a grid of {patch_size}-pixel patches"
            )
        return sizes

    def inputs(
        self,
        sample: Sample,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        seed: int = 0,
    ) -> dict[str, Any]:
        """Arguments for a sample on a device (PyTorch's default one unless named): activations of unit variance,
        channels-last; weights that keep it roughly so; the sample's options, and defaults for others.

        Drawn in float64 on the CPU and then cast, so that every dtype and device sees the same numbers.
        """
        device = device or torch.get_default_device()
        generator = torch.Generator().manual_seed(seed)
        args: dict[str, Any] = {}
        for name, axes in self.axes.items():
            shape = [_size(term, sample.axes) for term in axes.split()]
            values = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
            if name.endswith("weight"):
                values /= max(1, _fan_in(axes, shape)) ** 0.5
            elif name.endswith("bias"):
                values *= 0.2
            elif name.endswith("temperature"):
                values = 2 + values.abs()
            tensor = values.to(device=device, dtype=dtype)
            if axes.startswith("B "):
                tensor = tensor.contiguous(memory_format=torch.channels_last)
            args[name] = tensor
        return self.named(args.values(), sample.options)

    def cost(self, args: Mapping[str, Any]) -> Cost:
        """The least work for these arguments: each tensor read once, the result written once."""
        sizes = self.check(args)
        tensors = [args[name] for name in self.axes]
        elements = sum(tensor.numel() for tensor in tensors) + math.prod(self.output_shape(sizes, args))
        return Cost(bytes=elements * tensors[0].element_size(), macs=self.macs(sizes))


# Two results that are both rounded to their dtype can differ by one unit in the last place (2^-23, 2^-10, 2^-7) of
# the largest output even where plain PyTorch happens to hit float64's value exactly.
ROUNDING = {torch.float64: 2.0**-52, torch.float32: 2.0**-23, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}


def _same_map(sizes: Mapping[str, int], args: Mapping[str, Any]) -> tuple[int, ...]:
    return sizes["B"], sizes["C"], sizes["H"], sizes["W"]


def define(
    *,
    axes: Mapping[str, str],
    samples: Iterable[Sample],
    macs: Callable[[Mapping[str, int]], int],
    output_shape: Callable[[Mapping[str, int], Mapping[str, Any]], tuple[int, ...]] = _same_map,
    backward: Callable[..., tuple[Tensor, ...]] | None = None,
    decomposition: Callable[..., Tensor] | None = None,
) -> Callable[[Callable[..., Tensor]], Op]:
    """Make the decorated plain PyTorch function an operator, of every backend that has kernels of its name."""

    def decorate(function: Callable[..., Tensor]) -> Op:
        supports = {name: backend.support(function.__name__) for name, backend in BACKENDS.items()}
        return Op(
            name=function.__name__,
            reference=function,
            axes=axes,
            output_shape=output_shape,
            backends={name: support for name, support in supports.items() if support is not None},
            samples=tuple(samples),
            macs=macs,
            backward=backward,
            decomposition=decomposition,
            atol_of_max=ROUNDING,
        )

    return decorate


def _size(term: str, sizes: Mapping[str, int]) -> int:
    """The value of one term of an axes string: a number, an axis, or a multiple of an axis ("2E")."""
    coefficient, axis = _split(term)
    return coefficient * (sizes[axis] if axis else 1)


@functools.cache
def _split(term: str) -> tuple[int, str]:
    axis = term.lstrip("0123456789")
    return int(term.removesuffix(axis) or 1), axis


def _bind(op: str, name: str, shape: torch.Size, axes: str, sizes: dict[str, int]) -> None:
    """Match a shape with its axes; an axis not met before takes its size from here."""
    terms = axes.split()
    fits = len(shape) == len(terms)
    for term, size in zip(terms, shape, strict=False):
        coefficient, axis = _split(term)
        if axis and axis not in sizes:
            sizes[axis] = size // coefficient
        fits = fits and _size(term, sizes) == size
    if not fits:
        expected = ", ".join(f"{term}={_size(term, sizes)}" if _split(term)[1] in sizes else term for term in terms)
        raise ValueError(f"{op}: {name} has shape {list(shape)}, expected [{expected}]")


def _fan_in(axes: str, shape: list[int]) -> int:
    """Inputs per output of a weight: [C_in, C_out], [k, k, C_in, C_out], or depthwise [k, k, C]."""
    terms = axes.split()
    if terms[0] == "L":
        terms, shape = terms[1:], shape[1:]
    spatial = [size for term, size in zip(terms, shape, strict=True) if term.isdigit()]
    channels = [size for term, size in zip(terms, shape, strict=True) if not term.isdigit()]
    return math.prod(spatial) * (channels[0] if len(channels) == 2 else 1)
