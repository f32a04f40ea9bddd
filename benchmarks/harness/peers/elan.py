# SPDX-License-Identifier: Apache-2.0
"""ELAN-light (Zhang et al. 2022, "Efficient Long-Range Attention Network", arXiv 2203.06697), for timing only.

Written from the paper, with random weights: the arithmetic, the trained parameters and their number are the published
ones, the state dict's keys are not. What the published code keeps as frozen parameters (the kernels of shifts, the mean
colour) are moves and a constant here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from benchmarks.harness.peers.layout import from_windows, padded, to_windows

WINDOWS = (4, 8, 16)


class ELAN(nn.Module):
    """image [B, 3, H, W] in 0..1 -> [B, 3, sH, sW]. Blocks come in pairs that share one attention."""

    mean: Tensor

    def __init__(self, upscale: int, *, blocks: int = 24, dim: int = 60) -> None:
        super().__init__()
        self.upscale, self.grid = upscale, max(WINDOWS)
        self.register_buffer("mean", torch.tensor([0.4488, 0.4371, 0.4040])[:, None, None])
        self.head = nn.Conv2d(3, dim, 3, padding=1)
        self.body = nn.Sequential(*(Pair(dim, shifted=index % 2 == 1) for index in range(blocks // 2)))
        self.tail = nn.Conv2d(dim, 3 * upscale**2, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        shallow = self.head(padded(image, self.grid) - self.mean)
        big = F.pixel_shuffle(self.tail(self.body(shallow) + shallow), self.upscale) + self.mean
        return big[:, :, : image.shape[2] * self.upscale, : image.shape[3] * self.upscale]

    def fold(self) -> ELAN:
        """Batch norms into the convolutions in front of them. Inference only, in place."""
        for module in self.modules():
            if isinstance(module, WindowAttention):
                module.project_in = nn.Sequential(fuse_conv_bn_eval(*module.project_in.eval()))
        return self


class Pair(nn.Module):
    """Two blocks x += local(x), x += attention(x); the second takes the weights of the first one's attention."""

    def __init__(self, dim: int, *, shifted: bool) -> None:
        super().__init__()
        self.local1, self.local2 = Local(dim), Local(dim)
        self.attention1 = WindowAttention(dim, shifted=shifted, own_scores=True)
        self.attention2 = WindowAttention(dim, shifted=shifted, own_scores=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.local1(x)
        out, weights = self.attention1(x)
        x = x + out
        x = x + self.local2(x)
        return x + self.attention2(x, weights)[0]  # type: ignore[no-any-return]


class Local(nn.Module):
    """W_2 shift(relu(W_1 shift(x)))"""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.expand, self.reduce = nn.Conv2d(dim, 2 * dim, 1), nn.Conv2d(2 * dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.reduce(shift(F.relu(self.expand(shift(x)))))  # type: ignore[no-any-return]


def shift(x: Tensor) -> Tensor:
    """A fifth of the channels each a pixel left, right, up, down, and what is left over where it is; zeros come in."""
    fifth = x.shape[1] // 5
    left, right, up, down, rest = x.split([fifth] * 4 + [x.shape[1] - 4 * fifth], dim=1)
    moves = ((left, (-1, 1)), (right, (1, -1)), (up, (0, 0, -1, 1)), (down, (0, 0, 1, -1)))
    return torch.cat([*(F.pad(part, padding) for part, padding in moves), rest], dim=1)


class WindowAttention(nn.Module):
    """softmax(q q^T) v with a third of the channels in windows of each size; `own_scores`, or the ones it is given."""

    def __init__(self, dim: int, *, shifted: bool, own_scores: bool) -> None:
        super().__init__()
        self.shifted, self.own_scores = shifted, own_scores
        inner = 2 * dim if own_scores else dim
        self.project_in = nn.Sequential(nn.Conv2d(dim, inner, 1), nn.BatchNorm2d(inner))
        self.project_out = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor, weights: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """x [B, C, H, W]; the weights of each window size [B windows, T, T]"""
        height, width = x.shape[-2:]
        used, outs = [], []
        for index, (part, window) in enumerate(zip(self.project_in(x).chunk(3, dim=1), WINDOWS, strict=True)):
            tokens = part.permute(0, 2, 3, 1)
            if self.shifted:
                tokens = tokens.roll((-(window // 2), -(window // 2)), (1, 2))
            tokens = to_windows(tokens, window)
            if weights is None:
                query, value = tokens.chunk(2, dim=-1)
                used.append((query @ query.transpose(-2, -1)).softmax(-1))
            else:
                value = tokens
                used.append(weights[index])
            out = from_windows(used[-1] @ value, window, height, width)
            if self.shifted:
                out = out.roll((window // 2, window // 2), (1, 2))
            outs.append(out.permute(0, 3, 1, 2))
        return self.project_out(torch.cat(outs, dim=1)), used
