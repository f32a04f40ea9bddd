// SPDX-License-Identifier: Apache-2.0
// The matrix product that everything is made of: C = bias + A B, or C += bias + A B.
//
// A is a few dozen pixels by at most a few hundred channels and sits in L1; B is packed into panels of at most
// three vectors, so that one panel (60 x 48 floats: 11.5 kB) stays in L1 for all rows. A tile of 8 x 3 vectors
// takes 11 loads for 24 FMAs per step: the FMA units are the bound. Elements are words of the arithmetic P.
#pragma once

#include "amx.h"
#include "buffer.h"

namespace ditn::DITN_LEVEL {

template <class P, int kRows, int kVecs>
DITN_INLINE void tile(const Left& a, int first_row, const float* b, int64_t b_step, int steps, const float* bias,
                      bool add, float* c, int64_t c_row, int64_t c_vec) {
  Vec acc[kRows][kVecs];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 3
    for (int j = 0; j < kVecs; ++j) {
      acc[r][j] = load(bias + j * kLanes);
      if (add) acc[r][j] = acc[r][j] + load(c + r * c_row + j * c_vec);
    }
  }
  const float* left = a.data + first_row * a.row;
  for (int k = 0; k < steps; ++k) {
    Vec w[kVecs];
#pragma GCC unroll 3
    for (int j = 0; j < kVecs; ++j) w[j] = load(b + j * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Vec u = splat(left[r * a.row]);
#pragma GCC unroll 3
      for (int j = 0; j < kVecs; ++j) acc[r][j] = P::multiply_add(u, w[j], acc[r][j]);
    }
    left += a.step;
    b += b_step;
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 3
    for (int j = 0; j < kVecs; ++j) store(c + r * c_row + j * c_vec, acc[r][j]);
  }
}

template <class P, int kVecs>
DITN_INLINE void panel(const Left& a, int rows, const float* b, int64_t b_step, int steps, const float* bias, bool add,
                       const Out& c, float* column) {
  for (int r = 0; r < rows;) {
    float* corner = column + r / c.group * c.group_stride + r % c.group * c.row;
    if (rows - r >= kTileRows && c.group >= kTileRows) {
      tile<P, kTileRows, kVecs>(a, r, b, b_step, steps, bias, add, corner, c.row, c.vec);
      r += kTileRows;
    } else {
      tile<P, 4, kVecs>(a, r, b, b_step, steps, bias, add, corner, c.row, c.vec);
      r += 4;
    }
  }
}

// `rows` is a multiple of 4 (all buffers are padded to that), and so is c.group.
template <class P = Single>
__attribute__((noinline)) static void product(const Left& a, int rows, const Right& b, int vecs, const float* bias,
                                              bool add, const Out& c) {
#if defined(__AMX_BF16__)
  if (P::kPack == 2 && !add && fits_tiles(rows, b)) return tile_product(a, rows, b, vecs, bias, c);
#endif
  for (int v = 0; v < vecs;) {
    const int width = panel_width(vecs - v);
    const float* right = b.panel(v);
    const int64_t step = b.stride > 0 ? b.stride : width * kLanes;
    float* column = c.data + v * c.vec;
    const float* offset = bias + v * kLanes;
    if (width == 3) panel<P, 3>(a, rows, right, step, b.steps, offset, add, c, column);
    if (width == 2) panel<P, 2>(a, rows, right, step, b.steps, offset, add, c, column);
    if (width == 1) panel<P, 1>(a, rows, right, step, b.steps, offset, add, c, column);
    v += width;
  }
}

// Operands out of rows of floats, for which `words` is room: rows with the depth along them, columns with the depth down
// them, and a right side with the depth down the rows.
template <class P>
DITN_INLINE Left along(const float* rows, int64_t count, int64_t pitch, int width, float* words) {
  return rows_of(P::along(rows, count, pitch, width, words), pitch);
}

template <class P>
DITN_INLINE Left across(const float* rows, int64_t count, int64_t pitch, int width, float* words) {
  return columns_of(P::across(rows, count, pitch, width, words), pitch);
}

template <class P>
DITN_INLINE Right down(const float* rows, int64_t count, int64_t pitch, int width, float* words) {
  return {P::across(rows, count, pitch, width, words), static_cast<int>((count + P::kPack - 1) / P::kPack), pitch};
}

// Room for so many words; a float needs none.
template <class P>
static int64_t words(int64_t count) {
  return P::kPack > 1 ? count : 0;
}

// A weight matrix in the order in which product() reads it.
template <class P>
class PackedAs {
 public:
  // value(k, n) is the weight from input k to output n, for n < vecs * kLanes.
  template <class Value>
  PackedAs(int depth, int vecs, const Value& value)
      : steps_(P::steps(depth)), data_(static_cast<int64_t>(steps_) * vecs * kLanes) {
    float* out = data_;
    for (int v = 0; v < vecs;) {
      const int width = panel_width(vecs - v);
      for (int k = 0; k < steps_; ++k) {
        for (int n = v * kLanes; n < (v + width) * kLanes; ++n) {
          *out++ = P::word([&](int i) { return i < depth ? value(i, n) : 0.0f; }, k);
        }
      }
      v += width;
    }
  }

  Right right() const { return {data_, steps_, 0}; }

 private:
  int steps_;
  Buffer data_;
};

using Packed = PackedAs<Single>;

}  // namespace ditn::DITN_LEVEL
