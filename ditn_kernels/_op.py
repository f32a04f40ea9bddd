# SPDX-License-Identifier: Apache-2.0
"""What an operator is: one decorated function plus the facts that tests, benchmarks and dispatch need about it.

An operator is defined in its file in `ops/` and nowhere else. The decorated function is the formula, the documentation
and the plain PyTorch backend at once; `define` attaches the rest to it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, get_type_hints

import torch
from torch import Tensor

from ditn_kernels import _axes, _records
from ditn_kernels._support import Support
from ditn_kernels._transforms import in_forward_mode, refuse_tangents
from ditn_kernels.backends import BACKENDS

NORMS = ("tanh", "layernorm", "none")
_MISSING = inspect.Parameter.empty
# From the size of every axis and all arguments: what is wrong with them and what would be right; None if nothing is.
Rule = Callable[[Mapping[str, int], Mapping[str, Any]], str | None]


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


class Layer(NamedTuple):
    """A link of a chain of operators: x -> op(x, *arguments)."""

    op: Op
    arguments: tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Op:
    """One operator. Calling it runs the best backend that can: `op(x, weights, *options, backend=None)`.

    `definition` is its plain PyTorch formula, and its signature that of the operator. A record of weights among its
    arguments (`_records`) stands for its tensors in this order, and wherever the operator's arguments are taken, they
    may also be given flat: the tensors one by one. `axes` names every tensor and its axes, `options` are the rest:
    shapes are checked, samples are drawn and costs are counted from them. `rules` say what else has to hold of sizes
    and options. `output_shape` gives the result's shape from the axes' sizes and the arguments.
    A stage also has a `decomposition`: from its arguments behind x to the same computation as a chain of operators. It
    runs where a gradient is wanted and where no backend has a kernel for the whole.
    `atol_of_max` is an absolute tolerance for each dtype, relative to the largest output: the error against float64 may
    be that much more than twice the error of plain PyTorch.
    """

    name: str
    definition: Callable[..., Tensor]
    output_shape: Callable[[Mapping[str, int], Mapping[str, Any]], tuple[int, ...]]
    backends: Mapping[str, Support]
    samples: tuple[Sample, ...]
    rules: tuple[Rule, ...]
    macs: Callable[[Mapping[str, int]], int]
    gradient: Callable[..., tuple[Any, ...]] | None
    decomposition: Callable[..., Iterable[Layer]] | None
    atol_of_max: Mapping[torch.dtype, float]
    parameters: Mapping[str, Any] = field(init=False)
    axes: Mapping[str, str] = field(init=False)
    options: Mapping[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        function = self.definition
        hints = get_type_hints(function, include_extras=True)
        parameters = {name: hints[name] for name in inspect.signature(function).parameters}
        defaults = {name: p.default for name, p in inspect.signature(function).parameters.items()}
        axes = dict(pair for name, hint in parameters.items() for pair in _records.operands(name, hint))
        options = {name: defaults[name] for name, hint in parameters.items() if not dict(_records.operands(name, hint))}
        vars(self).update(parameters=parameters, axes=axes, options=options)
        vars(self).update(__doc__=function.__doc__, __module__=function.__module__, __wrapped__=function)

    def __call__(self, *args: Any, backend: str | None = None, **options: Any) -> Tensor:
        by_name = dict(pair for name, value in options.items() for pair in self._flat(name, value))
        flat = list(_records.flatten(args))
        if in_forward_mode():
            refuse_tangents(self.name, [*flat, *by_name.values()])
        overload = getattr(torch.ops.ditn, self.name).default
        result: Tensor = overload(*flat, **by_name, backend=backend)
        return result

    def reference(self, *args: Any, **options: Any) -> Tensor:
        """The result by the plain PyTorch definition."""
        return self.definition(*self.structured(self.named(args, options).values()))

    @property
    def backward(self) -> Callable[..., tuple[Tensor, ...]] | None:
        """From the result's gradient and the arguments to the gradient of each tensor, in plain PyTorch."""
        gradient = self.gradient
        if gradient is None:
            return None
        return lambda grad, *args: tuple(_records.flatten(gradient(grad, *self.structured(self.named(args).values()))))

    def named(self, args: Iterable[Any], options: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Arguments as one flat dict in the order of the signature, defaults filled in.

        Raises TypeError for arguments that are missing, too many, given twice or unknown.
        """
        names, values = [*self.axes, *self.options], list(_records.flatten(args))
        by_place = dict(zip(names, values, strict=False))
        by_name = dict(pair for name, value in (options or {}).items() for pair in self._flat(name, value))
        found: dict[str, Any] = {**dict.fromkeys(self.axes, _MISSING), **self.options, **by_place, **by_name}
        too_many, unknown = len(values) > len(names), len(found) > len(names)
        twice = not by_name.keys().isdisjoint(by_place)
        if too_many or unknown or twice or any(value is _MISSING for value in found.values()):
            given = [f"{len(values)} by place", *by_name]
            raise TypeError(f"{self.name} takes {len(names)} arguments, {', '.join(names)}; got {', '.join(given)}")
        return found

    def _flat(self, name: str, value: Any) -> Iterable[tuple[str, Any]]:
        """The tensors of a record that was given by name."""
        if not _records.is_record(self.parameters.get(name)):
            return [(name, value)]
        names = [flat for flat, _ in _records.operands(name, self.parameters[name])]
        return zip(names, _records.flatten([value]), strict=True)

    def decomposed(self, *args: Any, backend: str | None = None, **options: Any) -> Tensor:
        """The result by its decomposition, each operator of which makes its own choice of a backend."""
        if self.decomposition is None:
            raise TypeError(f"{self.name} has no decomposition")
        x: Tensor
        x, *rest = self.structured(self.named(args, options).values())
        for op, arguments in self.decomposition(*rest):
            x = op(x, *arguments, backend=backend)
        return x

    def structured(self, flat: Iterable[Any]) -> Iterator[Any]:
        """The arguments as the definition takes them, out of all flat ones."""
        values = iter(flat)
        return (_records.rebuild(hint, values) for hint in self.parameters.values())

    def check(self, args: Mapping[str, Any]) -> dict[str, int]:
        """The size of every named axis. Raises ValueError or TypeError that names the argument, its shape or value,
        and the shape, dtype, device or value that was expected."""
        sizes: dict[str, int] = {}
        first_name = next(iter(self.axes))
        first = args[first_name]
        for name, axes in self.axes.items():
            tensor = args[name]
            if not isinstance(tensor, Tensor):
                raise TypeError(f"{self.name}: {name} is {tensor!r}, must be a tensor")
            if tensor.dtype != first.dtype or tensor.device != first.device:
                raise TypeError(
                    f"{self.name}: {name} is {tensor.dtype} on {tensor.device}, "
                    f"but {first_name} is {first.dtype} on {first.device}; all tensors must agree"
                )
            if expected := _axes.bind(axes, tensor.shape, sizes):
                raise ValueError(f"{self.name}: {name} has shape {list(tensor.shape)}, expected [{expected}]")
        if not first.dtype.is_floating_point:
            raise TypeError(f"{self.name}: {first_name} is {first.dtype}, all tensors must be floating-point")
        for rule in self.rules:
            if wrong := rule(sizes, args):
                raise ValueError(f"{self.name}: {wrong}")
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
            shape = _axes.shape_of(axes, sample.axes)
            values = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
            if name.endswith("weight"):
                values /= max(1, _axes.fan_in(axes, shape)) ** 0.5
            elif name.endswith("bias"):
                values *= 0.2
            elif name.endswith("temperature"):
                values = 2 + values.abs()
            tensor = values.to(device=device, dtype=dtype)
            if _axes.is_map(axes):
                tensor = tensor.contiguous(memory_format=torch.channels_last)
            args[name] = tensor
        return self.named(args.values(), sample.options)

    def cost(self, args: Mapping[str, Any]) -> Cost:
        """The least work for these arguments: each tensor read once, the result written once."""
        sizes = self.check(args)
        tensors = [args[name] for name in self.axes]
        elements = sum(tensor.numel() for tensor in tensors) + math.prod(self.output_shape(sizes, args))
        return Cost(bytes=elements * tensors[0].element_size(), macs=self.macs(sizes))


def in_turn(x: Tensor, chain: Iterable[Layer]) -> Tensor:
    """The plain PyTorch definition of a chain."""
    for op, arguments in chain:
        x = op.definition(x, *arguments)
    return x


# Two results that are both rounded to their dtype can differ by one unit in the last place (2^-23, 2^-10, 2^-7) of
# the largest output even where plain PyTorch happens to hit float64's value exactly.
ROUNDING = {torch.float64: 2.0**-52, torch.float32: 2.0**-23, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}


def _same_map(sizes: Mapping[str, int], args: Mapping[str, Any]) -> tuple[int, ...]:
    return sizes["B"], sizes["C"], sizes["H"], sizes["W"]


def define(
    *,
    samples: Iterable[Sample],
    macs: Callable[[Mapping[str, int]], int],
    rules: Iterable[Rule] = (),
    output_shape: Callable[[Mapping[str, int], Mapping[str, Any]], tuple[int, ...]] = _same_map,
    backward: Callable[..., tuple[Any, ...]] | None = None,
    decomposition: Callable[..., Iterable[Layer]] | None = None,
) -> Callable[[Callable[..., Tensor]], Op]:
    """Make the decorated plain PyTorch function an operator, of every backend that has kernels of its name."""

    def decorate(function: Callable[..., Tensor]) -> Op:
        supports = {name: backend.support(function.__name__) for name, backend in BACKENDS.items()}
        return Op(
            name=function.__name__,
            definition=function,
            output_shape=output_shape,
            backends={name: support for name, support in supports.items() if support is not None},
            samples=tuple(samples),
            rules=tuple(rules),
            macs=macs,
            gradient=backward,
            decomposition=decomposition,
            atol_of_max=ROUNDING,
        )

    return decorate
