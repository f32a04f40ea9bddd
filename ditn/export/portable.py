# SPDX-License-Identifier: Apache-2.0
"""The network as a graph for other runtimes: standard operators on folded weights, any batch, height and width.

It computes what `DITN` does. How it is written down was chosen by timing ONNX Runtime and OpenVINO on a CPU:

- 1x1 layers are convolutions of [B, C, H, W], which either runtime keeps in a layout of its own from layer to layer;
- channels are padded with zeros to multiples of 8, those of the stream where the norm keeps them zero, as tanh does;
- both halves of a gated product, and queries, keys and values, have convolutions of their own: splitting one result
  would copy it;
- patches are a batch of small maps, cut by two transposes of four axes, and attention is batched products of them;
- elementwise work is little, and on long rows: where sizes are free, OpenVINO does it node by node;
- means over channels are 1x1 convolutions, which stay in that layout.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditn.model.network import DITN, crop, pad_to_grid
from ditn_kernels import AttentionWeights, FfnWeights, GateWeights, layers

_BLOCK = 8
_DILATION = 3

# Weight and bias as torch's convolution takes them.
_Conv = tuple[Tensor, Tensor]


class Portable(nn.Module):
    """Images [B, C, H, W] in 0..1, of the model's dtype -> [B, C, H * s, W * s], as the model gives. For inference."""

    def __init__(self, model: DITN) -> None:
        super().__init__()
        self.inside = OnGrid(model)

    def forward(self, image: Tensor) -> Tensor:
        height, width, config = *image.shape[-2:], self.inside.config
        enlarged = self.inside(pad_to_grid(image, config.grid))
        return crop(enlarged, height * config.upscale, width * config.upscale)


class OnGrid(nn.Module):
    """`Portable` without padding and cropping: height and width are multiples of the grid."""

    def __init__(self, model: DITN) -> None:
        super().__init__()
        config = model.config
        dim, width = config.dim, _blocks(config.dim)
        stream = width if config.norm == "tanh" else dim
        self.config = config
        head, ufones, tail = model.folded()
        self.head = _conv3x3(head, config.in_channels, stream)
        self.body = _conv3x3((tail.body_weight, tail.body_bias), stream, stream)
        self.up = _conv3x3((tail.up_weight, tail.up_bias), stream, len(tail.up_bias))
        self.ufones = nn.ModuleList()
        for itls, sals, conv in ufones:
            inner = [
                nn.Sequential(
                    _Attention(config.norm, dim, stream, i == 0, attention), _FeedForward(config.norm, stream, ffn)
                )
                for i, (attention, ffn) in enumerate(layers(itls) if itls else ())
            ]
            spatial = [
                nn.Sequential(_Gate(config.norm, width, stream, gate), _FeedForward(config.norm, stream, ffn))
                for gate, ffn in (layers(sals) if sals else ())
            ]
            last = [_Convolution(_conv3x3(conv, stream, stream))] if conv else []
            self.ufones.append(nn.ModuleList([nn.Sequential(*inner), nn.Sequential(*spatial, *last)]))

    def forward(self, image: Tensor) -> Tensor:
        x = skip = F.conv2d(image, *self.head, padding=1)
        for stages in self.ufones:
            inner, spatial = cast(nn.ModuleList, stages)
            if self.config.itls:
                x = from_patches(inner(to_patches(x, self.config.patch_size)), x, self.config.patch_size)
            x = spatial(x)
        deep = F.conv2d(x, *self.body, padding=1) + skip
        return F.pixel_shuffle(F.conv2d(deep, *self.up, padding=1), self.config.upscale)


class _Layer(nn.Module):
    """What follows a norm; `weight` [C, ..] is applied to it."""

    def __init__(self, norm: str, weight: Tensor) -> None:
        super().__init__()
        self.norm = norm
        channels = weight.shape[0]
        self.average = weight.new_full((1, channels, 1, 1), 1 / channels)
        self.centre = torch.eye(channels)[:, :, None, None].to(weight) - self.average

    def normalize(self, x: Tensor) -> Tensor:
        """The norm without its affine part, which is folded. x [B, C, H, W]."""
        if self.norm == "tanh":
            return torch.tanh(x)
        centred = F.conv2d(x, self.centre)
        return centred * torch.rsqrt(F.conv2d(centred.square(), self.average) + 1e-5)


class _Attention(_Layer):
    """`ditn_kernels.inner_patch_attention`, on patches [N, C, P, P]; `cut`: as they come from `to_patches`."""

    def __init__(self, norm: str, dim: int, stream: int, cut: bool, weights: AttentionWeights) -> None:
        super().__init__(norm, weights.qkv_weight)
        thirds = zip(weights.qkv_weight.chunk(3, dim=1), weights.qkv_bias.chunk(3), strict=True)
        self.cut = cut
        self.qkv = [_pointwise(weight, bias, stream, dim) for weight, bias in thirds]
        self.temperature = weights.temperature
        self.out = _pointwise(weights.out_weight, weights.out_bias, dim, stream)

    def forward(self, x: Tensor) -> Tensor:
        if self.cut and self.norm == "tanh":  # those are rows of P pixels in memory, less than a vector holds
            u = torch.tanh(x.flatten(2)).unflatten(2, x.shape[2:])
        else:
            u = self.normalize(x)
        q, k, v = (F.conv2d(u, *third).flatten(2) for third in self.qkv)
        # Scores by the length of k are part of what runtimes fuse into softmax, unlike k by its length.
        cosines = torch.bmm(q * (self.temperature / _length(q)), k.transpose(1, 2)) / _length(k).transpose(1, 2)
        attended = torch.bmm(torch.softmax(cosines, dim=-1), v)
        return x + F.conv2d(attended.unflatten(2, x.shape[2:]), *self.out)


class _FeedForward(_Layer):
    """`ditn_kernels.gated_ffn`, on patches or on the map."""

    def __init__(self, norm: str, stream: int, weights: FfnWeights) -> None:
        super().__init__(norm, weights.in_weight)
        *inner, out, out_bias = weights
        hidden = _blocks(out.shape[0])
        halves = zip(*(t.chunk(2, dim=-1) for t in inner), strict=True)
        self.halves = [
            (_pointwise(weight, bias, stream, hidden), _depthwise(taps, taps_bias, hidden))
            for weight, bias, taps, taps_bias in halves
        ]
        self.out = _pointwise(out, out_bias, hidden, stream)

    def forward(self, x: Tensor) -> Tensor:
        u = self.normalize(x)
        a, b = (_same_size(F.conv2d(u, *pointwise), depthwise) for pointwise, depthwise in self.halves)
        return x + F.conv2d(F.gelu(a) * b, *self.out)


class _Gate(_Layer):
    """`ditn_kernels.dilated_gate`."""

    def __init__(self, norm: str, width: int, stream: int, weights: GateWeights) -> None:
        super().__init__(norm, weights.in_weight)
        w = weights
        halves = zip(w.in_weight.chunk(2, dim=1), w.in_bias.chunk(2), strict=True)
        self.halves = [_pointwise(*half, stream, width) for half in halves]
        self.near, self.far = _depthwise(w.dw5_weight, w.dw5_bias, width), _depthwise(w.dw7_weight, w.dw7_bias, width)
        self.mix = _pointwise(w.mix_weight, w.mix_bias, width, width)
        self.out = _pointwise(w.out_weight, w.out_bias, width, stream)

    def forward(self, x: Tensor) -> Tensor:
        u = self.normalize(x)
        a, g = (F.conv2d(u, *half) for half in self.halves)
        a = F.conv2d(_same_size(_same_size(a, self.near), self.far, _DILATION), *self.mix)
        return x + F.conv2d(g * a, *self.out)


class _Convolution(nn.Module):
    def __init__(self, conv: _Conv) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, *self.conv, padding=1)


def to_patches(x: Tensor, size: int) -> Tensor:
    """[B, C, H, W] -> [B * H/P * W/P, C, P, P]."""
    batch, channels, height, width = x.shape
    rows, columns = height // size, width // size
    bands = _swapped(x.reshape(batch, channels, rows, size * width))
    patches = _swapped(bands.reshape(batch * rows, channels * size, columns, size))
    return patches.reshape(batch * rows * columns, channels, size, size)


def from_patches(patches: Tensor, like: Tensor, size: int) -> Tensor:
    """The inverse of `to_patches`, for a map of the shape of `like`."""
    batch, channels, height, width = like.shape
    rows, columns = height // size, width // size
    bands = _swapped(patches.reshape(batch * rows, columns, channels * size, size))
    return _swapped(bands.reshape(batch, rows, channels, size * width)).reshape(batch, channels, height, width)


def _swapped(x: Tensor) -> Tensor:
    """The two middle axes, in memory as well. `contiguous` would be traced as "is already" or "is not yet", which
    differs for a single row or column of patches."""
    return x.transpose(1, 2).clone(memory_format=torch.contiguous_format)


def _length(x: Tensor) -> Tensor:
    """Of the last axis, but never zero."""
    length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return length.clamp(min=max(1e-12, torch.finfo(x.dtype).tiny))


def _same_size(x: Tensor, conv: _Conv, dilation: int = 1) -> Tensor:
    """A depthwise convolution with zero padding."""
    padding = conv[0].shape[2] // 2 * dilation
    return F.conv2d(x, *conv, padding=padding, dilation=dilation, groups=x.shape[1])


def _blocks(channels: int) -> int:
    return -(-channels // _BLOCK) * _BLOCK


def _pointwise(weight: Tensor, bias: Tensor, inputs: int, outputs: int) -> _Conv:
    """[C_in, C_out] and [C_out], with zeros up to `inputs` and `outputs` channels."""
    return _padded(weight.t(), outputs, inputs)[:, :, None, None], _padded(bias, outputs)


def _depthwise(weight: Tensor, bias: Tensor, channels: int) -> _Conv:
    """[k, k, C] and [C], with zeros up to `channels`."""
    return _padded(weight.permute(2, 0, 1), channels, *weight.shape[:2])[:, None], _padded(bias, channels)


def _conv3x3(weights: _Conv, inputs: int, outputs: int) -> _Conv:
    """[3, 3, C_in, C_out] and [C_out], with zeros up to `inputs` and `outputs` channels."""
    weight, bias = weights
    return _padded(weight.permute(3, 2, 0, 1), outputs, inputs, 3, 3), _padded(bias, outputs)


def _padded(tensor: Tensor, *sizes: int) -> Tensor:
    """Zeros behind each axis up to its size; contiguous."""
    padded = tensor.new_zeros(sizes)
    padded[tuple(slice(size) for size in tensor.shape)] = tensor
    return padded
