# SPDX-License-Identifier: Apache-2.0
"""Device functions that several kernels share.

Triton's interpreter, which proves the kernels without a GPU, runs no PTX and computes bfloat16 wrongly: INTERPRETED is
the one switch for both. What runs only where it is false has to be proved on a GPU.
"""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
LAYER_NORM_EPS = tl.constexpr(1e-5)


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """x as dtype, to the nearest value, ties to even."""
    if INTERPRETED and dtype == tl.bfloat16:
        # The interpreter truncates: round first. NaN has to stay NaN.
        bits = x.to(tl.float32).to(tl.uint32, bitcast=True)
        up = (bits + 0x7FFF + ((bits >> 16) & 1)).to(tl.float32, bitcast=True)
        return tl.where(x == x, up, x.to(tl.float32)).to(tl.bfloat16)
    else:
        return x.to(dtype)


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """acc + a b, accumulated in float32. PRECISION is about float32 factors: "ieee", "tf32", "tf32x3" or "tf32x4".

    A tensor core truncates what it adds to its accumulator, so the error of a long sum grows with its length. In
    "tf32x3" it sums at most 64 products of two values, and such sums are added with rounding. A gradient is a sum of
    such results; for it there is "tf32x4", which sums at most 32 products and leaves out none of their parts.
    """
    if a.dtype == tl.float32 and (PRECISION == "tf32x3" or PRECISION == "tf32x4"):
        TERMS: tl.constexpr = 64 if PRECISION == "tf32x3" else 32
        if a.shape[1] > TERMS:
            HALF: tl.constexpr = a.shape[1] // 2
            # Every other column of a, and row of b.
            a_even, a_odd = tl.split(tl.reshape(a, (a.shape[0], HALF, 2)))
            b_even, b_odd = tl.split(tl.permute(tl.reshape(b, (HALF, 2, b.shape[1])), (0, 2, 1)))
            return dot(a_odd, b_odd, dot(a_even, b_even, acc, PRECISION), PRECISION)
        else:
            return plus(acc, dot_of_parts(a, b, PRECISION))
    elif INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    elif a.dtype == tl.float32:
        return tl.dot(a, b, acc, input_precision=PRECISION)
    else:
        return tl.dot(a, b, acc)


@triton.jit
def dot_of_parts(a, b, PRECISION: tl.constexpr):
    """a b of float32 factors, each as the sum of two TF32 values, by three products or four. Three leave out the
    product of the low parts, which is at most 2^-22 of the whole."""
    a_high = nearest_tf32(a)
    b_high = nearest_tf32(b)
    a_low = a - a_high
    b_low = b - b_high
    sums = tl.zeros((a.shape[0], b.shape[1]), tl.float32)
    if PRECISION == "tf32x4":
        sums = tl.dot(a_low, b_low, sums, input_precision="tf32")
    sums = tl.dot(a_low, b_high, sums, input_precision="tf32")
    sums = tl.dot(a_high, b_low, sums, input_precision="tf32")
    return tl.dot(a_high, b_high, sums, input_precision="tf32")


@triton.jit
def nearest_tf32(x):
    """float32 rounded to the 10 bits of mantissa of TF32. Truncated, the remainder would always have the sign of x, and
    so the products that are left out would always have that of the result."""
    return ((x.to(tl.uint32, bitcast=True) + 0x1000) & 0xFFFFE000).to(tl.float32, bitcast=True)


@triton.jit
def plus(x, y):
    """x + y of float32, opaque to Triton, which would otherwise let the tensor core add y's products to x."""
    if INTERPRETED:
        return x + y
    else:
        return tl.inline_asm_elementwise(
            "add.rn.f32 $0, $1, $2;", "=r,r,r", [x, y], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def dot_by_slices(
    a_ptr,
    row,
    b_ptr,
    b_stride,
    depth,
    column,
    C: tl.constexpr,
    C_PAD: tl.constexpr,
    COLUMNS: tl.constexpr,
    acc,
    SLICE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """acc + A B for factors in memory that do not fit the registers, SLICE columns of A and rows of B at a time.

    A's rows are C_PAD values; B's are `b_stride` values apart, and its rows from C on and columns from COLUMNS on count
    as zero. `depth` is C_PAD at run time: a compiler that knows the number of slices loads them all at once.
    """
    LANES: tl.constexpr = min(SLICE, C_PAD)
    lane = tl.arange(0, LANES)
    for first in tl.range(0, C_PAD if LANES == C_PAD else depth, LANES, num_stages=1, disable_licm=True):
        k = first + lane
        inside = (k < C)[:, None] & (column < COLUMNS)[None, :]
        a = tl.load(a_ptr + row[:, None] * C_PAD + k[None, :])
        b = tl.load(b_ptr + k[:, None] * b_stride + column[None, :], inside, 0.0)
        acc = dot(a, b, acc, PRECISION)
    return acc


@triton.jit
def multiply_add(a, b, acc):
    """acc + a b in acc's dtype: float32, or float16 with two values in one instruction."""
    if acc.dtype == tl.float16 and not INTERPRETED:
        a, b, acc = tl.broadcast(a, b)[0], tl.broadcast(b, a)[0], acc
        return tl.inline_asm_elementwise(
            "fma.rn.f16x2 $0, $1, $2, $3;", "=r,r,r,r", [a, b, acc], dtype=tl.float16, is_pure=True, pack=2
        )
    else:
        return (acc.to(tl.float32) + a.to(tl.float32) * b.to(tl.float32)).to(acc.dtype)


@triton.jit
def opaque(x):
    """The int32 x as an opaque value: the compiler does not know that it is the same in every iteration of a loop. So
    it computes addresses that depend on x where they are used, instead of keeping them in registers across the loop."""
    if INTERPRETED:
        return x
    else:
        return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def plus_opaque_zero(x):
    """As `opaque`, of integers of any width and of pointers: x plus a zero that the compiler does not know. x has the
    layout of each of its uses."""
    if INTERPRETED:
        return x
    else:
        zero = tl.inline_asm_elementwise("mov.b32 $0, 0;", "=r,r", [0], dtype=tl.int32, is_pure=False, pack=1)
        return x + 16 * zero  # which keeps what is known of x: that it is a multiple of 16


@triton.jit
def layout_barrier(x):
    """The tile x. If its layout has to change, the compiler converts it here. Without the barrier it would convert what
    x is computed from, and compute x in a layout where several threads hold the same values."""
    if INTERPRETED:
        return x
    else:
        PACK: tl.constexpr = 32 // x.dtype.primitive_bitwidth
        return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=x.dtype, is_pure=False, pack=PACK)


@triton.jit
def zeros_of_sum(rows: tl.constexpr, columns: tl.constexpr, dtype: tl.constexpr):
    """Zeros [rows, columns] to start a sum of loaded tiles with, opaque to the compiler. From a known constant it would
    move the layout conversion that a following product needs from the sum to each of its terms."""
    if INTERPRETED:
        return tl.zeros((rows, columns), dtype)
    else:
        zero = tl.inline_asm_elementwise("mov.b32 $0, 0;", "=r,r", [0], dtype=tl.float32, is_pure=True, pack=1)
        return tl.zeros((rows, columns), dtype) + zero.to(dtype)


@triton.jit
def tanh(x):
    """tanh in x's dtype: float32 to about 3 units in the last place, float16 and bfloat16 by the chip's instruction,
    whose relative error is 2^-11."""
    if x.dtype == tl.float32:
        return _tanh_float32(x)
    elif INTERPRETED:
        return rounded(_tanh_float32(x.to(tl.float32)), x.dtype)
    elif x.dtype == tl.float16:
        return tl.inline_asm_elementwise(
            "tanh.approx.f16x2 $0, $1;", "=r,r", [x], dtype=tl.float16, is_pure=True, pack=2
        )
    else:
        return _tanh_instruction(x.to(tl.float32)).to(x.dtype)


@triton.jit
def _tanh_float32(x):
    """(1 - t) / (1 + t) with t = exp(-2 |x|), which cancels near 0: there the Taylor series up to x^9."""
    t = tl.exp(-2 * tl.abs(x))
    large = (1 - t) / (1 + t)
    z = x * x
    small = x + x * z * (-1 / 3 + z * (2 / 15 + z * (-17 / 315 + z * (62 / 2835))))
    return tl.where(z < 0.0625, small, tl.where(x < 0, -large, large))


@triton.jit
def _tanh_instruction(x):
    """tanh of float32 with a relative error of 2^-11."""
    if INTERPRETED:
        return _tanh_float32(x)
    else:
        return tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def gelu(x, dtype: tl.constexpr):
    """x Phi(x) of float32, as exact as a result that will be rounded to dtype needs it.

    For float16 and bfloat16 erf(x / sqrt 2) = tanh(0.79788 x + 0.035677 x^3), wrong by 3e-4 at most
    (Hendrycks and Gimpel 2016, arXiv 1606.08415): less than half a unit in the last place of float16.
    """
    if dtype == tl.float32:
        return 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))
    else:
        half = 0.5 * x
        return half + half * _tanh_instruction(x * (0.7978845608028654 + 0.035677408136300125 * x * x))


@triton.jit
def gated(gate, value, dtype: tl.constexpr):
    """gelu(gate) * value in dtype. Of float16, with two values in one instruction, each step is rounded."""
    if gate.dtype == tl.float16:
        zero = tl.zeros(gate.shape, tl.float16)
        half = multiply_add(gate, tl.full(gate.shape, 0.5, tl.float16), zero)
        square = multiply_add(gate, gate, zero)
        cubic = tl.full(gate.shape, 0.035677408136300125, tl.float16)
        slope = multiply_add(square, cubic, tl.full(gate.shape, 0.7978845608028654, tl.float16))
        share = tanh(multiply_add(gate, slope, zero))
        return multiply_add(multiply_add(half, share, half), value, zero)
    else:
        return rounded(gelu(gate, dtype) * value, dtype)


@triton.jit
def gelu_and_slope(x, dtype: tl.constexpr):
    """gelu(x) as above, and its derivative Phi(x) + x phi(x)."""
    if dtype == tl.float32:
        share = 0.5 * (1 + tl.erf(x * 0.7071067811865476))
    else:
        share = 0.5 + 0.5 * _tanh_instruction(x * (0.7978845608028654 + 0.035677408136300125 * x * x))
    return x * share, share + x * (0.3989422804014327 * tl.exp(-0.5 * x * x))


@triton.jit
def standardized(x, channel, C: tl.constexpr, eps):
    """(x - mean) / sqrt(var + eps) over the C channels of float32 x [N, C_PAD]; 0 from channel C on."""
    centred, scale = moments(x, channel, C, eps)
    return centred * scale[:, None]


@triton.jit
def moments(x, channel, C: tl.constexpr, eps):
    """x - mean [N, C_PAD], 0 from channel C on, and 1 / sqrt(var + eps) [N]."""
    mean = tl.sum(x, 1) / C
    centred = tl.where((channel < C)[None, :], x - mean[:, None], 0.0)
    variance = tl.sum(centred * centred, 1) / C
    return centred, 1 / tl.sqrt(variance + eps)


@triton.jit
def normalize(x, channel, C: tl.constexpr, NORM: tl.constexpr):
    """The norm over the channels of x [N, C_PAD], without affine part, in x's dtype. Channels from C on are 0."""
    if NORM == "tanh":
        return tanh(x)
    elif NORM == "layernorm":
        return rounded(standardized(x.to(tl.float32), channel, C, LAYER_NORM_EPS), x.dtype)
    else:
        return x


@triton.jit
def normalize_backward(du, x, u, channel, C: tl.constexpr, NORM: tl.constexpr):
    """The gradient of x from du, that of u = normalize(x), which is 0 from channel C on: float32 [..., C_PAD]."""
    wide = u.to(tl.float32)
    if NORM == "tanh":
        return du * (1 - wide * wide)
    elif NORM == "layernorm":
        scale = moments(x.to(tl.float32), channel, C, LAYER_NORM_EPS)[1]
        along = tl.sum(du * wide, 1) / C
        return scale[:, None] * (du - (tl.sum(du, 1) / C)[:, None] - wide * along[:, None])
    else:
        return du


@triton.jit
def column_sums(x):
    """[columns] of float32 x [rows, columns]. A chip adds them as a tree. The interpreter adds one row after the other,
    whose rounding errors would grow with the number of rows: so it does it in two steps."""
    if INTERPRETED:
        return tl.sum(tl.sum(tl.reshape(x, (x.shape[0] // 16, 16, x.shape[1])), 1), 0)
    else:
        return tl.sum(x, 0)


@triton.jit
def load_square(pointer, stride, channel, C: tl.constexpr):
    """[C_PAD, C_PAD], zero from C on, of a matrix with rows of `stride` values."""
    inside = (channel < C)[:, None] & (channel < C)[None, :]
    return tl.load(pointer + channel[:, None] * stride + channel[None, :], inside, 0.0)


@triton.jit
def load_vector(pointer, channel, C: tl.constexpr):
    """[C_PAD] as float32, zero from C on."""
    return tl.load(pointer + channel, channel < C, 0.0).to(tl.float32)
