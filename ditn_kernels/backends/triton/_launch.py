# SPDX-License-Identifier: Apache-2.0
"""From an operator's arguments to a kernel launch: layout, configuration, device."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from ditn_kernels._trial import on_trial
from ditn_kernels.backends.triton import _compiling, _ptxas
from ditn_kernels.backends.triton._config import Config, lookup
from ditn_kernels.backends.triton._math import INTERPRETED

Weights = TypeVar("Weights", bound=tuple[Tensor, ...])

# Few enough that every program of a test takes several tiles; interpreted, that many for each of the configuration's.
_FEW_PROGRAMS = 3
# Multiprocessors of the chip that launches are recorded for: an H100's.
RECORDED_PROCESSORS = 132
_compiling.listen()


@dataclass(frozen=True)
class Launch:
    """A kernel's launch on a device. `shape` is what its configuration was looked up for."""

    kernel: Any
    name: str
    device: torch.device
    args: tuple[Any, ...]
    constants: Mapping[str, Any]
    config: Config
    shape: Mapping[str, int]
    programs: int


@dataclass(frozen=True)
class _Recorder:
    capability: int | None
    launches: list[Launch]


_recorder: ContextVar[_Recorder | None] = ContextVar("ditn_triton_recorder", default=None)
_configs: ContextVar[Mapping[str, Config]] = ContextVar("ditn_triton_configs", default={})  # noqa: B039


@contextmanager
def recording(capability: int | None = None) -> Iterator[list[Launch]]:
    """Inside, a `forward` or `backward` launches nothing. Its launches are appended to a list: as for a chip of this
    capability (90 for sm_90), for which its tensors may be on the "meta" device; or as they are."""
    launches: list[Launch] = []
    token = _recorder.set(_Recorder(capability, launches))
    try:
        yield launches
    finally:
        _recorder.reset(token)


@contextmanager
def configured(configs: Mapping[str, Config]) -> Iterator[None]:
    """Inside, these configurations, by the kernel's name, take precedence over the tables'."""
    token = _configs.set(configs)
    try:
        yield
    finally:
        _configs.reset(token)


def is_observed() -> bool:
    """Whether launches are recorded, given configurations, or on trial: no call is like another then."""
    return _recorder.get() is not None or bool(_configs.get()) or bool(on_trial.get())


class KernelLauncher:
    """A kernel with the configuration for one dtype and shape on the device of `like`."""

    def __init__(self, kernel: Any, like: Tensor, **shape: int) -> None:
        recorder = _recorder.get()
        self._kernel = kernel
        self._device = like.device
        self._is_foreign = recorder is not None and recorder.capability is not None
        self._capability = recorder.capability if recorder and recorder.capability else _capability(like.device)
        self.name = kernel.fn.__name__.strip("_").removesuffix("_kernel")
        dtype = str(like.dtype).removeprefix("torch.")
        self._shape = shape
        self.config = _configs.get().get(self.name) or lookup(
            self.name, capability=self._capability, dtype=dtype, shape=shape
        )
        self.blocks = self.config.blocks

    def programs(self, tiles: int) -> int:
        """How many programs of a persistent kernel share the tiles: as many as the chip holds, on trial a few."""
        if on_trial.get():
            return min(tiles, _FEW_PROGRAMS)
        processors = RECORDED_PROCESSORS if self._is_foreign else _processors(self._device)
        return min(tiles, self.config.programs * processors)

    def launch(self, programs: int, *args: Any, **constants: Any) -> None:
        """Run the kernel. The block sizes of the configuration, and PRECISION for a kernel that multiplies matrices,
        come on top of `constants`."""
        constants |= self.blocks
        if "PRECISION" in self._kernel.arg_names:
            constants["PRECISION"] = precision(self._capability, gradient=self.name.endswith("_bwd"))
        launch = Launch(self._kernel, self.name, self._device, args, constants, self.config, self._shape, programs)
        if recorder := _recorder.get():
            recorder.launches.append(launch)
        else:
            start(launch)


def start(launch: Launch) -> Callable[..., object] | None:
    """Run it, and give what runs it again with other tensors, on the current device: it takes the arguments of the
    launch, of the same alignment to 16 bytes. None if there are no programs to run."""
    if not launch.programs:
        return None
    if not INTERPRETED.value:
        _ptxas.own(launch.kernel)
    config, constants = launch.config, launch.constants
    with torch.cuda.device(launch.device) if launch.device.type == "cuda" else nullcontext():
        options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
        run = functools.partial(launch.kernel[(launch.programs,)], **constants, **options)
        compiled = run(*launch.args)
    if INTERPRETED.value:
        return run
    # Without Triton's own look at every argument. A compiled kernel takes the constants as well, in order.
    again = compiled[(launch.programs, 1, 1)]
    behind = [constants[name] for name in launch.kernel.arg_names[len(launch.args) :]]
    return lambda *args: again(*args, *behind)


def dense(tensor: Tensor) -> Tensor:
    """An activation as the kernels read it: channels-last without gaps."""
    return tensor.contiguous(memory_format=torch.channels_last)


def contiguous(weights: Weights) -> Weights:
    """A record of weights as the kernels read them."""
    return type(weights)(*(weight.contiguous() for weight in weights))


def empty_map(like: Tensor, channels: int, height: int, width: int) -> Tensor:
    """Memory for a channels-last activation of the same batch, dtype and device."""
    shape = (like.shape[0], channels, height, width)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


# Triton has these two, wrapped for kernels as well, which makes each call as long as an allocation.
def cdiv(count: int, size: int) -> int:
    """How many blocks of a size hold so many."""
    return -(-count // size)


def next_power_of_2(size: int) -> int:
    """The smallest that is not less, of a size of at least 1."""
    return 1 << (size - 1).bit_length()


def padded(size: int) -> int:
    """The side of the tile that holds `size` channels: a power of two that a matrix instruction takes."""
    return max(16, next_power_of_2(size))


@functools.cache
def _capability(device: torch.device) -> int:
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@functools.cache
def _processors(device: torch.device) -> int:
    if INTERPRETED.value:
        return _FEW_PROGRAMS
    return torch.cuda.get_device_properties(device).multi_processor_count


def precision(capability: int, *, gradient: bool) -> str:
    """How float32 factors are multiplied: exactly, or as products of TF32 parts (`_math.dot`).

    Plain TF32 is used where the user has allowed it. Only PyTorch's new setting is read: it also shows what was set by
    the old one, whose reading raises an error once the new one was written.
    """
    if torch.backends.cuda.matmul.fp32_precision == "tf32":
        return "tf32"
    if capability < 80:
        return "ieee"
    return "tf32x4" if gradient else "tf32x3"
