# SPDX-License-Identifier: Apache-2.0
"""The network: pad, head, UFONEs, tail, crop."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ditn.model import folding
from ditn.model.config import DITNConfig
from ditn.model.layers import UFONE, Operands, UFONEOperands, conv2d, implementation
from ditn.model.variants import VARIANTS
from ditn_kernels import image_head, image_tail


class ModelOperands(NamedTuple):
    head: Operands
    ufones: tuple[UFONEOperands, ...]
    tail: Operands


class DITN(nn.Module):
    """DITN (ACM MM 2023, "Unfolding Once is Enough"): images [B, 3, H, W] in 0..1 -> [B, 3, H * s, W * s].

    Any size from 1x1, any batch, contiguous or channels-last, float64, float32, float16 or bfloat16; the parameters'
    dtype, unless under autocast. The result is channels-last in memory and not clamped. Without arguments this is the
    paper's DITN at x4; `DITN_Tiny` and `DITN_Real` are the other two, and any field of DITNConfig can be named:
    `DITN(2, ufones=1)`.

    fused=True runs the operators of `ditn_kernels` by the fastest backend that can; fused=False runs their plain
    PyTorch definitions, of which autograd can take derivatives of any order. State-dict keys are the published ones.

    The operators' weights are folded from the parameters (see `folding`): on every call while a gradient is wanted,
    otherwise once, in float64 on the CPU, and again after a parameter has changed. A write that hides from PyTorch's
    version counter, such as one through `.data`, needs `refold()` afterwards. A graph made by `torch.compile` holds
    the folded weights as constants until `refold()`, `load_state_dict`, `train()`, `eval()` or `to()`.

    Raises ValueError or TypeError that names the value, for a bad field, shape or dtype.
    """

    defaults = VARIANTS["ditn"]

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
        head, ufones, tail = self.operands()
        image = pad_to_grid(image, self.config.grid).contiguous(memory_format=torch.channels_last)
        make_skip = partial(implementation(image_head, self.fused), image, *head)
        x = make_skip()
        # The head is a 250th of a network's work and its map a quarter of the memory: where no gradient wants it, it is
        # rather made twice.
        skip = x if torch.is_grad_enabled() or not self.fused else None
        for ufone, operands in zip(self.UFONE, ufones, strict=True):
            for step in cast(UFONE, ufone).steps(operands):
                x = step(x)
        y = implementation(image_tail, self.fused)(x, make_skip() if skip is None else skip, *tail, scale)
        return crop(y, height * scale, width * scale)

    def fold(self) -> ModelOperands:
        """The operators' weights, differentiable in the parameters."""
        return ModelOperands(
            head=folding.conv3x3(self.sft),
            ufones=tuple(cast(UFONE, ufone).fold() for ufone in self.UFONE),
            tail=(*folding.conv3x3(self.conv_after_body), *folding.conv3x3(conv2d(self.upsample[0]))),
        )

    def operands(self) -> ModelOperands:
        """The operators' weights: with a graph behind them where a gradient is wanted, else the folded constants."""
        if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.parameters()):
            return self.fold()
        if torch.compiler.is_exporting():
            # Export traces stand-ins for the parameters, whose versions say nothing.
            return self.fold() if self._folded is None else self._folded
        return self._constants(self._generation)

    def frozen(self) -> DITN:
        """A copy for export, with the folded weights and without parameters."""
        twin = copy.deepcopy(self).requires_grad_(False).eval()
        folded = twin.operands()
        for part in twin.modules():
            part._parameters.clear()
        twin._folded = folded
        return twin

    def refold(self) -> None:
        """Forget the folded weights. Needed only after writes that bypass the version counter."""
        self._generation = getattr(self, "_generation", 0) + 1
        self._folded: ModelOperands | None = None
        self._folded_from: list[Any] = []

    def _constants(self, generation: int) -> ModelOperands:
        """The folded weights, folded again if a parameter is another or has changed. A compiled graph keeps them and is
        guarded by `generation`."""
        source = [(p, 0 if p.is_inference() else p._version, p.dtype, p.device) for p in self.parameters()]
        unchanged = len(source) == len(self._folded_from) and all(
            now[0] is then[0] and now[1:] == then[1:] for now, then in zip(source, self._folded_from, strict=True)
        )
        if self._folded is None or not unchanged:
            with torch.no_grad():
                # A copy, not a new model, whose initialisation would draw from the caller's random numbers.
                wide = copy.deepcopy(self).to("cpu", torch.float64).requires_grad_(False)
                dtype, device = self.sft.weight.dtype, self.sft.weight.device
                self._folded = _map(wide.fold(), lambda t: t.to(device=device, dtype=dtype).contiguous())
            self._folded_from = source
        return self._folded

    # All that torch.compiler.assume_constant_result does; itself, it would import the compiler, and Triton with it.
    _constants._dynamo_marked_constant = True  # type: ignore[attr-defined]

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
        return self.__dict__ | {"_folded": None, "_folded_from": []}


class DITN_Tiny(DITN):
    """DITN-Tiny: one UFONE, LayerNorm. Otherwise as DITN."""

    defaults = VARIANTS["ditn-tiny"]


class DITN_Real(DITN):
    """DITN-Real: one UFONE, tanh and a 1x1 convolution for LayerNorm: the published code. Otherwise as DITN."""

    defaults = VARIANTS["ditn-real"]


def pad_to_grid(image: Tensor, grid: int) -> Tensor:
    """Pad right and bottom to multiples of `grid` by reflection without repeating the edge, back and forth as often as
    it takes (numpy's "reflect"); a single pixel is repeated."""
    # Not as -(-size // grid): exported to ONNX, a division of negative numbers rounds to zero.
    rows, columns = (_reflected(size, (size + grid - 1) // grid * grid, image.device) for size in image.shape[-2:])
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


def _map(operands: ModelOperands, convert: Any) -> ModelOperands:
    def each(group: Operands) -> Operands:
        return tuple(map(convert, group))

    return ModelOperands(
        each(operands.head), tuple(UFONEOperands(*map(each, ufone)) for ufone in operands.ufones), each(operands.tail)
    )
