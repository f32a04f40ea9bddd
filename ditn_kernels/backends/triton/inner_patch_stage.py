# SPDX-License-Identifier: Apache-2.0
"""inner_patch_stage in Triton: each patch is read once, stays in registers through all layers, and is written once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ditn_kernels.backends.triton._attention import attend, project, softmax_of_cosines
from ditn_kernels.backends.triton._feed_forward import (
    clear_border,
    columns_of_block,
    feed_forward,
    tile_pixels,
)
from ditn_kernels.backends.triton._launch import KernelLauncher, cdiv, contiguous, dense, padded
from ditn_kernels.backends.triton._loops import Loops
from ditn_kernels.backends.triton._math import dot, load_square, load_vector, normalize, opaque, rounded
from ditn_kernels.ops.inner_patch_stage import InnerPatchStageWeights

CANDIDATES = {"inner_patch_stage_fwd": {"SLICE": (16, 32, 64, 128)}}


@triton.jit
def _inner_patch_stage_fwd_kernel(
    x_ptr,
    qkv_weight_ptr,
    qkv_bias_ptr,
    temperature_ptr,
    attn_out_weight_ptr,
    attn_out_bias_ptr,
    in_weight_ptr,
    in_bias_ptr,
    dw_weight_ptr,
    dw_bias_ptr,
    ffn_out_weight_ptr,
    ffn_out_bias_ptr,
    y_ptr,
    scratch_ptr,
    W,
    columns,
    patches,
    layers,
    C: tl.constexpr,
    C_PAD: tl.constexpr,
    E: tl.constexpr,
    SLICE: tl.constexpr,
    PATCH: tl.constexpr,
    NORM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """`layers` times x + attention(x), then x + ffn(x), in every patch.

    Grid: persistent: program p takes patches p, p + programs, ...
    """
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    PIXELS: tl.constexpr = PATCH * PATCH
    COLUMNS: tl.constexpr = columns_of_block(PIXELS, SLICE, dtype)
    channel = tl.arange(0, C_PAD)
    pixel = tl.arange(0, PIXELS)
    pixel_y, pixel_x = tile_pixels(
        pixel, PATCH, PATCH, COLUMNS
    )  # attention, between channels, takes pixels in any order
    slot = (pixel_y + 1) * (PATCH + 2) + pixel_x + 1
    inside = (channel < C)[None, :]
    scratch_ptr += tl.program_id(0) * ((PATCH + 2) * (PATCH + 2) * 2 * SLICE)
    clear_border(scratch_ptr, SLICE, PATCH, PATCH)

    for patch in tl.range(tl.program_id(0), patches, tl.num_programs(0), num_stages=1):
        corner = ((patch // columns).to(tl.int64) * PATCH * W + patch % columns * PATCH) * C
        offset = corner + ((pixel_y * W + pixel_x) * C)[:, None] + channel[None, :]
        x = tl.load(x_ptr + offset, inside, 0.0)  # [PIXELS, C_PAD]
        for layer in tl.range(0, layers, num_stages=1):
            u = normalize(x, channel, C, NORM)
            weight_ptr = qkv_weight_ptr + layer * (3 * C * C)
            bias_ptr = qkv_bias_ptr + layer * (3 * C)
            weight = load_square(weight_ptr, 3 * C, channel, C)
            q = project(u, weight, load_vector(bias_ptr, channel, C), PRECISION)  # [C_PAD, PIXELS]
            weight = load_square(weight_ptr + C, 3 * C, channel, C)
            k = project(u, weight, load_vector(bias_ptr + C, channel, C), PRECISION)
            products = tl.zeros((C_PAD, C_PAD), tl.float32)
            products = dot(rounded(q, dtype), tl.trans(rounded(k, dtype)), products, PRECISION)
            temperature = tl.load(temperature_ptr + layer).to(tl.float32)
            weights = softmax_of_cosines(products, tl.sum(q * q, 1), tl.sum(k * k, 1), temperature, channel, C)
            weight = load_square(weight_ptr + 2 * C, 3 * C, channel, C)
            v = project(u, weight, load_vector(bias_ptr + 2 * C, channel, C), PRECISION)
            weight = load_square(attn_out_weight_ptr + layer * (C * C), C, channel, C)
            bias = load_vector(attn_out_bias_ptr + layer * C, channel, C)
            change = attend(rounded(weights, dtype), rounded(v, dtype), weight, bias, PRECISION)
            x = rounded(x.to(tl.float32) + change, dtype)

            u = normalize(x, channel, C, NORM)
            change = feed_forward(
                u,
                slot,
                None,  # all pixels are shown and stored
                None,
                channel,
                in_weight_ptr + layer * (2 * C * E),
                in_bias_ptr + layer * (2 * E),
                dw_weight_ptr + layer * (9 * 2 * E),
                dw_bias_ptr + layer * (2 * E),
                ffn_out_weight_ptr + layer * (E * C),
                ffn_out_bias_ptr + layer * C,
                scratch_ptr,
                scratch_ptr,
                C_PAD,
                C,
                E,
                SLICE,
                0,
                PATCH,
                PATCH,
                PRECISION,
            )
            x = rounded(x.to(tl.float32) + change, dtype)
        here_y, here_x = tile_pixels(opaque(pixel), PATCH, PATCH, COLUMNS)
        offset = corner + ((here_y * W + here_x) * C)[:, None] + channel[None, :]
        tl.store(y_ptr + offset, x, inside)


def forward(x: Tensor, weights: InnerPatchStageWeights, norm: str, patch_size: int) -> Tensor:
    batch, channels, height, width = x.shape
    layers, hidden = weights.ffn.out_weight.shape[:2]
    x = dense(x)
    y = torch.empty_like(x)
    columns = width // patch_size
    patches = batch * (height // patch_size) * columns
    launcher = KernelLauncher(_inner_patch_stage_fwd_kernel, x, channels=padded(channels), patch_size=patch_size)
    programs = launcher.programs(patches)
    scratch = x.new_empty(programs * (patch_size + 2) ** 2 * 2 * launcher.blocks["SLICE"])
    launcher.launch(
        programs,
        x,
        *contiguous(weights.attention),
        *contiguous(weights.ffn),
        y,
        scratch,
        width,
        columns,
        patches,
        layers,
        C=channels,
        C_PAD=padded(channels),
        E=hidden,
        PATCH=patch_size,
        NORM=norm,
    )
    return y


LOOPS = {
    "inner_patch_stage_fwd": lambda given: Loops(given["patches"], (given["layers"], cdiv(given["E"], given["SLICE"])))
}
