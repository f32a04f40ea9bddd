# SPDX-License-Identifier: Apache-2.0
"""A kernel's trial: a small sample of its operator, computed twice and compared with float64 and plain PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from ditn_kernels._memory import is_out_of_memory
from ditn_kernels._op import Op, Sample
from ditn_kernels._tolerance import DRAWS_OF_A_NUMBER, why_not_as_good

# True during a trial: persistent kernels then start few programs, so that each takes several tiles.
on_trial: ContextVar[bool] = ContextVar("ditn_on_trial", default=False)

_IMAGES, _HEIGHT, _WIDTH = 3, 16, 80
# Triton specialises code for integers that are multiples of 16. Numbers of patches are quotients of both sides, hence
# more factors of 2 are kept.
_FACTOR = 64
_BITS = {2: torch.int16, 4: torch.int32}
_RAISES = "fails with"


def fault(op: Op, kernel: Callable[..., Any], args: Mapping[str, Any], *, backward: bool) -> str:
    """What is wrong with a kernel for calls with arguments like these, as a sentence without its subject; empty if
    nothing is.

    Raises what prevents the trial: full memory, an error of earlier work on the GPU.
    """
    # In a new thread none of the caller's modes holds: autocast, inference, tracing, `use_backend`, streams.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_fault, op, kernel, args, backward).result()


def may_pass(fault: str, device: torch.device) -> bool:
    """Whether a fault may be the machine's, and gone tomorrow: an exception, which may be for want of a compiler, of
    room on the disk or of a folder that can be written to; unless it has cost the process its GPU."""
    return fault.startswith(_RAISES) and alive(device)


def like(op: Op, args: Mapping[str, Any]) -> Sample:
    """A sample of the same kind as a call: its channels and options on a small map. The map has several images, patches
    of any size, tiles and pieces of rows. Its sides are multiples of the same powers of two as the call's, so that
    mostly the same code is compiled for both."""
    sizes = op.check(args)
    patch_size = args.get("patch_size") or 1
    sides = {axis: _side(sizes[axis], least, patch_size) for axis, least in (("H", _HEIGHT), ("W", _WIDTH))}
    options = {name: value for name, value in args.items() if name not in op.axes}
    return Sample("trial", {**sizes, **sides, "B": _IMAGES}, options)


def _side(size: int, least: int, patch_size: int) -> int:
    """A side of at least two patches and `least` pixels: an odd multiple of the power of two in the size."""
    step = math.lcm(math.gcd(size, _FACTOR), patch_size)
    return (-(-max(least, 2 * patch_size) // step) | 1) * step


def alive(device: torch.device) -> bool:
    """Whether the process can still use the GPU: after an illegal memory access it cannot."""
    try:
        _wait(device)
    except RuntimeError:
        return False
    return True


def _fault(op: Op, kernel: Callable[..., Any], args: Mapping[str, Any], backward: bool) -> str:
    on_trial.set(True)
    x = next(iter(args.values()))
    definition = op.backward if backward and op.backward else op.reference
    names = [f"d{name}" for name in op.axes] if backward else ["the result"]
    with torch.cuda.device(x.device) if x.device.type == "cuda" else nullcontext(), _usual_settings():
        _wait(x.device)
        draws = list(_draws(op, args, backward))
        try:
            runs = [[_tuple(kernel(*draw)) for draw in draws] for _ in range(2)]
            _wait(x.device)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            return f"{_RAISES} {type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        exact = [_tuple(definition(*(_wide(value) for value in draw))) for draw in draws]
        plain = [_tuple(definition(*draw)) for draw in draws]
        for i, name in enumerate(names):
            of_number = None if exact[0][i].numel() == 1 else 1
            y, wide, usual = (torch.stack([draw[i] for draw in of[:of_number]]) for of in (runs[0], exact, plain))
            if wrong := why_not_as_good(y, wide, usual, op.atol_of_max[x.dtype]):
                return f"computes wrongly: {name} {wrong}"
        for i, name in enumerate(names):
            if not all(_same_bits(first[i], second[i]) for first, second in zip(*runs, strict=True)):
                return f"is not repeatable: {name} has other bits when it is computed again"
    return ""


def _draws(op: Op, args: Mapping[str, Any], backward: bool) -> Iterator[tuple[Any, ...]]:
    """Arguments of the kernel."""
    sample, x = like(op, args), next(iter(args.values()))
    has_number = backward and any(args[name].numel() == 1 for name in op.axes)
    for seed in range(DRAWS_OF_A_NUMBER if has_number else 1):
        inputs = op.inputs(sample, dtype=x.dtype, device=x.device, seed=seed)
        if backward:
            generator = torch.Generator().manual_seed(seed)
            grad = torch.randn(op.output_shape(op.check(inputs), inputs), generator=generator, device="cpu").to(x)
            yield grad.contiguous(memory_format=torch.channels_last), *inputs.values()
        else:
            yield tuple(inputs.values())


@contextmanager
def _usual_settings() -> Iterator[None]:
    """Without TF32, which the user may have allowed: kernels are compared with full float32. PyTorch has an old and a
    new setting for products; both are restored. Also without the demand for deterministic algorithms, which plain
    PyTorch may not have."""
    products = torch.backends.cuda.matmul
    new = products.fp32_precision
    try:
        old = products.allow_tf32
    except RuntimeError:  # if they disagree
        old = False
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    products.allow_tf32 = False
    torch.use_deterministic_algorithms(False)
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        products.allow_tf32 = old
        products.fp32_precision = new
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _tuple(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else result


def _wide(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) else value


def _same_bits(first: Tensor, second: Tensor) -> bool:
    bits = _BITS[first.element_size()]
    return torch.equal(first.contiguous().view(bits), second.contiguous().view(bits))
