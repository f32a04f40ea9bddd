# SPDX-License-Identifier: Apache-2.0
"""SwinIR-light (Liang et al. 2021, arXiv 2108.10257; its shifted windows are arXiv 2103.14030's), for timing only.

Written from the papers, with random weights: the arithmetic, the parameters and their number are the published ones,
the state dict's keys are not. Tokens stay [B, H, W, C], so that convolutions see channels-last maps without copies.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness.peers.layout import from_windows, padded, to_windows

# What the published code adds to scores across a seam: after softmax nothing is left of them.
BLOCKED = -100.0


class SwinIR(nn.Module):
    """image [B, 3, H, W] in 0..1 -> [B, 3, sH, sW]. `depths` are the numbers of layers in each residual group."""

    mean: Tensor

    def __init__(
        self, upscale: int, *, depths: tuple[int, ...] = (6, 6, 6, 6), dim: int = 60, heads: int = 6, window: int = 8
    ) -> None:
        super().__init__()
        self.upscale, self.grid = upscale, window
        self.register_buffer("mean", torch.tensor([0.4488, 0.4371, 0.4040])[:, None, None])
        self.head = nn.Conv2d(3, dim, 3, padding=1)
        self.norm_before = nn.LayerNorm(dim)
        self.groups = nn.ModuleList(Group(depth, dim, heads, window) for depth in depths)
        self.norm_after = nn.LayerNorm(dim)
        self.after_body = nn.Conv2d(dim, dim, 3, padding=1)
        self.tail = nn.Conv2d(dim, 3 * upscale**2, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        shallow = self.head(padded(image, self.grid) - self.mean)
        tokens = self.norm_before(shallow.permute(0, 2, 3, 1))
        _, height, width, _ = tokens.shape
        # In a graph the mask is part of it, once; whoever optimises the graph for one size makes it a constant.
        make = shift_mask if torch.compiler.is_compiling() else _cached_mask
        mask = make(height, width, self.grid, tokens.dtype, tokens.device)
        for group in self.groups:
            tokens = group(tokens, mask)
        deep = self.after_body(self.norm_after(tokens).permute(0, 3, 1, 2)) + shallow
        big = F.pixel_shuffle(self.tail(deep), self.upscale) + self.mean
        return big[:, :, : image.shape[2] * self.upscale, : image.shape[3] * self.upscale]

    def fold(self) -> SwinIR:
        """Do what needs doing once per network: look the relative position biases up. Inference only, in place."""
        for module in self.modules():
            if isinstance(module, WindowAttention):
                module.register_buffer("bias", module.looked_up().detach().contiguous(), persistent=False)
        return self


class Group(nn.Module):
    """x + conv(layers(x)), every second layer on shifted windows."""

    def __init__(self, depth: int, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(dim, heads, window, window // 2 * (index % 2)) for index in range(depth))
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [B, H, W, C]"""
        out = x
        for layer in self.layers:
            out = layer(out, mask)
        return x + self.conv(out.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # type: ignore[no-any-return]


class Layer(nn.Module):
    """x += attention(norm(x)); x += W_2 gelu(W_1 norm(x))"""

    def __init__(self, dim: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = WindowAttention(dim, heads, window, shift)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [B, H, W, C]"""
        x = x + self.attention(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class WindowAttention(nn.Module):
    """softmax(q k^T / sqrt(d) + bias) v in every window, by heads; a bias for every relative position of two pixels."""

    positions: Tensor
    bias: Tensor | None

    def __init__(self, dim: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.qkv, self.project = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.bias_table = nn.Parameter(0.02 * torch.randn((2 * window - 1) ** 2, heads))
        self.register_buffer("positions", relative_positions(window), persistent=False)
        self.register_buffer("bias", None, persistent=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [B, H, W, C], mask [windows, T, T]"""
        batch, height, width, channels = x.shape
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
        qkv = self.qkv(to_windows(x, self.window)).unflatten(-1, (3, self.heads, channels // self.heads))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [B windows, heads, T, d]
        bias = (self.looked_up() if self.bias is None else self.bias)[None]
        if self.shift:
            bias = (bias + mask[:, None]).repeat(batch, 1, 1, 1)
        out = F.scaled_dot_product_attention(q, k, v, bias.expand(q.shape[0], -1, -1, -1))
        out = self.project(out.transpose(1, 2).flatten(2))
        out = from_windows(out, self.window, height, width)
        return out.roll((self.shift, self.shift), (1, 2)) if self.shift else out

    def looked_up(self) -> Tensor:
        """The bias of every pair of pixels [heads, T, T]."""
        return self.bias_table[self.positions].permute(2, 0, 1)


def relative_positions(window: int) -> Tensor:
    """[T, T]: which line of the table a query and a key look up, by how far apart they are."""
    pixels = torch.cartesian_prod(torch.arange(window), torch.arange(window))
    apart = pixels[:, None] - pixels[None] + window - 1
    return apart[..., 0] * (2 * window - 1) + apart[..., 1]


def shift_mask(height: int, width: int, window: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[windows, T, T]: after a shift by half a window, 0 where two pixels come from one side of the image's border."""

    def sides(length: int) -> Tensor:
        place = torch.arange(length, device=device)
        return (place >= length - window).int() + (place >= length - window // 2).int()

    regions = 3 * sides(height)[:, None] + sides(width)
    windows = to_windows(regions[None, :, :, None], window).squeeze(-1)
    blocked = windows[:, :, None] != windows[:, None]
    return torch.zeros(blocked.shape, dtype=dtype, device=device).masked_fill(blocked, BLOCKED)


_cached_mask = functools.lru_cache(maxsize=32)(shift_mask)
