# SPDX-License-Identifier: Apache-2.0
"""Records of weights: named tuples of tensors, annotated with their axes.

    class FfnWeights(NamedTuple):
        in_weight: Annotated[Tensor, "C 2E"]    # a tensor of shape [C, 2 * E]
        ...

    class StageWeights(NamedTuple):
        ffn: Annotated[FfnWeights, "L"]         # the same tensors with an axis L in front: ffn_in_weight [L, C, 2 * E]

An operator takes such a record as one argument. `torch.library` and the compiled libraries take its tensors one by one;
their names and axes follow from the annotations and are written down nowhere else.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any, TypeVar, cast, get_args, get_origin, get_type_hints

from torch import Tensor

R = TypeVar("R")

# An activation: a batch of feature maps.
Map = Annotated[Tensor, "B C H W"]


def operands(name: str, annotation: Any, leading: str = "") -> Iterator[tuple[str, str]]:
    """Name and axes of every tensor of an argument; nothing for an option."""
    if get_origin(annotation) is Annotated:
        kind, axes = get_args(annotation)
        if kind is Tensor:
            yield name, leading + axes
            return
        leading, annotation = f"{leading}{axes} ", kind
        prefix = f"{name}_"
    else:
        prefix = ""
    if is_record(annotation):
        for field, hint in fields(annotation).items():
            yield from operands(prefix + field, hint, leading)


def kind_of(annotation: Any) -> Any:
    """The type that is annotated: Tensor, a record, or that of an option."""
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def is_record(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, tuple) and hasattr(annotation, "_fields")


@functools.cache
def fields(record: type) -> Mapping[str, Any]:
    """The annotation of each field."""
    return get_type_hints(record, include_extras=True)


def flatten(values: Iterable[Any]) -> Iterator[Any]:
    """The values, with the tensors of records in the place of the records."""
    for value in values:
        if isinstance(value, tuple):
            yield from flatten(value)
        else:
            yield value


def rebuild(annotation: Any, values: Iterator[Any]) -> Any:
    """One argument out of flat values: the next one, or a record of the next ones."""
    kind = kind_of(annotation)
    if not is_record(kind):
        return next(values)
    return kind(*(rebuild(hint, values) for hint in fields(kind).values()))


def map_tensors(record: R, convert: Callable[[Tensor], Tensor]) -> R:
    """The same record, of converted tensors."""
    if isinstance(record, Tensor):
        return convert(record)  # type: ignore[return-value]
    if not isinstance(record, tuple):
        return record
    parts = [map_tensors(part, convert) for part in record]
    return type(record)(*parts) if is_record(type(record)) else type(record)(parts)


def layers(stacked: R) -> Iterator[R]:
    """The records of the single layers, out of one whose tensors have the layers' axis in front."""
    for tensors in zip(*flatten([stacked]), strict=True):
        yield cast(R, rebuild(type(stacked), iter(tensors)))
