# SPDX-License-Identifier: Apache-2.0
"""Starts for training that are better than noise: a plain interpolation, or another model's weights."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditn.model import folding
from ditn.model.layers import ITL, SAL, UFONE, conv2d
from ditn.model.network import DITN, pad_to_grid
from ditn_kernels import dilated_gate, gated_ffn, image_head, inner_patch_attention, layers

Pairs = Iterable[tuple[Tensor, Tensor]]


@torch.no_grad()
def start_at_interpolation(model: DITN, pairs: Pairs) -> None:
    """Set the head and the tail so that the new model is the best linear 3x3 interpolation of `pairs`.

    The published network has no bicubic skip: a fresh one first has to learn to copy the image. Here the stream's
    first `in_channels` channels carry the image, and the tail's last convolution turns just these into the s * s
    pixels of each phase by the filter that least squares find on `pairs` (low [B, C, H, W], high [B, C, sH, sW], in
    0..1); one filter serves all colours. Everything else keeps its random start and joins in with training.

    Raises ValueError if the model's images have different numbers of channels in and out.
    """
    config = model.config
    channels, scale = config.in_channels, config.upscale
    if channels != config.out_channels or channels > config.dim:
        raise ValueError(
            f"interpolation needs as many output as input channels and no more than dim, "
            f"got {channels}, {config.out_channels} and {config.dim}"
        )
    gram, moment = torch.zeros(9, 9, dtype=torch.float64), torch.zeros(9, scale**2, dtype=torch.float64)
    for low, high in pairs:
        inner = low[..., 1:-1, 1:-1].shape[-2:]
        taps = F.unfold(low.flatten(0, 1).unsqueeze(1).double(), 3).transpose(1, 2).flatten(0, 1)
        phases = F.pixel_unshuffle(high.flatten(0, 1).unsqueeze(1).double(), scale)[..., 1:-1, 1:-1]
        phases = phases.reshape(-1, scale**2, inner.numel()).transpose(1, 2).flatten(0, 1)
        gram += taps.t() @ taps
        moment += taps.t() @ phases
    filters = _least_squares(gram, moment)

    copied = torch.arange(channels)
    head, body, last = (
        dict(conv.named_parameters()) for conv in (model.sft, model.conv_after_body, conv2d(model.upsample[0]))
    )
    head["weight"][:channels] = 0
    head["weight"][copied, copied, 1, 1] = 1
    head["bias"][:channels] = 0
    body["weight"][:channels] = 0
    body["bias"][:channels] = 0
    last["weight"].zero_()
    last["bias"].zero_()
    phases_of_colour = last["weight"].view(channels, scale**2, config.dim, 3, 3)
    phases_of_colour[copied, :, copied] = filters.t().reshape(scale**2, 3, 3).to(last["weight"].dtype)


@dataclass(frozen=True)
class TransferReport:
    """What became of another model's tensors: the keys that were taken, those of the new model that it has not, those
    that it has in another shape, and its own that the new model has no place for."""

    fits: tuple[str, ...]
    missing: tuple[str, ...]
    other_shape: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        """The tensors that were not taken, for the log and the metadata; of many only the first and the last."""
        parts = [f"{len(self.fits)} tensors"]
        for what, keys in (("new", self.missing), ("of another shape", self.other_shape), ("unused", self.unused)):
            if keys:
                few = ", ".join(keys) if len(keys) <= 4 else f"{len(keys)}, {keys[0]} to {keys[-1]}"
                parts.append(f"{what}: {few}")
        return "; ".join(parts)


@torch.no_grad()
def take_weights(model: DITN, source: DITN, pairs: Pairs) -> TransferReport:
    """Copy every tensor of `source` that `model` has under the same key in the same shape, and give the rest a start at
    which `model` computes as much of what `source` did as it can.

    A layer whose LayerNorms take the place of the source's tanh and 1x1 convolution comes close to it: the convolution
    is folded into what follows, and LayerNorm's weight and bias are the ones that come nearest to the tanh on `pairs`
    (low [B, C, H, W], high [B, C, sH, sW], in 0..1). Any other layer that is not wholly the source's, for it stands
    deeper than the source ends or is of another width, passes its input on: its branches end in zeros. Unless this
    makes `model` the same function as `source`, the tail's last convolution becomes the one that turns the features
    into `pairs` with the least squared error.

    Raises ValueError if the channels of images or stream differ, for then no layer fits.
    """
    for name in ("dim", "in_channels"):
        have, need = getattr(source.config, name), getattr(model.config, name)
        if have != need:
            raise ValueError(f"weights with {name} {have} cannot start a model with {name} {need}")
    theirs, ours = source.state_dict(), model.state_dict()
    fits = tuple(key for key in ours if key in theirs and theirs[key].shape == ours[key].shape)
    report = TransferReport(
        fits=fits,
        missing=tuple(key for key in ours if key not in theirs),
        other_shape=tuple(key for key in ours if key in theirs and key not in fits),
        unused=tuple(key for key in theirs if key not in ours),
    )
    model.load_state_dict({key: theirs[key] for key in fits}, strict=False)
    pairs = list(pairs)
    new: list[str] = []
    other_norms: list[str] = []
    for name, layer in _layers(model):
        lacking = [key for key in layer.state_dict() if f"{name}.{key}" not in fits]
        if not lacking:
            continue
        if all(key.startswith("norm") for key in lacking):
            other_norms.append(name)
        else:
            _pass_on(layer)
        if len(lacking) == len(layer.state_dict()):
            new.append(f"{name}.")
    if other_norms:
        _replace_tanh(model, source, other_norms, pairs)
    same = all(key.startswith(tuple(new)) for key in report.missing)
    if report.other_shape or report.unused or not same:
        _fit_tail(model, pairs)
    return report


def blended(model: DITN, source: DITN, share: float) -> DITN:
    """A copy of the model whose weights are `share` parts of the source's and the rest of its own.

    Raises ValueError if the networks differ.
    """
    if model.config != source.config:
        raise ValueError(f"weights of {source.config} cannot be blended into {model.config}")
    twin, theirs = copy.deepcopy(model), source.state_dict()
    twin.load_state_dict(
        {key: tensor.lerp(theirs[key].to(tensor), share) for key, tensor in model.state_dict().items()}
    )
    return twin


def _layers(model: DITN) -> Iterator[tuple[str, ITL | SAL]]:
    """Every layer with its name, in the order in which they run."""
    for name, module in model.UFONE.named_modules(prefix="UFONE"):
        if isinstance(module, ITL | SAL):
            yield name, module


def _pass_on(layer: ITL | SAL) -> None:
    """Make the layer the identity."""
    ends = [*layer.ffn.project_out.parameters()]
    ends += [*layer.attn.project_out.parameters()] if isinstance(layer, ITL) else [layer.SDA.scale]
    for parameter in ends:
        parameter.zero_()


def _replace_tanh(model: DITN, source: DITN, names: Sequence[str], pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Give the named layers the LayerNorms and first weights that come nearest to the source's.

    The source computes W (A tanh(x) + c), with A and c of its 1x1 convolution; here it is (W A) (gamma * u + beta),
    with u the normalised x. So gamma * u + beta has to follow tanh(x) + inv(A) c: the first term by a regression in
    each channel over all pixels of `pairs`, the second exactly, where A has an inverse.
    """
    moments = {name: torch.zeros(2, 4, source.config.dim, dtype=torch.float64) for name in names}
    for low, _ in pairs:
        for name, *streams in _into_norms(source, low):
            if name not in moments:
                continue
            for moment, stream in zip(moments[name], streams, strict=True):
                x = stream.movedim(1, -1).flatten(0, -2).double()
                tanh, unit = x.tanh(), F.layer_norm(x, x.shape[-1:])
                moment += torch.stack([tanh, unit, tanh * unit, unit * unit]).mean(1) / len(pairs)
    ours, theirs = dict(_layers(model)), dict(_layers(source))
    for name in names:
        sides = (zip(layer.norms(), _behind_norms(layer), strict=True) for layer in (ours[name], theirs[name]))
        for (norm, first), (conv, behind), moment in zip(*sides, moments[name], strict=True):
            tanh, unit, product, square = moment
            gamma = (product - tanh * unit) / (square - unit * unit)
            matrix, bias = (parameter.double().squeeze() for parameter in conv.parameters())
            norm.weight.copy_(gamma)
            norm.bias.copy_(tanh - gamma * unit + torch.linalg.pinv(matrix, rtol=1e-4) @ bias)
            first.weight.copy_((behind.weight.flatten(1).double() @ matrix).view_as(first.weight))


def _into_norms(model: DITN, image: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Each layer's name and the streams in front of its two norms, [B, C, H, W]."""
    config = model.config
    x = image_head(pad_to_grid(image, config.grid), *folding.conv3x3(model.sft))
    for number, ufone in enumerate(cast(Iterable[UFONE], model.UFONE)):
        for index, itl in enumerate(cast(Iterable[ITL], ufone.ITLs)):
            (weights,), options = layers(ITL.fold([itl])), (config.norm, config.patch_size)
            middle = inner_patch_attention(x, weights.attention, *options)
            yield f"UFONE.{number}.ITLs.{index}", x, middle
            x = gated_ffn(middle, weights.ffn, *options)
        for index, sal in enumerate(cast(Iterable[SAL], ufone.SALs)):
            (gated,) = layers(SAL.fold([sal]))
            middle = dilated_gate(x, gated.gate, config.norm)
            yield f"UFONE.{number}.SALs.{index}", x, middle
            x = gated_ffn(middle, gated.ffn, config.norm, 0)
        if ufone.conv is not None:
            x = image_head(x, *folding.conv3x3(ufone.conv))


def _behind_norms(layer: ITL | SAL) -> tuple[nn.Module, nn.Module]:
    """The linear maps that follow the two norms."""
    return layer.attn.qkv if isinstance(layer, ITL) else layer.SDA.proj_first[0], layer.ffn.project_in


def _fit_tail(model: DITN, pairs: Pairs) -> None:
    """Set the tail's last convolution to the least squares solution on `pairs`, given everything before it."""
    config, last = model.config, conv2d(model.upsample[0])
    # The same network with the features for its image: what goes into the last convolution.
    probe = DITN(config=replace(config, upscale=1, out_channels=config.dim), fused=model.fused)
    probe.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("upsample.")}, strict=False)
    torch.nn.init.dirac_(conv2d(probe.upsample[0]).weight)
    torch.nn.init.zeros_(cast(Tensor, conv2d(probe.upsample[0]).bias))
    probe.requires_grad_(False)
    taps = 9 * config.dim + 1
    gram = torch.zeros(taps, taps, dtype=torch.float64)
    moment = torch.zeros(taps, last.out_channels, dtype=torch.float64)
    for low, high in pairs:
        seen = F.unfold(probe(low).contiguous().double(), 3).transpose(1, 2).flatten(0, 1)
        seen = torch.cat([seen, seen.new_ones(len(seen), 1)], dim=1)
        wanted = F.pixel_unshuffle(high.double(), config.upscale)[..., 1:-1, 1:-1]
        gram += seen.t() @ seen
        moment += seen.t() @ wanted.flatten(2).transpose(1, 2).flatten(0, 1)
    solution = _least_squares(gram, moment)
    last.weight.copy_(solution[:-1].t().reshape(last.weight.shape))
    cast(Tensor, last.bias).copy_(solution[-1])


def _least_squares(gram: Tensor, moment: Tensor) -> Tensor:
    """The solution of the normal equations, with a ridge that keeps directions which the data do not show at 0."""
    ridge = 1e-6 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    return cast(Tensor, torch.linalg.solve(gram + ridge, moment))
