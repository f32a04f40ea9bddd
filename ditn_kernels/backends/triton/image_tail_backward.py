# SPDX-License-Identifier: Apache-2.0
"""The gradient of image_tail in Triton: back through the pixel shuffle and both convolutions. The first convolution's
result is computed again; its gradient is also that of the skip."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ditn_kernels.backends.triton import image_head_backward, image_tail
from ditn_kernels.backends.triton._conv3x3 import conv3x3, loops_of_conv3x3
from ditn_kernels.backends.triton._launch import KernelLauncher, cdiv, dense, padded
from ditn_kernels.backends.triton._math import rounded
from ditn_kernels.backends.triton.image_head_backward import reversed_weight
from ditn_kernels.backends.triton.image_tail import in_order, shuffled
from ditn_kernels.ops.image_tail import TailWeights

CANDIDATES = (
    image_head_backward.CANDIDATES | image_tail.CANDIDATES | {"image_tail_up_bwd": {"BLOCK_W": (16, 32, 64, 128)}}
)


@triton.jit
def _image_tail_up_bwd_kernel(
    grad_ptr,
    weight_ptr,
    bias_ptr,
    dx_ptr,
    H,
    W,
    segments,
    C: tl.constexpr,
    C_PAD: tl.constexpr,
    OUTPUTS: tl.constexpr,
    UPSCALE: tl.constexpr,
    D_PAD: tl.constexpr,
    BLOCK_W: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """conv3x3(pixel_unshuffle(grad)) + b. The weights' rows are in the order of storage.

    Grid: one program per piece of a row.
    """
    D: tl.constexpr = OUTPUTS * UPSCALE * UPSCALE
    run = UPSCALE * OUTPUTS
    channel = tl.arange(0, C_PAD)
    lane = tl.arange(0, D_PAD)
    row = tl.program_id(0) // segments
    left = tl.program_id(0) % segments * BLOCK_W
    column = tl.arange(0, BLOCK_W)
    dx = conv3x3(
        grad_ptr + (row // H).to(tl.int64) * H * UPSCALE * W * run,
        shuffled(lane, W, OUTPUTS, UPSCALE),
        UPSCALE * W * run,
        run,
        row % H,
        left,
        column,
        H,
        W,
        lane,
        weight_ptr,
        bias_ptr,
        channel,
        D,
        C,
        PRECISION,
    )  # [BLOCK_W, C_PAD]
    offset = (row.to(tl.int64) * W + left) * C + column[:, None] * C + channel[None, :]
    inside = (column < W - left)[:, None] & (channel < C)[None, :]
    tl.store(dx_ptr + offset, rounded(dx, dx_ptr.dtype.element_ty), inside)


def backward(
    grad: Tensor, x: Tensor, skip: Tensor, weights: TailWeights, upscale: int
) -> tuple[Tensor, Tensor, TailWeights]:
    batch, channels, height, width = x.shape
    body_weight, body_bias, up_weight, up_bias = weights
    outputs = up_weight.shape[3]
    grad, x = dense(grad), dense(x)
    up_weight = in_order(up_weight, upscale**2)

    ddeep = torch.empty_like(x)
    launcher = KernelLauncher(_image_tail_up_bwd_kernel, x, channels=padded(channels), outputs=padded(outputs))
    segments = cdiv(width, launcher.blocks["BLOCK_W"])
    launcher.launch(
        batch * height * segments,
        grad,
        reversed_weight(up_weight).contiguous(),
        x.new_zeros(channels),
        ddeep,
        height,
        width,
        segments,
        C=channels,
        C_PAD=padded(channels),
        OUTPUTS=outputs // upscale**2,
        UPSCALE=upscale,
        D_PAD=padded(outputs),
    )
    deep = image_tail.body(x, skip, weights)
    stored = image_head_backward.of_weights(deep, grad, up_weight, up_bias, upscale)
    del deep
    dup_weight, dup_bias = (in_order(part, outputs // upscale**2) for part in stored)
    dbody_weight, dbody_bias = image_head_backward.of_weights(x, ddeep, body_weight, body_bias)
    dx = image_head_backward.of_map(ddeep, body_weight)
    return dx, ddeep, TailWeights(dbody_weight, dbody_bias, dup_weight, dup_bias)


LOOPS = {"image_tail_up_bwd": lambda given: loops_of_conv3x3(given["grad_ptr"])}
