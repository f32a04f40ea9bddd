# SPDX-License-Identifier: Apache-2.0
"""What a kernel file's `forward` does for maps of one layout, kept: the memory that it asks for and its launches.

`forward` is plain Python, which finds a configuration, counts tiles and names arguments; Triton then looks at each of
them. For the next maps of the same layout all of that comes out the same but for the addresses.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ditn_kernels.backends.triton._launch import Launch, is_observed, recording, start

# Plans that are kept.
_KEPT = 256
_aten = torch.ops.aten
_EMPTY = (_aten.empty.memory_format, _aten.empty_strided.default, _aten.empty_like.default, _aten.new_empty.default)

Run = Callable[..., Tensor]


def planned(forward: Run, still: Sequence[Any]) -> Run:
    """`forward(*maps, *still)` by plans, for weights that nobody writes to any more."""
    plans: dict[Any, Run] = {}
    constants = _Constants()

    def run(*maps: Tensor) -> Tensor:
        if is_observed():
            return forward(*maps, *still)
        key = [(x.shape, x.stride(), x.data_ptr() % 16 == 0) for x in maps]
        if maps[0].dtype == torch.float32:
            key.append(torch.backends.cuda.matmul.fp32_precision)
        kept = plans.get(tuple(key))
        if kept is not None:
            return kept(*maps)
        if maps[0].is_cuda and torch.cuda.is_current_stream_capturing():  # nothing of a graph's memory may be kept
            return forward(*maps, *still)
        if len(plans) >= _KEPT:
            plans.clear()
        plan, result = _plan(forward, maps, still, constants)
        plans[tuple(key)] = plan or (lambda *maps: forward(*maps, *still))
        return result

    return run


def _plan(
    forward: Run, maps: tuple[Tensor, ...], still: Sequence[Any], constants: _Constants
) -> tuple[Plan | None, Tensor]:
    """The plan for such maps, if there is one, and the result for these."""
    with recording() as launches, _Watch(maps) as watch:
        result = forward(*maps, *still)
    runs = [start(launch) for launch in launches]
    values = [*maps, *watch.memory]
    if watch.constants and result.is_cuda:  # the next call may be on another stream
        torch.cuda.current_stream(result.device).synchronize()
    places = {value.data_ptr(): place for place, value in enumerate(values) if value.numel()}
    inside = {value.untyped_storage().data_ptr() for value in values if value.numel()}

    def is_known(tensor: Tensor) -> bool:
        """Whether it begins where a map or a piece of memory does, or lies in neither."""
        return tensor.data_ptr() in places or tensor.untyped_storage().data_ptr() not in inside

    place = places.get(result.data_ptr())
    plannable = (
        watch.plannable
        and place is not None
        and (result.shape, result.stride()) == (values[place].shape, values[place].stride())
        and len(places) == sum(value.numel() > 0 for value in values)
        and all(is_known(arg) for launch in launches for arg in launch.args if isinstance(arg, Tensor))
    )
    if not plannable or place is None:
        return None, result
    steps = [_Step(launch, run, places, constants) for launch, run in zip(launches, runs, strict=True) if run]
    return Plan(steps, len(maps), watch.memory, place), result


class _Constants:
    """What launches read besides maps and memory: weights, and copies of them in another order. Each is kept once, and
    for as long as the weights: a CUDA graph reads it where it lies, also when the plan that it recorded is gone."""

    def __init__(self) -> None:
        self._kept: list[Tensor] = []

    def __call__(self, arg: Any) -> Any:
        """The one that is kept in place of a launch's argument."""
        if not isinstance(arg, Tensor):
            return arg
        for kept in self._kept:
            if kept is arg:
                return kept
            alike = (kept.shape, kept.stride(), kept.dtype) == (arg.shape, arg.stride(), arg.dtype)
            if alike and torch.equal(kept, arg):
                return kept
        self._kept.append(arg)
        return arg


class _Step:
    """A launch whose tensors come from a list of values, but for the constants."""

    def __init__(
        self, launch: Launch, run: Callable[..., object], places: dict[int, int], constants: _Constants
    ) -> None:
        self.run = run
        pointers = [arg.data_ptr() if isinstance(arg, Tensor) else None for arg in launch.args]
        self.places = [(i, places[pointer]) for i, pointer in enumerate(pointers) if pointer in places]
        given = zip(pointers, launch.args, strict=True)
        self.args = [None if pointer in places else constants(arg) for pointer, arg in given]


class Plan:
    """Calling it with maps of the layout that it is for gives the operator's result."""

    def __init__(self, steps: list[_Step], maps: int, memory: Sequence[Tensor], result: int) -> None:
        self._steps, self._result = steps, result
        self._device = memory[0].device
        allocate = functools.partial(torch.empty_strided, device=self._device)
        self._memory = [functools.partial(allocate, tuple(m.shape), m.stride(), dtype=m.dtype) for m in memory]

    def __call__(self, *maps: Tensor) -> Tensor:
        if self._device.type == "cuda" and torch.cuda.current_device() != self._device.index:
            with torch.cuda.device(self._device):
                return self._run(maps)
        return self._run(maps)

    def _run(self, maps: tuple[Tensor, ...]) -> Tensor:
        values = [*maps, *[allocate() for allocate in self._memory]]
        for step in self._steps:
            args = step.args.copy()
            for place, source in step.places:
                args[place] = values[source]
            step.run(*args)
        return values[self._result]


class _Watch(TorchDispatchMode):
    """What PyTorch's operators do inside: `memory` that was asked for; whether there are `constants`, made of nothing
    but weights. Anything else that is done with maps or memory, but for views of them, cannot be planned."""

    def __init__(self, maps: Sequence[Tensor]) -> None:
        super().__init__()
        self.plannable = True
        self.memory: list[Tensor] = []
        self.constants = False
        self._changing = {x.untyped_storage().data_ptr() for x in maps if x.numel()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _EMPTY:
            self.memory.append(result)
            if result.numel():
                self._changing.add(result.untyped_storage().data_ptr())
        elif any(isinstance(arg, Tensor) and arg.untyped_storage().data_ptr() in self._changing for arg in args):
            self.plannable &= isinstance(result, Tensor) and result.untyped_storage().data_ptr() in self._changing
        else:
            self.constants = True
        return result
