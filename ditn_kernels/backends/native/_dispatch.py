# SPDX-License-Identifier: Apache-2.0
"""How the compiled kernels are reached: through `torch.ops.ditn_native`, on the CPU and on GPUs."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ditn_kernels import _trial
from ditn_kernels._axes import is_map
from ditn_kernels._digest import digest
from ditn_kernels._records import flatten
from ditn_kernels._support import Support
from ditn_kernels.backends.native import _hopper, _libraries, _limits

if TYPE_CHECKING:
    from ditn_kernels._op import Op

NORM_CODES = {"none": 0, "tanh": 1, "layernorm": 2}


class _Compiled:
    """Kernels that are reached through `torch.ops.ditn_native`, which has an implementation for each device."""

    def auto_selectable(self, device: torch.device) -> bool:
        return True

    def kernel(self, op: Op, *, backward: bool) -> Callable[..., Any]:
        overload = getattr(torch.ops.ditn_native, f"{op.name}_backward" if backward else op.name).default

        def forward(*args: Any) -> Tensor:
            y: Tensor = overload(*map(_dense, op.axes.values(), args), *map(_code, args[len(op.axes) :]))
            return y.permute(0, 3, 1, 2)

        def gradients(grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
            tensors = map(_dense, op.axes.values(), args)
            found = overload(_dense("B C H W", grad), *tensors, *map(_code, args[len(op.axes) :]))
            return tuple(
                g.permute(0, 3, 1, 2) if is_map(axes) else g for axes, g in zip(op.axes.values(), found, strict=True)
            )

        return gradients if backward else forward

    def fall_back(self, op: Op, device: torch.device, dtype: torch.dtype) -> bool:
        return False

    def prepared(self, op: Op, arguments: Sequence[Any]) -> Callable[..., Tensor]:
        native = torch.ops.ditn_native
        run_prepared = native.run_prepared.default
        still = [_code(value.contiguous() if isinstance(value, Tensor) else value) for value in flatten(arguments)]
        handle = getattr(native, f"prepare_{op.name}").default(*still)

        def run(*maps: Tensor) -> Tensor:
            dense = [x.permute(0, 2, 3, 1).contiguous() for x in maps]
            y: Tensor = run_prepared(handle, dense[0], dense[-1])
            return y.permute(0, 3, 1, 2)

        weakref.finalize(run, native.release.default, handle).atexit = False
        return run


class CPlusPlus(_Compiled):
    """The backend "cpp": vectorised C++, for CPUs."""

    def support(self, operator: str) -> Support | None:
        return _limits.CPU.get(operator)

    def identity(self, op: Op, device: torch.device) -> None:
        return None

    def missing(self, op: Op, device: torch.device, *, backward: bool, dtype: torch.dtype | None = None) -> list[str]:
        reason = _libraries.why_missing()
        return [reason] if reason else []


class Cuda(_Compiled):
    """The backend "cuda": CUDA C++, for chips that Triton serves badly and for machines without Triton."""

    def support(self, operator: str) -> Support | None:
        return _limits.CUDA.get(operator)

    def missing(self, op: Op, device: torch.device, *, backward: bool, dtype: torch.dtype | None = None) -> list[str]:
        if reason := _libraries.why_no_cuda():
            return [reason]
        if device.type != "cuda":
            return []
        reasons, build = [], _libraries.build_info()["cuda"]
        capability, compiled = torch.cuda.get_device_capability(device), build["architectures"]
        if not _libraries.runs_on(compiled, capability):
            reasons.append(f"is built for {', '.join(compiled)}, the GPU is {capability[0]}.{capability[1]}")
        # It contains its own CUDA runtime, which may be newer than torch's and than the driver supports.
        major, minor = _libraries.driver()
        if major < int(build["toolkit"].split(".")[0]):
            reasons.append(f"is built with CUDA {build['toolkit']}, the driver is for CUDA {major}.{minor}")
        only_hopper = _limits.CUDA[op.name].forward_in if capability == _hopper.CAPABILITY else {}
        if not reasons and dtype in only_hopper and not _hopper.serves(op.name, device):
            reasons.append(f"has no kernel in {str(dtype).removeprefix('torch.')} but that for 9.0, which is off")
        return reasons

    def kernel(self, op: Op, *, backward: bool) -> Callable[..., Any]:
        run = super().kernel(op, backward=backward)

        def forward(*args: Any) -> Any:
            with _hopper.few_blocks(args[0].device) if _trial.on_trial.get() else nullcontext():
                return run(*args)

        return forward

    def identity(self, op: Op, device: torch.device) -> Mapping[str, str]:
        kernels = ["sm_90a" if _hopper.serves(name, device) else "all chips" for name in _hopper.whose(op.name)]
        return {"library": digest(_libraries.FOLDER / "_C_cuda.so"), "kernels": ", ".join(kernels)}

    def fall_back(self, op: Op, device: torch.device, dtype: torch.dtype) -> bool:
        # In a dtype in which there is no other kernel, that of float16 may still be right. What runs the kernels of
        # others leaves its work to them, who have proofs of their own.
        support = _limits.CUDA[op.name]
        if support.as_layers or dtype in support.forward_in or not _hopper.serves(op.name, device):
            return False
        _hopper.turn(op.name, device, on=False)
        return True


def _dense(axes: str, tensor: Tensor) -> Tensor:
    """What the kernels read: activations as [B, H, W, C], everything contiguous."""
    return (tensor.permute(0, 2, 3, 1) if is_map(axes) else tensor).contiguous()


def _code(option: Any) -> Any:
    return NORM_CODES[option] if isinstance(option, str) else option
