# SPDX-License-Identifier: Apache-2.0
"""`tensorrt.plugin`, restated: what it insists on in a plugin's functions, and when and with what it calls them.

`build` is the builder, for one node. An expression can be evaluated for sizes, which TensorRT does at run time.
"""

from __future__ import annotations

import inspect
import operator
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tensorrt import DataType

_OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
    "ceil": lambda a, b: -(-a // b),
    "min": min,
    "max": max,
}


class SymInt32:
    """A number that is known when the engine runs. As TensorRT's, it stands left of an operator, never right of one."""

    def __init__(self, value: Any = None) -> None:
        # An int, an axis's name, an operation with two operands, or None for one that is not even an expression yet.
        self._tree: Any = value._tree if isinstance(value, SymInt32) else value

    def _op(self, operation: str, other: Any) -> Any:
        if not isinstance(other, (int, SymInt32)):
            raise TypeError(f"{type(other)} in an expression")
        other = SymInt32(other)
        is_fake = self._tree is None or other._tree is None
        return type(self)(None if is_fake else (operation, self._tree, other._tree))

    def __add__(self, other: Any) -> Any:
        return self._op("+", other)

    def __sub__(self, other: Any) -> Any:
        return self._op("-", other)

    def __mul__(self, other: Any) -> Any:
        return self._op("*", other)

    def __floordiv__(self, other: Any) -> Any:
        return self._op("//", other)

    def evaluate(self, sizes: Mapping[str, int]) -> int:
        return _evaluated(self._tree, sizes)


def _evaluated(tree: Any, sizes: Mapping[str, int]) -> int:
    if isinstance(tree, tuple):
        operation, *operands = tree
        value = _OPERATIONS[operation](*(_evaluated(operand, sizes) for operand in operands))
    else:
        value = sizes[tree] if isinstance(tree, str) else int(tree)
    assert -(2**31) <= value < 2**31, f"{tree} is {value}"
    return value


class ShapeExpr(SymInt32):
    @property
    def is_fake(self) -> bool:
        return self._tree is None

    @property
    def is_constant(self) -> bool:
        if self.is_fake:
            raise RuntimeError("Not accessible for fake 'ShapeExpr's")
        return isinstance(self._tree, int)

    def constant_value(self) -> int:
        if not self.is_constant:
            raise RuntimeError("Not accessible for non-constant shape expressions")
        return int(self._tree)


class SymExprs:
    kind: type = SymInt32

    def __init__(self, length: int) -> None:
        self._items: list[Any] = [None] * length

    @classmethod
    def from_tuple(cls, items: Sequence[Any]) -> SymExprs:
        made = cls(len(items))
        made._items = [item if isinstance(item, cls.kind) else cls.kind(item) for item in items]
        return made

    def __setitem__(self, index: int, item: Any) -> None:
        # A bare int becomes something that is refused later, as TensorRT's own does.
        self._items[index] = item

    def __getitem__(self, index: int) -> Any:
        return self._items[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


class SymIntExprs(SymExprs):
    pass


class ShapeExprs(SymExprs):
    kind = ShapeExpr


class TensorDesc:
    def __init__(self, shape_expr: ShapeExprs, dtype: DataType) -> None:
        self.shape_expr, self.dtype = shape_expr, dtype

    def like(self) -> TensorDesc:
        return TensorDesc(ShapeExprs.from_tuple(list(self.shape_expr)), self.dtype)


class Tensor:
    """What an implementation in Python gets."""


def from_shape_expr(shape_expr: Any, dtype: DataType) -> TensorDesc:
    return TensorDesc(ShapeExprs.from_tuple(shape_expr) if isinstance(shape_expr, tuple) else shape_expr, dtype)


def cdiv(first: Any, second: Any) -> Any:
    return _either(first, second)._op("ceil", second)


def min(first: Any, second: Any) -> Any:
    return _either(first, second)._op("min", second)


def max(first: Any, second: Any) -> Any:
    return _either(first, second)._op("max", second)


def _either(first: Any, second: Any) -> Any:
    if isinstance(first, int):
        if isinstance(second, int):
            raise ValueError("Both arguments cannot be 'int's")
        return ShapeExpr(first)
    return first


class KernelLaunchParams:
    _names = ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "shared_mem")

    def __init__(self) -> None:
        for name in self._names:
            setattr(self, name, 0 if name == "shared_mem" else 1)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self._names:
            raise AttributeError(f"KernelLaunchParams object has no attribute {name!r}")
        super().__setattr__(name, SymInt32(value))


@dataclass
class _Plugin:
    describe: Callable[..., Any]
    tensors: list[str]
    options: dict[str, type]
    outputs: int
    compile_ahead: Callable[..., Any] | None = None
    call: Callable[..., Any] | None = None


PLUGINS: dict[str, _Plugin] = {}


def register(plugin_id: str) -> Callable[..., Any]:
    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        if plugin_id in PLUGINS:
            raise ValueError(f"already has a definition for {plugin_id!r}")
        signature = inspect.signature(function)
        tensors: list[str] = []
        options: dict[str, type] = {}
        for name, parameter in signature.parameters.items():
            assert parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD, name
            assert parameter.default is inspect.Parameter.empty, name
            if issubclass(parameter.annotation, TensorDesc):
                assert not options, "tensors come first"
                tensors.append(name)
            else:
                assert parameter.annotation in (int, float, bytes, bool, str), name
                options[name] = parameter.annotation
        returned = signature.return_annotation
        kinds = typing.get_args(returned) if typing.get_origin(returned) is tuple else (returned,)
        assert all(issubclass(kind, TensorDesc) for kind in kinds)
        PLUGINS[plugin_id] = _Plugin(function, tensors, options, len(kinds))
        return function

    return decorate


def aot_impl(plugin_id: str) -> Callable[..., Any]:
    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        returned = _check(PLUGINS[plugin_id], function, TensorDesc, "tactic")
        name, code, params, extra = typing.get_args(returned)
        assert {name, code} <= {str, bytes}
        assert issubclass(params, KernelLaunchParams)
        assert issubclass(extra, SymExprs)
        PLUGINS[plugin_id].compile_ahead = function
        return function

    return decorate


def impl(plugin_id: str) -> Callable[..., Any]:
    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        assert _check(PLUGINS[plugin_id], function, Tensor, "stream") in (None, inspect.Signature.empty)
        PLUGINS[plugin_id].call = function
        return function

    return decorate


def _check(plugin: _Plugin, function: Callable[..., Any], tensor: type, last: str) -> Any:
    """Names and types have to be those that were registered; what the function is said to return."""
    signature = inspect.signature(function)
    assert list(signature.parameters) == [*plugin.tensors, *plugin.options, "outputs", last]
    for name, parameter in signature.parameters.items():
        if name == "outputs":
            assert typing.get_origin(parameter.annotation) is tuple
            assert all(issubclass(kind, tensor) for kind in typing.get_args(parameter.annotation))
        elif name == last:
            assert issubclass(parameter.annotation, int)
        elif name in plugin.tensors:
            assert issubclass(parameter.annotation, tensor)
        else:
            assert parameter.annotation is plugin.options[name]
    return signature.return_annotation


@dataclass
class Built:
    """A node of an engine. The kernel gets the inputs' addresses, `extra`, and the outputs' addresses."""

    outputs: tuple[TensorDesc, ...]
    kernel: str = ""
    code: str = ""
    params: Any = None
    extra: tuple[SymInt32, ...] = ()


def build(plugin_id: str, dtype: DataType, shapes: Sequence[Sequence[Any]], options: Mapping[str, Any]) -> Built:
    """What the builder does with a node. Axes of the inputs that are not known yet have names."""
    plugin = PLUGINS[plugin_id]
    assert len(shapes) == len(plugin.tensors)
    assert {name: type(value) for name, value in options.items()} == plugin.options
    # Types first: of shapes nothing is known but their ranks.
    fakes = [TensorDesc(ShapeExprs.from_tuple([None] * len(shape)), dtype) for shape in shapes]
    types = [desc.dtype for desc in _tuple(plugin.describe(*fakes, **options))]
    descs = [TensorDesc(ShapeExprs.from_tuple(shape), dtype) for shape in shapes]
    outputs = _tuple(plugin.describe(*descs, **options))
    assert [desc.dtype for desc in outputs] == types
    assert len(outputs) == plugin.outputs
    if plugin.compile_ahead is None:
        return Built(outputs)
    kernel, code, params, extra = plugin.compile_ahead(*descs, *options.values(), outputs, 0)
    assert isinstance(params, KernelLaunchParams)
    assert isinstance(extra, SymExprs)
    assert all(isinstance(one, SymInt32) for one in extra)
    return Built(outputs, kernel, code, params, tuple(extra))


def _tuple(described: Any) -> tuple[TensorDesc, ...]:
    return described if isinstance(described, tuple) else (described,)
