# SPDX-License-Identifier: Apache-2.0
"""The network: pad, head, UFONEs, tail, crop."""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditn.model import folding
from ditn.model.config import DITNConfig
from ditn.model.folding import ConvWeights
from ditn.model.layers import UFONE, Bind, Step, UFONEWeights, conv2d, fused, unfused
from ditn.model.variants import VARIANTS
from ditn_kernels import Prepared, TailWeights, image_head, image_tail, is_transforming, map_tensors


class ModelWeights(NamedTuple):
    """All that the operators of a network take besides maps and options."""

    head: ConvWeights
    ufones: tuple[UFONEWeights, ...]
    tail: TailWeights


class Program(NamedTuple):
    """A network as the calls of its operators: head(image), each of the body's on its result, tail(x, skip)."""

    head: Step
    body: tuple[Step, ...]
    tail: Step


class DITN(nn.Module):
    """DITN (ACM MM 2023, "Unfolding Once is Enough"): images [B, 3, H, W] in 0..1 -> [B, 3, H * s, W * s].

    Any size from 1x1, any batch, contiguous or channels-last, float64, float32, float16 or bfloat16; the parameters'
    dtype, unless under autocast. The result is channels-last in memory and not clamped. Without arguments this is the
    paper's DITN at x4; `DITN_Tiny` and `DITN_Real` are the other two, and any field of DITNConfig can be named:
    `DITN(2, ufones=1)`.

    fused=True runs the operators of `ditn_kernels` by the fastest backend that can; fused=False runs their plain
    PyTorch definitions, of which autograd can take derivatives of any order. State-dict keys are the published ones.

    The operators' weights are folded from the parameters (see `folding`): on every call while a gradient is wanted or
    torch.func is at work, otherwise once, in float64 on the CPU, and again after a parameter has changed. A write that
    hides from PyTorch's version counter, such as one through `.data`, needs `refold()` afterwards. A graph made by
    `torch.compile` holds the folded weights as constants until `refold()`, `load_state_dict`, `train()`, `eval()` or
    `to()`.

    Raises ValueError or TypeError that names the value, for a bad field, shape or dtype.
    """

    defaults = VARIANTS["ditn"]
    # The folded weights, what was prepared with them, and the parameters they were folded from.
    _constants: ModelWeights | None
    _prepared: Program | None
    _folded_from: Snapshot | None

    def __init__(
        self, upscale: int | None = None, *, fused: bool = True, config: DITNConfig | None = None, **fields: Any
    ) -> None:
        super().__init__()
        if upscale is not None:
            fields["upscale"] = upscale
        self.config = config = replace(config or self.defaults, **fields)
        self.sft = nn.Conv2d(config.in_channels, config.dim, 3, padding=1)
        self.UFONE = nn.Sequential(*(UFONE(config, fused=fused) for _ in range(config.ufones)))
        self.conv_after_body = nn.Conv2d(config.dim, config.dim, 3, padding=1)
        self.upsample = nn.Sequential(
            nn.Conv2d(config.dim, config.out_channels * config.upscale**2, 3, padding=1),
            nn.PixelShuffle(config.upscale),
        )
        self.fused = fused
        self.refold()

    def forward(self, image: Tensor) -> Tensor:
        self._check(image)
        height, width, scale = *image.shape[-2:], self.config.upscale
        head, body, tail = self.program()
        image = pad_to_grid(image, self.config.grid).contiguous(memory_format=torch.channels_last)
        x = head(image)
        skip = x if torch.is_grad_enabled() or self.keeps_head(image.device) else None
        for step in body:
            x = step(x)
        y = tail(x, head(image) if skip is None else skip)
        return crop(y, height * scale, width * scale)

    def keeps_head(self, device: torch.device) -> bool:
        """Whether the head's result is kept for the tail in inference, or made twice. It is a 250th of the work and its
        map a quarter of the memory. On a GPU there is memory enough, and the head, all reading and writing, takes a
        larger share of the time."""
        return not self.fused or device.type == "cuda"

    def fold(self) -> ModelWeights:
        """The operators' weights, differentiable in the parameters."""
        tail = (*folding.conv3x3(self.conv_after_body), *folding.conv3x3(conv2d(self.upsample[0])))
        return ModelWeights(
            head=folding.conv3x3(self.sft),
            ufones=tuple(cast(UFONE, ufone).fold() for ufone in self.UFONE),
            tail=TailWeights(*tail),
        )

    def folded(self) -> ModelWeights:
        """The operators' weights: with a graph behind them where a gradient is wanted, else the folded constants."""
        if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.parameters()):
            return self.fold()
        if torch.compiler.is_exporting():
            # Export traces stand-ins for the parameters, whose versions say nothing.
            return self._constants or self.fold()
        if not torch.compiler.is_compiling() and is_transforming():
            # The parameters may have tangents, and what is made of them now is of no use later.
            return self.fold()
        return self._folded_again_if_changed(self._generation)

    def program(self) -> Program:
        """The operators with their weights, in the order of their calls."""
        weights = self.folded()
        if torch.compiler.is_compiling() or weights is not self._constants:
            return self._program(weights, fused)
        if self._prepared is None:
            self._prepared = self._program(weights, Prepared)
        return self._prepared

    def _program(self, weights: ModelWeights, bind: Bind) -> Program:
        def chosen(part: nn.Module) -> Bind:
            return bind if part.fused else unfused

        ufones = zip(cast(Iterable[UFONE], self.UFONE), weights.ufones, strict=True)
        return Program(
            head=chosen(self)(image_head, *weights.head),
            body=tuple(step for ufone, parts in ufones for step in ufone.steps(parts, chosen(ufone))),
            tail=chosen(self)(image_tail, weights.tail, self.config.upscale),
        )

    def frozen(self) -> DITN:
        """A copy for export, with the folded weights and without parameters."""
        twin = copy.deepcopy(self).requires_grad_(False).eval()
        folded = twin.folded()
        for part in twin.modules():
            part._parameters.clear()
        twin._constants = folded
        return twin

    def refold(self) -> None:
        """Forget the folded weights. Needed only after writes that bypass the version counter."""
        self._generation = getattr(self, "_generation", 0) + 1
        self._constants = self._prepared = self._folded_from = None

    def _folded_again_if_changed(self, generation: int) -> ModelWeights:
        """The folded weights, folded again if a parameter is another or has changed. A compiled graph keeps them and is
        guarded by `generation`."""
        if self._constants is None or self._folded_from is None or self._folded_from.is_stale():
            self._folded_from, self._prepared = Snapshot(self), None
            with torch.no_grad():
                # A copy, not a new model, whose initialisation would draw from the caller's random numbers.
                wide = copy.deepcopy(self).to("cpu", torch.float64).requires_grad_(False)
                dtype, device = self.sft.weight.dtype, self.sft.weight.device
                self._constants = map_tensors(wide.fold(), lambda t: _constant(t.to(device=device, dtype=dtype)))
        return self._constants

    # All that torch.compiler.assume_constant_result does; itself, it would import the compiler, and Triton with it.
    _folded_again_if_changed._dynamo_marked_constant = True  # type: ignore[attr-defined]

    def _check(self, image: Tensor) -> None:
        channels = self.config.in_channels
        if image.dim() != 4 or image.shape[1] != channels:
            raise ValueError(f"expected an image batch [B, {channels}, H, W], got shape {list(image.shape)}")
        if not image.is_floating_point():
            raise TypeError(f"expected a floating-point image in 0..1, got {image.dtype}; divide uint8 by 255")
        if image.shape[2] == 0 or image.shape[3] == 0:
            raise ValueError(f"expected at least one pixel, got shape {list(image.shape)}")

    def train(self, mode: bool = True) -> DITN:
        self.refold()
        super().train(mode)
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> DITN:
        self.refold()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        self.refold()
        return super().load_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_constants": None, "_prepared": None, "_folded_from": None}


class DITN_Tiny(DITN):
    """DITN-Tiny: one UFONE, LayerNorm. Otherwise as DITN."""

    defaults = VARIANTS["ditn-tiny"]


class DITN_Real(DITN):
    """DITN-Real: one UFONE, tanh and a 1x1 convolution for LayerNorm: the published code. Otherwise as DITN."""

    defaults = VARIANTS["ditn-real"]


def plain_network(config: DITNConfig, state: Mapping[str, Tensor]) -> DITN:
    """The network in plain PyTorch for inference, with these very tensors as its parameters."""
    with torch.device("meta"):
        network = DITN(config=config, fused=False)
    network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(False)


def pad_to_grid(image: Tensor, grid: int) -> Tensor:
    """Pad right and bottom to multiples of `grid` by reflection without repeating the edge, back and forth as often as
    it takes (numpy's "reflect"); a single pixel is repeated."""
    height, width = image.shape[-2:]
    if not torch.compiler.is_compiling() and not (torch.is_grad_enabled() and image.requires_grad):
        # One launch, or none. Its gradient on a GPU would differ from run to run, and a graph be bound to the size.
        bottom, right = -height % grid, -width % grid
        if bottom < height and right < width:
            return F.pad(image, (0, right, 0, bottom), mode="reflect") if bottom or right else image
    # Not as -(-size // grid): exported to ONNX, a division of negative numbers rounds to zero.
    rows, columns = (_reflected(size, (size + grid - 1) // grid * grid, image.device) for size in (height, width))
    return image.index_select(-2, rows).index_select(-1, columns)


def crop(image: Tensor, height: int, width: int) -> Tensor:
    """The top left height x width pixels."""
    if torch.compiler.is_exporting():
        # A slice would be traced as "shortens" or "does not", and the graph would run on or off the grid only.
        rows, columns = (torch.arange(size, device=image.device) for size in (height, width))
        return image.index_select(-2, rows).index_select(-1, columns)
    return image[..., :height, :width]


def _reflected(size: int, padded: int, device: torch.device) -> Tensor:
    """The source index of each of `padded` pixels."""
    # A tensor: not every exporter knows a remainder by a number that depends on the size.
    period = torch.full((), 2 * size - 2, device=device).clamp_min(1)
    index = torch.arange(padded, device=device) % period
    return torch.minimum(index, (period - index) % period)


def _constant(tensor: Tensor) -> Tensor:
    """The tensor, contiguous. torch.compile(dynamic=True) is not to take its sizes for variables: the attribute is all
    that torch._dynamo.mark_static sets, which itself would import the compiler."""
    tensor = tensor.contiguous()
    tensor._dynamo_static_indices = set(range(tensor.dim()))  # type: ignore[attr-defined]
    return tensor


class Snapshot:
    """A module's submodules, parameters and their versions at one time. To see whether any of them is another now takes
    a hundredth of the time that walking the module takes."""

    def __init__(self, module: nn.Module) -> None:
        parts = list(module.modules())
        self._children = [part._modules for part in parts if part._modules]
        self._children_then = [dict(children) for children in self._children]
        self._slots = [(part._parameters, name) for part in parts for name in part._parameters]
        self._parameters = self._now()
        present = [parameter for parameter in self._parameters if parameter is not None]
        self._present = present
        # An inference tensor counts no versions, and cannot be written to outside inference mode.
        self._counting = [parameter for parameter in present if not parameter.is_inference()]
        self._state = self._state_now()

    def is_stale(self) -> bool:
        """Whether a submodule or parameter was exchanged, or a parameter written to or converted."""
        return (
            self._children != self._children_then
            or not all(map(operator.is_, self._now(), self._parameters))
            or self._state_now() != self._state
        )

    def _now(self) -> list[Tensor | None]:
        return [slots.get(name) for slots, name in self._slots]

    def _state_now(self) -> tuple[list[Any], ...]:
        versions = [parameter._version for parameter in self._counting]
        return versions, [parameter.dtype for parameter in self._present], [p.device for p in self._present]
