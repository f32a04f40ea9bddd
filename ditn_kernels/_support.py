# SPDX-License-Identifier: Apache-2.0
"""What a backend can run of an operator, as data that gives every reason why not. Each backend has a table of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Support:
    """What one backend can run of one operator. An empty field means no restriction.

    `min_capability` is a CUDA compute capability, (8, 0) for Ampere; gradients may need a newer chip,
    `min_capability_backward`. Chips from `before_capability` on cannot run it. `backward` are the dtypes that have
    gradients; `max_channels_backward_of` limits the channels of gradients in single dtypes. `max_outputs` limits the
    length of the operator's last bias, and `max_outputs_backward` that of gradients, if that is less; `max_expanded`
    the hidden channels, which are the rows of its last weight. `forward_in`: what the forward can run in further
    dtypes, by kernels of their own. `auto`: what it may be chosen for automatically, without being forced, if that is
    less. `as_layers`: that it runs the kernels of a stage's layers, and may be chosen automatically only where each of
    these would be.
    """

    devices: tuple[str, ...] = ()
    dtypes: tuple[torch.dtype, ...] = ()
    backward: tuple[torch.dtype, ...] = ()
    max_channels: int | None = None
    patch_sizes: tuple[int, ...] = ()
    min_capability: tuple[int, int] | None = None
    min_capability_backward: tuple[int, int] | None = None
    before_capability: tuple[int, int] | None = None
    max_channels_backward_of: Mapping[torch.dtype, int] = field(default_factory=dict)
    max_outputs: int | None = None
    max_outputs_backward: int | None = None
    max_expanded: int | None = None
    forward_in: Mapping[torch.dtype, Support] = field(default_factory=dict)
    auto: Support | None = None
    as_layers: bool = False

    def why_not_on(self, capability: tuple[int, int], *, backward: bool) -> list[str]:
        """Every reason why a chip of this compute capability cannot run it; empty if it can."""
        needed = (backward and self.min_capability_backward) or self.min_capability
        if needed is not None and capability < needed:
            return [f"needs compute capability {needed}, the GPU has {capability}"]
        if self.before_capability is not None and capability >= self.before_capability:
            return [f"is for GPUs before compute capability {self.before_capability}, this one has {capability}"]
        return []

    def has_kernel(self, dtype: torch.dtype, capability: tuple[int, int], *, backward: bool) -> bool:
        """Whether any kernel computes this dtype on such a GPU."""
        if dtype in self.forward_in and not backward:
            return self.forward_in[dtype].has_kernel(dtype, capability, backward=False)
        dtypes = self.backward if backward else self.dtypes
        on_gpus = not self.devices or "cuda" in self.devices
        known = dtype in dtypes or not (dtypes or backward)
        return on_gpus and known and not self.why_not_on(capability, backward=backward)

    def why_not(self, args: Mapping[str, Any], *, backward: bool) -> list[str]:
        """Every reason why these arguments cannot run here; empty if they can."""
        x = next(iter(args.values()))
        if x.dtype in self.forward_in and not backward:
            return self.forward_in[x.dtype].why_not(args, backward=False)
        dtypes = self.backward if backward else self.dtypes
        reasons = []
        if self.devices and x.device.type not in self.devices:
            reasons.append(f"runs on {' or '.join(self.devices)}, the input is on {x.device.type}")
        if backward and not dtypes:
            reasons.append("has no backward kernel")
        elif dtypes and x.dtype not in dtypes:
            names = ", ".join(_dtype_name(dtype) for dtype in dtypes)
            kind = "differentiates" if backward else "computes"
            reasons.append(f"{kind} {names}, the input is {_dtype_name(x.dtype)}")
        limits = self.max_channels_backward_of if backward else {}
        most = limits.get(x.dtype, self.max_channels)
        if most is not None and x.shape[1] > most:
            reasons.append(f"takes at most {most} channels, the input has {x.shape[1]}")
        tensors = [arg for arg in args.values() if isinstance(arg, Tensor)]
        outputs = tensors[-1].shape[-1]
        most = (backward and self.max_outputs_backward) or self.max_outputs
        if most is not None and outputs > most:
            verb = "differentiates" if backward else "makes"
            reasons.append(f"{verb} at most {most} outputs per pixel, asked for {outputs}")
        if self.max_expanded is not None and (expanded := tensors[-2].shape[-2]) > self.max_expanded:
            reasons.append(f"takes at most {self.max_expanded} hidden channels, asked for {expanded}")
        patch_size = args.get("patch_size")
        if self.patch_sizes and patch_size is not None and patch_size not in self.patch_sizes:
            reasons.append(f"takes patch sizes {', '.join(map(str, self.patch_sizes))}, asked for {patch_size}")
        if x.device.type == "cuda":
            reasons += self.why_not_on(torch.cuda.get_device_capability(x.device), backward=backward)
        return reasons


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
