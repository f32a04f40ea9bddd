# SPDX-License-Identifier: Apache-2.0
"""As much of TensorRT's compiled bindings as its own Python files in tensorrt/plugin need, so that those run without
libnvinfer. They are where TENSORRT_BINDINGS says."""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

__version__ = "bindings"
# `tensorrt.plugin` is the folder's.
__path__.append(os.environ["TENSORRT_BINDINGS"])


DataType = enum.Enum("DataType", "FLOAT HALF INT8 INT32 BOOL UINT8 FP8 BF16 INT64 INT4")
float32, float16, bfloat16, int32 = DataType.FLOAT, DataType.HALF, DataType.BF16, DataType.INT32
TensorFormat = enum.Enum("TensorFormat", "LINEAR CHW2 HWC8 CHW4 CHW16 CHW32 DHWC8 CDHW32 HWC DLA_LINEAR DLA_HWC4 HWC16")
PluginFieldType = enum.Enum(
    "PluginFieldType", "FLOAT16 FLOAT32 FLOAT64 INT8 INT16 INT32 CHAR DIMS UNKNOWN BF16 INT64 FP8 INT4"
)
PluginArgType = enum.Enum("PluginArgType", "INT")
PluginArgDataType = enum.Enum("PluginArgDataType", "INT8 INT16 INT32")
TensorRTPhase = enum.Enum("TensorRTPhase", "BUILD RUNTIME")
QuickPluginCreationRequest = enum.Enum(
    "QuickPluginCreationRequest", "UNKNOWN PREFER_JIT PREFER_AOT STRICT_JIT STRICT_AOT"
)
DimensionOperation = enum.Enum("DimensionOperation", "SUM PROD MAX MIN SUB EQUAL LESS FLOOR_DIV CEIL_DIV")
_OPERATIONS = {
    "SUM": lambda a, b: a + b,
    "PROD": lambda a, b: a * b,
    "MAX": max,
    "MIN": min,
    "SUB": lambda a, b: a - b,
    "FLOOR_DIV": lambda a, b: a // b,
    "CEIL_DIV": lambda a, b: -(-a // b),
}


class IDimensionExpr:
    def __init__(self, tree: Any) -> None:
        self.tree = tree

    def is_constant(self) -> bool:
        return isinstance(self.tree, int)

    def get_constant_value(self) -> int:
        return int(self.tree)

    def evaluate(self, sizes: dict[str, int]) -> int:
        if isinstance(self.tree, tuple):
            operation, *operands = self.tree
            return int(_OPERATIONS[operation](*(operand.evaluate(sizes) for operand in operands)))
        return sizes[self.tree] if isinstance(self.tree, str) else int(self.tree)


class IExprBuilder:
    def constant(self, value: int) -> IDimensionExpr:
        return IDimensionExpr(value)

    def operation(self, operation: Any, first: IDimensionExpr, second: IDimensionExpr) -> IDimensionExpr:
        assert isinstance(first, IDimensionExpr)
        assert isinstance(second, IDimensionExpr)
        return IDimensionExpr((operation.name, first, second))


class _Interface:
    def __init__(self) -> None:
        pass


# Distinct types, since plugins inherit from several.
class IPluginV3(_Interface): ...


class IPluginV3QuickCore(_Interface): ...


class IPluginV3QuickBuild(_Interface): ...


class IPluginV3QuickAOTBuild(_Interface): ...


class IPluginV3QuickRuntime(_Interface): ...


class IPluginCreatorV3Quick(_Interface): ...


class ISymExpr(_Interface): ...


class ITensor: ...


class Logger:
    WARNING = 2

    def __init__(self, severity: int = WARNING) -> None:
        self.min_severity = severity

    def log(self, severity: int, message: str) -> None:
        pass


class Dims(tuple):
    MAX_DIMS = 8


class DimsExprs(list):
    def __init__(self, length: int) -> None:
        super().__init__([None] * length)


@dataclass
class PluginTensorDesc:
    dims: Any = ()
    type: Any = None
    format: Any = None
    scale: float = 1.0


@dataclass
class DynamicPluginTensorDesc:
    desc: PluginTensorDesc = field(default_factory=PluginTensorDesc)
    min: Any = None
    max: Any = None
    opt: Any = None


@dataclass
class PluginField:
    name: str
    data: Any
    type: Any


PluginFieldCollection = list
_creators: dict[tuple[str, str, str], Any] = {}


def get_plugin_registry() -> Any:
    def register(creator: Any, namespace: str) -> bool:
        _creators[creator.name, creator.plugin_version, namespace] = creator
        return True

    return SimpleNamespace(
        register_creator=register, get_creator=lambda name, version, namespace: _creators[name, version, namespace]
    )
