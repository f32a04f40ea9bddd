# SPDX-License-Identifier: Apache-2.0
"""The network: pad, head, UFONEs, tail, crop."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditn.model import folding
from ditn.model.config import DITNConfig
from ditn.model.constants import Snapshot, constant, has_values, widened
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


@dataclass(eq=False)
class Kept:
    """Folded weights, what they were folded from and the operators that were prepared with them. It is one object, lest
    a thread see the weights of one time beside the operators of another."""

    weights: ModelWeights
    source: Snapshot
    generation: int
    program: Program | None = None


class DITN(nn.Module):
    """DITN (ACM MM 2023, "Unfolding Once is Enough"): images [B, 3, H, W] in 0..1 -> [B, 3, H * s, W * s].

    Any size from 1x1, any batch, contiguous or channels-last, float64, float32, float16 or bfloat16; the parameters'
    dtype, unless under autocast. The result is channels-last in memory and not clamped. Without arguments this is the
    paper's DITN at x4; `DITN_Tiny` and `DITN_Real` are the other two, and any field of DITNConfig can be named:
    `DITN(2, ufones=1)`.

    fused=True runs the operators of `ditn_kernels` by the fastest backend that can; fused=False runs their plain
    PyTorch definitions, of which autograd can take derivatives of any order. State-dict keys are the published ones.

    The operators' weights are folded from the parameters (see `folding`): on every call while a gradient is wanted,
    torch.func is at work or a program is exported, and in replicas; otherwise once, in float64 on the CPU, and again
    after a parameter has changed. A write that hides from PyTorch's version counter, such as one through `.data`, needs
    `refold()` afterwards. A graph made by `torch.compile` holds the folded weights as constants until `refold()`,
    `load_state_dict`, `train()`, `eval()` or `to()`. The inner layers are not called, and hooks on them do not run;
    those by which `torch.nn.utils` makes a layer's weight, such as `prune`'s, do.

    Raises ValueError or TypeError that names the value, for a bad field, shape or dtype, and TypeError that names the
    layer, for one in whose place stands what computes more than its weight and bias.
    """

    defaults = VARIANTS["ditn"]
    # How often everything that was folded was to be forgotten, and what was folded last.
    _generation = 0
    _kept: Kept | None = None
    # Set on replicas by torch.nn.DataParallel.
    _is_replica = False

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
        try:
            tail = (*folding.conv3x3(self.conv_after_body), *folding.conv3x3(conv2d(self.upsample[0])))
            return ModelWeights(
                head=folding.conv3x3(self.sft),
                ufones=tuple(cast(UFONE, ufone).fold() for ufone in self.UFONE),
                tail=TailWeights(*tail),
            )
        except folding.StrangeLayerError as error:
            names = [name for name, part in self.named_modules() if part is error.layer]
            raise TypeError(f"{', '.join(names)}: {error}") from error

    def folded(self) -> ModelWeights:
        """The operators' weights: with a graph behind them where a gradient is wanted, else the folded constants."""
        wanted = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.parameters())
        # A replica lives for one call, and shows no parameters.
        if wanted or self._is_replica:
            return self.fold()
        if torch.compiler.is_exporting():
            # Export traces stand-ins for the parameters, whose versions say nothing.
            return self.fold()
        if not torch.compiler.is_compiling() and is_transforming():
            # The parameters may have tangents, and what is made of them now is of no use later.
            return self.fold()
        return self._folded_again_if_changed(self._generation)

    def program(self) -> Program:
        """The operators with their weights, in the order of their calls."""
        weights = self.folded()
        if torch.compiler.is_compiling():
            return self._program(weights, fused)
        kept = self._kept
        if kept is None or weights is not kept.weights:
            return self._program(weights, fused)
        if kept.program is None:
            kept.program = self._program(weights, Prepared)
        return kept.program

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
        weights = twin.folded()
        for part in twin.modules():
            part._parameters.clear()
        twin.fold = lambda: weights  # type: ignore[method-assign]
        return twin

    def refold(self) -> None:
        """Forget the folded weights. Needed only after writes that bypass the version counter."""
        self._generation += 1
        self._kept = None

    def _folded_again_if_changed(self, generation: int) -> ModelWeights:
        """The folded weights, folded again if a parameter is another or has changed. A compiled graph keeps them and is
        guarded by `generation`."""
        kept = self._kept
        if kept is not None and kept.generation == generation and not kept.source.is_stale():
            return kept.weights
        source = Snapshot(self)  # before they are read: what another thread writes meanwhile is noticed
        # Not in inference mode, even if the caller is: autograd could not save what is made there for a later image.
        with torch.inference_mode(False), torch.no_grad():
            # A copy, not a new model, whose initialisation would draw from the caller's random numbers.
            wide = widened(self).fold()
            dtype, device = self.sft.weight.dtype, self.sft.weight.device
            weights = map_tensors(wide, lambda t: constant(t.to(device=device, dtype=dtype)))
        if has_values(weights.head.weight):
            self._kept = Kept(weights, source, generation)
        return weights

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

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        # What a parent's load_state_dict calls as well.
        self.refold()
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": None}


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
