# SPDX-License-Identifier: Apache-2.0
"""Pieces of plain PyTorch that several definitions share. Tokens are channels-last: [N, h, w, C]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LAYER_NORM_EPS = 1e-5


def to_patches(x: Tensor, patch_size: int) -> Tensor:
    """[B, C, H, W] -> [B * H/P * W/P, P, P, C]; the whole map is one patch if patch_size is 0."""
    if not patch_size:
        return x.permute(0, 2, 3, 1)
    batch, channels, height, width = x.shape
    rows, columns = height // patch_size, width // patch_size
    grid = x.permute(0, 2, 3, 1).reshape(batch, rows, patch_size, columns, patch_size, channels)
    return grid.transpose(2, 3).reshape(batch * rows * columns, patch_size, patch_size, channels)


def from_patches(patches: Tensor, like: Tensor, patch_size: int) -> Tensor:
    """The inverse of `to_patches`, for a map of the shape of `like`."""
    if not patch_size:
        return patches.permute(0, 3, 1, 2)
    batch, channels, height, width = like.shape
    rows, columns = height // patch_size, width // patch_size
    grid = patches.reshape(batch, rows, columns, patch_size, patch_size, channels)
    return grid.transpose(2, 3).reshape(batch, height, width, channels).permute(0, 3, 1, 2)


def normalize(u: Tensor, norm: str) -> Tensor:
    """The norm without its affine part, over the last axis."""
    if norm == "tanh":
        return torch.tanh(u)
    if norm == "layernorm":
        return F.layer_norm(u, u.shape[-1:], eps=LAYER_NORM_EPS)
    return u


def normalize_backward(grad: Tensor, x: Tensor, u: Tensor, norm: str) -> Tensor:
    """The gradient of x from that of u = normalize(x, norm)."""
    if norm == "tanh":
        return grad * (1 - u * u)
    if norm == "layernorm":
        return layer_norm_backward(grad, x, u, LAYER_NORM_EPS)
    return grad


def layer_norm_backward(grad: Tensor, x: Tensor, u: Tensor, eps: float) -> Tensor:
    """The gradient of x from that of u = (x - mean) / sqrt(var + eps)."""
    variance = (x - x.mean(-1, keepdim=True)).square().mean(-1, keepdim=True)
    along_u = (grad * u).mean(-1, keepdim=True)
    return torch.rsqrt(variance + eps) * (grad - grad.mean(-1, keepdim=True) - u * along_u)


def pointwise(u: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """u W + b on the last axis; a 1x1 convolution."""
    return F.linear(u, weight.t(), bias)


def pointwise_backward(grad: Tensor, u: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of u, weight and bias."""
    rows = grad.reshape(-1, grad.shape[-1])
    return F.linear(grad, weight), u.reshape(-1, u.shape[-1]).t() @ rows, rows.sum(0)


def depthwise(u: Tensor, weight: Tensor, bias: Tensor, dilation: int = 1) -> Tensor:
    """Depthwise convolution of [N, h, w, C] with [k, k, C], zero padding, same size."""
    if _needs_float32(u, dilation):
        with torch.autocast("cpu", enabled=False):
            return depthwise(u.float(), weight.float(), bias.float(), dilation).to(u.dtype)
    kernel = weight.permute(2, 0, 1).unsqueeze(1).contiguous()
    padding = weight.shape[0] // 2 * dilation
    y = F.conv2d(u.permute(0, 3, 1, 2), kernel, bias, padding=padding, dilation=dilation, groups=weight.shape[2])
    return y.permute(0, 2, 3, 1)


def depthwise_backward(grad: Tensor, u: Tensor, weight: Tensor, dilation: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of u, weight and bias."""
    if _needs_float32(u, dilation):
        du, dweight, dbias = depthwise_backward(grad.float(), u.float(), weight.float(), dilation)
        return du.to(u.dtype), dweight.to(u.dtype), dbias.to(u.dtype)
    channels, padding = weight.shape[2], weight.shape[0] // 2 * dilation
    du, dweight, dbias = torch.ops.aten.convolution_backward(
        grad.permute(0, 3, 1, 2),
        u.permute(0, 3, 1, 2),
        weight.permute(2, 0, 1).unsqueeze(1).contiguous(),
        [channels],
        [1, 1],
        [padding, padding],
        [dilation, dilation],
        False,
        [0, 0],
        channels,
        [True, True, True],
    )
    return du.permute(0, 2, 3, 1), dweight.squeeze(1).permute(1, 2, 0), dbias


def _needs_float32(u: Tensor, dilation: int) -> bool:
    """oneDNN returns uninitialised memory as the bfloat16 weight gradient of a dilated depthwise convolution (PyTorch
    2.13)."""
    return dilation > 1 and u.device.type == "cpu" and u.dtype == torch.bfloat16


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """[B, C_in, H, W] with [3, 3, C_in, C_out], zero padding, same size."""
    return F.conv2d(x, weight.permute(3, 2, 0, 1).contiguous(), bias, padding=1)


def conv3x3_backward(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias."""
    dx, dweight, dbias = torch.ops.aten.convolution_backward(
        grad,
        x,
        weight.permute(3, 2, 0, 1).contiguous(),
        [weight.shape[3]],
        [1, 1],
        [1, 1],
        [1, 1],
        False,
        [0, 0],
        1,
        [True, True, True],
    )
    return dx, dweight.permute(2, 3, 1, 0), dbias
