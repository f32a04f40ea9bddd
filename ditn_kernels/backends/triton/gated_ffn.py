# SPDX-License-Identifier: Apache-2.0
"""gated_ffn in Triton: a tile of pixels, its hidden channels in slices (`_feed_forward.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ditn_kernels.backends.triton._feed_forward import (
    clear_border,
    columns_of_block,
    feed_forward,
    tile_pixels,
)
from ditn_kernels.backends.triton._launch import KernelLauncher, cdiv, contiguous, dense, next_power_of_2, padded
from ditn_kernels.backends.triton._loops import Loops, slices
from ditn_kernels.backends.triton._math import (
    normalize,
    opaque,
    rounded,
)
from ditn_kernels.ops.gated_ffn import FfnWeights

# SLICE: of the hidden channels; INNER: of the channels, 0 for all at once.
CANDIDATES = {"gated_ffn_fwd": {"SLICE": (16, 32, 64, 128), "INNER": (0, 16, 32)}}


@triton.jit
def _gated_ffn_fwd_kernel(
    x_ptr,
    in_weight_ptr,
    in_bias_ptr,
    dw_weight_ptr,
    dw_bias_ptr,
    out_weight_ptr,
    out_bias_ptr,
    H,
    W,
    rows,
    columns,
    depth,
    tiles,
    y_ptr,
    scratch_ptr,
    C: tl.constexpr,
    C_PAD: tl.constexpr,
    E: tl.constexpr,
    SLICE: tl.constexpr,
    INNER: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    HALO: tl.constexpr,
    REGION: tl.constexpr,
    PATCH: tl.constexpr,
    NORM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """x + W_out (gelu(d[:E]) * d[E:]) + b_out, d = dw3x3(W_in norm(x) + b_in) + b_dw.

    Grid: persistent: program p takes tiles p, p + programs, ... A tile is a patch (HALO 0); or a piece of a patch or of
    the map, which computes the hidden channels of a border of one pixel itself (HALO 1). REGION is the number of pixels
    with that border, rounded up to a power of two.
    """
    # Whether a tile's addresses take too many registers to be kept from one tile to the next. Where pixels are not
    # aligned, each value has an address of its own.
    IS_LARGE: tl.constexpr = REGION * C_PAD * (1 if C % 4 == 0 else 4) > 64 * 64
    channel = tl.arange(0, C_PAD)
    region = tl.arange(0, REGION)
    region_y = region // (TILE_W + 2 * HALO) - HALO
    region_x = region % (TILE_W + 2 * HALO) - HALO
    slot = (region_y + 1) * (TILE_W + 2) + region_x + 1
    stored = region_y < TILE_H + HALO
    SCRATCH: tl.constexpr = (TILE_H + 2) * (TILE_W + 2) * 2 * SLICE
    scratch_ptr += tl.program_id(0) * (SCRATCH + (REGION * C_PAD if INNER else 0))
    if HALO == 0:
        clear_border(scratch_ptr, SLICE, TILE_H, TILE_W)

    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        top = tile // columns % rows * TILE_H
        left = tile % columns * TILE_W
        image = tile // columns // rows
        corner = ((image.to(tl.int64) * H + top) * W + left) * C
        width = opaque(W) if IS_LARGE else W
        y = top + region_y
        x = left + region_x
        shown = stored & (y >= 0) & (y < H) & (x >= 0) & (x < W)
        if HALO and PATCH:
            shown &= (y // PATCH == top // PATCH) & (x // PATCH == left // PATCH)
        offset = ((region_y * width + region_x) * C)[:, None] + channel[None, :]
        inside = (channel < C)[None, :]
        if HALO:
            inside &= shown[:, None]
        u = tl.load(x_ptr + corner + offset, inside, 0.0)  # [REGION, C_PAD]
        u = normalize(u, channel, C, NORM)
        out = feed_forward(
            u,
            slot,
            shown,
            stored,
            channel,
            in_weight_ptr,
            in_bias_ptr,
            dw_weight_ptr,
            dw_bias_ptr,
            out_weight_ptr,
            out_bias_ptr,
            scratch_ptr,
            scratch_ptr + SCRATCH,
            depth,
            C,
            E,
            SLICE,
            INNER,
            TILE_H,
            TILE_W,
            PRECISION,
        )
        pixel = tl.arange(0, TILE_H * TILE_W)
        pixel = opaque(pixel) if IS_LARGE else pixel
        pixel_y, pixel_x = tile_pixels(
            pixel, TILE_H, TILE_W, columns_of_block(TILE_H * TILE_W, SLICE, x_ptr.dtype.element_ty)
        )
        inside = (channel < C)[None, :]
        if HALO:
            inside &= ((pixel_y < H - top) & (pixel_x < W - left))[:, None]
        offset = ((pixel_y * W + pixel_x) * C)[:, None] + channel[None, :]
        residual = tl.load(x_ptr + corner + offset, inside, 0.0).to(tl.float32)
        tl.store(y_ptr + corner + offset, rounded(residual + out, y_ptr.dtype.element_ty), inside)


def forward(x: Tensor, weights: FfnWeights, norm: str, patch_size: int) -> Tensor:
    batch, channels, height, width = x.shape
    hidden = weights.out_weight.shape[0]
    x = dense(x)
    y = torch.empty_like(x)
    tile_height, tile_width, is_patch = _tile(padded(channels), x.element_size(), patch_size)
    halo = 0 if is_patch else 1
    region = next_power_of_2((tile_height + 2 * halo) * (tile_width + 2 * halo))
    constants = {
        "C": channels,
        "C_PAD": padded(channels),
        "E": hidden,
        "TILE_H": tile_height,
        "TILE_W": tile_width,
        "HALO": halo,
        "REGION": region,
        "PATCH": patch_size,
        "NORM": norm,
    }
    integers = sizes(batch, height, width, constants)
    launcher = KernelLauncher(
        _gated_ffn_fwd_kernel, x, channels=padded(channels), patch_size=patch_size if is_patch else 0
    )
    programs = launcher.programs(integers[-1])
    size, inner = launcher.blocks["SLICE"], launcher.blocks["INNER"]
    tile = region * padded(channels) if inner else 0
    scratch = x.new_empty(programs * ((tile_height + 2) * (tile_width + 2) * 2 * size + tile))
    launcher.launch(programs, x, *contiguous(weights), *integers, y, scratch, **constants)
    return y


def sizes(batch: Any, height: Any, width: Any, constants: Mapping[str, Any]) -> tuple[Any, ...]:
    """The kernel's integers, of which the last is the number of tiles. TensorRT's plugins ask with expressions, which
    have to stand left of an operator."""
    tile_height, tile_width = constants["TILE_H"], constants["TILE_W"]
    rows, columns = (height + (tile_height - 1)) // tile_height, (width + (tile_width - 1)) // tile_width
    return height, width, rows, columns, constants["C_PAD"], batch * rows * columns


def _tile(channels: int, size: int, patch_size: int) -> tuple[int, int, bool]:
    """Rows and columns of a tile for which there are registers and shared memory, from the padded channels and the
    bytes of a value, and whether it is a whole patch."""
    is_wide = channels * size > 256
    if 0 < patch_size**2 * channels * size <= (16384 if is_wide else 32768):
        return patch_size, patch_size, True
    return 4 if is_wide else 8, 32 // size, False


LOOPS = {
    "gated_ffn_fwd": lambda given: Loops(
        given["tiles"], (cdiv(given["E"], given["SLICE"]), *(slices(given["C_PAD"], given["INNER"]),) * 2)
    )
}
