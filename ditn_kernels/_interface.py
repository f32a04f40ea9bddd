# SPDX-License-Identifier: Apache-2.0
"""C++ headers about the operators, out of their definitions: what the compiled libraries need to know.

    python -m ditn_kernels._interface FOLDER

writes `torch_operators.h` (records of weights as tensors, and schemas), `torch_cpp.h` and `torch_cuda.h` (functions
that take an operator's tensors one by one, as torch calls it, for the operators that have kernels there: the operator
itself, `prepare_<op>`, which takes all but the maps, and `<op>_backward`) and `tensorrt_operators.h` (inputs and limits
of TensorRT's plugins). `setup.py` and `csrc/tensorrt/CMakeLists.txt` call it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ditn_kernels import _records
from ditn_kernels._axes import is_map
from ditn_kernels._op import Op
from ditn_kernels.ops import REGISTRY

_HEAD = """// Written by ditn_kernels/_interface.py from the operators' definitions in ditn_kernels/ops.
#pragma once
"""
# torch.library's names of the options' types, and C++'s. A norm is a number here (`NORM_CODES`, csrc/operators.h).
_TYPES = {"str": ("int", "int64_t"), "int": ("int", "int64_t"), "float": ("float", "double")}
# The operators that are nodes of the graphs for TensorRT (`ditn.export.plugins`).
PLUGINS = ("inner_patch_attention", "gated_ffn", "dilated_gate")


def headers() -> Mapping[str, str]:
    """Name and content of every header."""
    return {
        "torch_operators.h": _HEAD + "".join([*_records_in_cpp(), _schemas()]),
        "torch_cpp.h": _HEAD + _boxes("cpp"),
        "torch_cuda.h": _HEAD + _boxes("cuda"),
        "tensorrt_operators.h": _HEAD + _plugins(),
    }


def _records_in_cpp() -> Iterator[str]:
    found: dict[type, None] = {}
    for op in REGISTRY.values():
        for hint in op.parameters.values():
            for record in _inside_first(hint):
                found.setdefault(record)
    for record in found:
        yield _record(record)


def _inside_first(hint: Any) -> Iterator[type]:
    """A record and those it is made of, which have to be defined before it."""
    record = _records.kind_of(hint)
    if _records.is_record(record):
        for inner in _records.fields(record).values():
            yield from _inside_first(inner)
        yield record


def _record(record: type) -> str:
    kinds = {name: _records.kind_of(hint) for name, hint in _records.fields(record).items()}
    fields = [f"  {kind.__name__} {name};" for name, kind in kinds.items()]
    mapped = ", ".join(f"{name}.map(f)" if _records.is_record(kind) else f"f({name})" for name, kind in kinds.items())
    text = ["", f"struct {record.__name__} {{", *fields]
    text += ["  template <class F>", f"  {record.__name__} map(const F& f) const {{ return {{{mapped}}}; }}"]
    if not any(map(_records.is_record, kinds.values())):
        text += [
            "  // What the kernels take: f of every tensor, and then the rest.",
            "  template <class Record, class F, class... Rest>",
            f"  Record as(const F& f, Rest... rest) const {{ return {{{mapped}, rest...}}; }}",
        ]
    return "\n".join([*text, "};", ""])


def _schemas() -> str:
    lines = []
    for op in REGISTRY.values():
        arguments = [f"Tensor {name}" for name in op.axes] + [f"{_types(op, name)[0]} {name}" for name in op.options]
        maps = sum(map(is_map, op.axes.values()))
        lines.append(f'  m.def("{op.name}({", ".join(arguments)}) -> Tensor");')
        lines.append(f'  m.def("prepare_{op.name}({", ".join(arguments[maps:])}) -> int");')
        if op.gradient is not None:
            gradients = ", ".join(["Tensor"] * len(op.axes))
            lines.append(f'  m.def("{op.name}_backward({", ".join(["Tensor grad", *arguments])}) -> ({gradients})");')
    return "\n".join(["", "template <class Library>", "void define_operators(Library& m) {", *lines, "}", ""])


def _boxes(backend: str) -> str:
    text, lines = [], []
    for op in REGISTRY.values():
        support = op.backends.get(backend)
        if support is None:
            continue
        names = [op.name, f"prepare_{op.name}"]
        text += [_forward(op)]
        if support.backward:
            names.append(f"{op.name}_backward")
            text.append(_backward(op))
        lines += [f'  m.impl("{name}", TORCH_BOX(&flat_{name}));' for name in names]
    return "\n".join([*text, "template <class Library>", "void implement_operators(Library& m) {", *lines, "}", ""])


def _forward(op: Op) -> str:
    maps = [name for name, axes in op.axes.items() if is_map(axes)]
    weights = [name for name in op.axes if name not in maps]
    still = [f"Tensor {name}" for name in weights] + _options(op)
    names = iter([*weights, *op.options])
    given = ", ".join(_braced(hint, names) for parameter, hint in op.parameters.items() if parameter not in maps)
    called = ", ".join([f"Tensor {name}" for name in maps] + still)
    run = f"return {op.name}({maps[0]}.scalar_type(), {given}).run({maps[0]}, {maps[-1]});"
    prepare = f"return number_of(new PreparedOperator({op.name}({weights[0]}.scalar_type(), {given})));"
    return (
        f"\nTensor flat_{op.name}({called}) {{\n  {run}\n}}\n"
        f"\nint64_t flat_prepare_{op.name}({', '.join(still)}) {{\n  {prepare}\n}}\n"
    )


def _backward(op: Op) -> str:
    arguments = ", ".join([f"Tensor {tensor}" for tensor in ["grad", *op.axes]] + _options(op))
    names = iter([*op.axes, *op.options])
    given = ", ".join(["grad", *(_braced(hint, names) for hint in op.parameters.values())])
    parameters = {parameter: hint for parameter, hint in op.parameters.items() if parameter not in op.options}
    results = ", ".join(f"d{parameter}" for parameter in parameters)
    flat = ", ".join(path for parameter, hint in parameters.items() for path in _paths(hint, f"d{parameter}"))
    gradients = ", ".join(["Tensor"] * len(op.axes))
    body = f"  const auto [{results}] = {op.name}_backward({given});\n  return {{{flat}}};"
    return f"\nstd::tuple<{gradients}> flat_{op.name}_backward({arguments}) {{\n{body}\n}}\n"


def _options(op: Op) -> list[str]:
    return [f"{_types(op, option)[1]} {option}" for option in op.options]


def _braced(hint: Any, names: Iterator[str]) -> str:
    """An argument of a function that takes records, out of flat ones."""
    record = _records.kind_of(hint)
    if not _records.is_record(record):
        return next(names)
    return "{" + ", ".join(_braced(inner, names) for inner in _records.fields(record).values()) + "}"


def _paths(hint: Any, path: str) -> Iterator[str]:
    """Where the tensors of an argument are."""
    record = _records.kind_of(hint)
    if not _records.is_record(record):
        yield path
        return
    for field, inner in _records.fields(record).items():
        yield from _paths(inner, f"{path}.{field}")


def _types(op: Op, option: str) -> tuple[str, str]:
    return _TYPES[op.parameters[option].__name__]


def _plugins() -> str:
    lines = []
    for name in PLUGINS:
        op, support = REGISTRY[name], REGISTRY[name].backends["cuda"]
        axes = {tensor: "B H W C" if is_map(axes) else axes for tensor, axes in op.axes.items()}
        inputs = ", ".join(f'{{"{tensor}", "{text}"}}' for tensor, text in axes.items())
        sizes = ", ".join(map(str, support.patch_sizes)) if "patch_size" in op.options else ""
        facts = f'"{name}", {{{inputs}}}, {{{sizes}}}, {support.max_channels}'
        lines.append(f"      {{{facts}, {name}<__half>, {name}<float>}},")
    return "\n".join(
        [
            "",
            "const std::vector<Operator>& operators() {",
            "  static const std::vector<Operator> all{",
            *lines,
            "  };",
            "  return all;",
            "}",
            "",
        ]
    )


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in headers().items():
        (folder / name).write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
