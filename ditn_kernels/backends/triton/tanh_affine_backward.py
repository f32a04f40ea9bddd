# SPDX-License-Identifier: Apache-2.0
"""The gradient of tanh_affine in Triton: one pass over the pixels."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ditn_kernels.backends.triton._launch import KernelLauncher, cdiv, dense, padded
from ditn_kernels.backends.triton._loops import Loops
from ditn_kernels.backends.triton._math import column_sums, dot, layout_barrier, normalize, normalize_backward, rounded
from ditn_kernels.backends.triton._partial_gradients import PartialGradients, add_matrix, add_vector


@triton.jit
def _tanh_affine_bwd_kernel(
    grad_ptr,
    x_ptr,
    weight_ptr,
    dx_ptr,
    dweight_ptr,
    dbias_ptr,
    pixels,
    blocks,
    stride,
    C: tl.constexpr,
    C_PAD: tl.constexpr,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dx = (1 - u^2) (g W^T), dW = sum u^T g, db = sum g, where u = tanh(x).

    Grid: persistent: program p takes blocks of pixels p, p + programs, ...
    """
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    channel = tl.arange(0, C_PAD)
    output = tl.arange(0, D_PAD)
    inside = (channel < C)[:, None] & (output < D)[None, :]
    row = tl.program_id(0).to(tl.int64) * stride
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        pixel = tl.cast(block, tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
        shown = (pixel < pixels)[:, None]
        grad = tl.load(grad_ptr + pixel[:, None] * D + output[None, :], shown & (output < D)[None, :], 0.0)
        offset = pixel[:, None] * C + channel[None, :]
        x = tl.load(x_ptr + offset, shown & (channel < C)[None, :], 0.0)  # [BLOCK_N, C_PAD]
        u = layout_barrier(normalize(x, channel, C, "tanh"))
        # Loaded again for every block: there are no registers to keep it in.
        weight = tl.load(weight_ptr + channel[:, None] * D + output[None, :], inside, 0.0)  # [C_PAD, D_PAD]
        if dtype == tl.float32:
            # The few pixels as columns: they are too few rows to share among the warps, and each warp would compute
            # all.
            du = tl.trans(dot(weight, tl.trans(grad), tl.zeros((C_PAD, BLOCK_N), tl.float32), PRECISION))
        else:
            du = dot(grad, tl.trans(weight), tl.zeros(u.shape, tl.float32), PRECISION)
        dx = normalize_backward(du, x, u, channel, C, "tanh")
        tl.store(dx_ptr + offset, rounded(dx, dtype), shown & (channel < C)[None, :])
        dweight = dot(tl.trans(u), grad, tl.zeros(weight.shape, tl.float32), PRECISION)
        add_matrix(dweight_ptr + row, dweight, channel, output, D, C, D)
        add_vector(dbias_ptr + row, column_sums(grad.to(tl.float32)), output, D)
        tl.debug_barrier()


def backward(grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    channels, outputs = weight.shape
    grad, x = dense(grad), dense(x)
    dx = torch.empty_like(x)
    launcher = KernelLauncher(_tanh_affine_bwd_kernel, x, channels=padded(channels), outputs=padded(outputs))
    pixels = x.numel() // channels
    blocks = cdiv(pixels, launcher.blocks["BLOCK_N"])
    programs = launcher.programs(blocks)
    partials = PartialGradients(programs, weight, bias)
    launcher.launch(
        programs,
        grad,
        x,
        weight.contiguous(),
        dx,
        *partials.rows,
        pixels,
        blocks,
        partials.stride,
        C=channels,
        C_PAD=padded(channels),
        D=outputs,
        D_PAD=padded(outputs),
    )
    return dx, *partials.totals()


LOOPS = {"tanh_affine_bwd": lambda given: Loops(given["blocks"])}
