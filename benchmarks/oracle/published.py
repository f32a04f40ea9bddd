# SPDX-License-Identifier: Apache-2.0
"""The network as published: layer by layer, unfolded, NCHW, written from the formulas.

The tests' oracle and the eager baseline that every speed-up is quoted against. Takes a state dict under the published
keys and shares no code with the package.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

State = Mapping[str, Tensor]


def network(state: State, image: Tensor, *, patch_size: int = 8, outputs: int | None = None) -> Tensor:
    """image [B, C, H, W] -> [B, outputs, sH, sW], for LayerNorm and tanh models alike. As many channels come out as go
    in, unless said otherwise."""
    height, width = image.shape[-2:]
    scale = round((state["upsample.0.weight"].shape[0] / (outputs or image.shape[1])) ** 0.5)
    padded = reflect(image, math.lcm(8, patch_size))
    shallow = conv(state, "sft", padded, padding=1)
    x = shallow
    for u in range(_count(state, "UFONE.")):
        x = patchwise(x, patch_size, partial(_itls, state, f"UFONE.{u}.ITLs."))
        for i in range(_count(state, f"UFONE.{u}.SALs.")):
            x = sal(state, f"UFONE.{u}.SALs.{i}", x)
        if f"UFONE.{u}.conv.weight" in state:
            x = conv(state, f"UFONE.{u}.conv", x, padding=1)
    deep = conv(state, "conv_after_body", x, padding=1) + shallow
    big = F.pixel_shuffle(conv(state, "upsample.0", deep, padding=1), scale)
    return big[:, :, : height * scale, : width * scale]


def reflect(image: Tensor, grid: int) -> Tensor:
    """Pad right and bottom by walking back and forth over the image, one pixel at a time."""
    for axis in (2, 3):
        size = image.shape[axis]
        if size % grid == 0:
            continue
        position, direction, order = 0, 1, []
        for _ in range(-(-size // grid) * grid):
            order.append(position)
            if size > 1:
                if not 0 <= position + direction < size:
                    direction = -direction
                position += direction
        image = image.index_select(axis, torch.tensor(order, device=image.device))
    return image


def patchwise(x: Tensor, size: int, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a function to all patches [N, C, size, size] of a map."""
    batch, channels, height, width = x.shape
    patches = x.unfold(2, size, size).unfold(3, size, size)  # [B, C, rows, columns, size, size]
    out = function(patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, channels, size, size))
    grid = out.reshape(batch, height // size, width // size, channels, size, size)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels, height, width)


def itl(state: State, key: str, x: Tensor) -> Tensor:
    x = x + attention(state, f"{key}.attn", norm(state, key, 1, x))
    return x + feed_forward(state, f"{key}.ffn", norm(state, key, 2, x))


def sal(state: State, key: str, x: Tensor) -> Tensor:
    x = x + gate(state, f"{key}.SDA", norm(state, key, 1, x))
    return x + feed_forward(state, f"{key}.ffn", norm(state, key, 2, x))


def norm(state: State, key: str, index: int, x: Tensor) -> Tensor:
    if f"{key}.conv{index}.weight" in state:
        return conv(state, f"{key}.conv{index}", torch.tanh(x))
    mean = x.mean(1, keepdim=True)
    variance = ((x - mean) ** 2).mean(1, keepdim=True)
    weight, bias = (state[f"{key}.norm{index}.{name}"][None, :, None, None] for name in ("weight", "bias"))
    return weight * (x - mean) / torch.sqrt(variance + 1e-5) + bias


def attention(state: State, key: str, x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    weight, bias = state[f"{key}.qkv.weight"], state[f"{key}.qkv.bias"]
    qkv = torch.einsum("oc,bchw->bohw", weight, x) + bias[None, :, None, None]
    q, k, v = (t.reshape(batch, channels, height * width) for t in qkv.split(channels, dim=1))
    q, k = (t / t.pow(2).sum(-1, keepdim=True).sqrt().clamp_min(1e-12) for t in (q, k))
    scores = torch.einsum("bct,bdt->bcd", q, k) * state[f"{key}.temperature"]
    out = torch.einsum("bcd,bdt->bct", scores.softmax(-1), v).reshape(batch, channels, height, width)
    return conv(state, f"{key}.project_out", out)


def feed_forward(state: State, key: str, x: Tensor) -> Tensor:
    hidden = conv(state, f"{key}.project_in", x)
    first, second = conv(state, f"{key}.dwconv", hidden, padding=1, groups=hidden.shape[1]).chunk(2, dim=1)
    gelu = 0.5 * first * (1 + torch.erf(first / 2**0.5))
    return conv(state, f"{key}.project_out", gelu * second)


def gate(state: State, key: str, x: Tensor) -> Tensor:
    channels = x.shape[1]
    a, g = conv(state, f"{key}.proj_first.0", x).chunk(2, dim=1)
    a = conv(state, f"{key}.DConvs.0", a, padding=2, groups=channels)
    a = conv(state, f"{key}.DConvs.1", a, padding=9, dilation=3, groups=channels)
    a = conv(state, f"{key}.DConvs.2", a)
    return conv(state, f"{key}.proj_last.0", g * a) * state[f"{key}.scale"]


def conv(state: State, key: str, x: Tensor, **options: int) -> Tensor:
    return F.conv2d(x, state[f"{key}.weight"], state.get(f"{key}.bias"), **options)


def _itls(state: State, prefix: str, patches: Tensor) -> Tensor:
    for i in range(_count(state, prefix)):
        patches = itl(state, f"{prefix}{i}", patches)
    return patches


def _count(state: State, prefix: str) -> int:
    numbers = (key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix))
    return max([0, *(int(number) + 1 for number in numbers if number.isdigit())])
