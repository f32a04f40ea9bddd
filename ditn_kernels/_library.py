# SPDX-License-Identifier: Apache-2.0
"""Makes each operator a `torch.library` operator. The only file that talks to torch.library.

`ditn::<op>` and `ditn::<op>_backward` choose their backend inside, so `torch.compile` and `torch.export` see one
node, and a forced backend takes effect in graphs that were compiled before. They are registered with `Library.define`
and `impl`, which cost half as much per call as the `custom_op` decorator.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter
from typing import Any

import torch
from torch import Tensor

from ditn_kernels._axes import is_map
from ditn_kernels._dispatch import DECOMPOSED, forced_backend, select
from ditn_kernels._op import Op
from ditn_kernels.backends import BACKENDS

_library = torch.library.Library("ditn", "DEF")
_AUTOCAST_DEVICES = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}


def register(op: Op) -> None:
    """Define `ditn::<op>`, its fake, autocast and, unless it is for inference only, its gradient."""
    arguments = _schema_arguments(op)
    _library.define(f"{op.name}({arguments}) -> Tensor")
    _library.impl(op.name, _runner(op, backward=False), "CompositeExplicitAutograd")
    torch.library.register_fake(f"ditn::{op.name}", _fake(op), lib=_library)
    torch.library.register_vmap(f"ditn::{op.name}", _no_vmap(op), lib=_library)
    for device, key in _AUTOCAST_DEVICES.items():
        _library.impl(op.name, _autocast(op, device, key), key)
    if op.backward is None:
        _library.impl(op.name, _differentiable(op), "Autograd")
        return
    gradients = ", ".join(["Tensor"] * len(op.axes))
    _library.define(f"{op.name}_backward(Tensor grad, {arguments}) -> ({gradients})")
    _library.impl(f"{op.name}_backward", _runner(op, backward=True), "CompositeExplicitAutograd")
    torch.library.register_fake(f"ditn::{op.name}_backward", _fake_backward(op), lib=_library)
    torch.library.register_autograd(f"ditn::{op.name}_backward", _no_double_backward(op), lib=_library)
    torch.library.register_autograd(f"ditn::{op.name}", _backward(op), setup_context=_save_inputs(op), lib=_library)


def _schema_arguments(op: Op) -> str:
    options = [
        f"{op.parameters[name].__name__} {name}" + ("" if default is Parameter.empty else f"={default!r}")
        for name, default in op.options.items()
    ]
    return ", ".join([*(f"Tensor {name}" for name in op.axes), *options, "*", "str? backend=None"])


def _runner(op: Op, *, backward: bool) -> Callable[..., Any]:
    def run(*args: Any, backend: str | None = None, **options: Any) -> Any:
        grads, inputs = (args[:1], args[1:]) if backward else ((), args)
        named = op.named(inputs, options)
        op.check(named)
        name = select(op, named, backend=backend, backward=backward)
        if name == DECOMPOSED and op.decomposition is not None:
            result = op.decomposed(*named.values(), backend=backend)
        else:
            result = BACKENDS[name].kernel(op, backward=backward)(*grads, *named.values())
        if backward:
            return tuple(map(_laid_out, op.axes.values(), result))
        return result.contiguous(memory_format=torch.channels_last)

    return run


def _fake(op: Op) -> Callable[..., Tensor]:
    def fake(*args: Any, backend: str | None = None, **options: Any) -> Tensor:
        named = op.named(args, options)
        shape = op.output_shape(op.check(named), named)
        return torch.empty(shape, dtype=args[0].dtype, device=args[0].device, memory_format=torch.channels_last)

    return fake


def _fake_backward(op: Op) -> Callable[..., tuple[Tensor, ...]]:
    def fake(grad: Tensor, *args: Any, backend: str | None = None, **options: Any) -> tuple[Tensor, ...]:
        named = op.named(args, options)
        return tuple(_laid_out(axes, torch.empty_like(named[name])) for name, axes in op.axes.items())

    return fake


def _autocast(op: Op, device: str, key: str) -> Callable[..., Tensor]:
    excluded = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def cast_and_call(*args: Any, backend: str | None = None, **options: Any) -> Tensor:
        dtype = torch.get_autocast_dtype(device)
        with torch._C._ExcludeDispatchKeyGuard(excluded):
            cast = [arg.to(dtype) if isinstance(arg, Tensor) and arg.dtype == torch.float32 else arg for arg in args]
            return op(*cast, backend=backend, **options)

    return cast_and_call


def _save_inputs(op: Op) -> Callable[..., None]:
    tensors = len(op.axes)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:tensors])
        ctx.options = inputs[tensors:]
        # The gradient may be asked for after a `use_backend` block has ended, or on autograd's own thread.
        ctx.backend = forced_backend(keyword_only_inputs["backend"])

    return setup_context


def _backward(op: Op) -> Callable[..., tuple[Tensor | None, ...]]:
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        overload = getattr(torch.ops.ditn, f"{op.name}_backward").default
        gradients = overload(grad, *ctx.saved_tensors, *ctx.options, backend=ctx.backend)
        return (*gradients, *(None for _ in ctx.options))

    return backward


def _differentiable(op: Op) -> Callable[..., Tensor]:
    """A stage has no gradient of its own: where one is wanted, its decomposition runs, which autograd sees."""
    if op.decomposition is None:
        raise TypeError(f"{op.name} has neither a backward nor a decomposition")

    def run(*args: Any, backend: str | None = None, **options: Any) -> Tensor:
        if torch.is_grad_enabled() and any(isinstance(arg, Tensor) and arg.requires_grad for arg in args):
            return op.decomposed(*args, backend=backend, **options)
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args, **options, backend=backend)

    return run


def _no_double_backward(op: Op) -> Callable[..., Any]:
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise NotImplementedError(
            f"{op.name} can be differentiated once only; for second derivatives use fused=False, "
            f"or {op.name}.reference, which plain autograd can differentiate any number of times"
        )

    return backward


def _no_vmap(op: Op) -> Callable[..., Any]:
    """Without this rule PyTorch would run the operator once for each element and only warn that this is slow."""

    def vmap(info: Any, in_dims: Any, *args: Any, **options: Any) -> Any:
        raise NotImplementedError(
            f"{op.name} cannot be mapped by torch.func.vmap: its first axis is a batch already, so put the mapped axis "
            f"into that; {op.name}.reference is plain PyTorch, which vmap can map"
        )

    return vmap


def _laid_out(axes: str, gradient: Tensor) -> Tensor:
    """Gradients of activations are channels-last, like the activations; those of weights are contiguous."""
    return gradient.contiguous(memory_format=torch.channels_last if is_map(axes) else torch.contiguous_format)
