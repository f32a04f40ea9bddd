// SPDX-License-Identifier: Apache-2.0
// Products of pairs of bfloat16 on the tile unit of Intel's chips, AMX: in 16 cycles 16 x 16 sums += 16 rows of 16 words by
// 16 words of 16 columns, 16 times what FMA units do. Operands lie as for all other levels; a tile reads them as they are.
#pragma once

#include "matrices.h"

#if defined(__AMX_BF16__)

namespace ditn::DITN_LEVEL {

// While it lives, this thread's tiles are 16 rows of 64 bytes each. Other libraries have other shapes.
class TileUnit {
 public:
  TileUnit() { _tile_loadconfig(&kShapes); }
  ~TileUnit() { _tile_release(); }
  TileUnit(const TileUnit&) = delete;

 private:
  struct Shapes {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  };
  // Not on the stack: GCC believes that the instruction reads 8 bytes, and would not write the others.
  static constexpr Shapes kShapes = {1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
};

constexpr int kDeepest = 128;  // words of a column: a patch of 16 x 16 pixels

DITN_INLINE bool fits_tiles(int rows, const Right& b) { return rows >= 16 && b.steps % 16 == 0; }

// out[16][steps] = the 16 columns from `first` on.
DITN_INLINE void turn(const Left& a, int first, int steps, float* out) {
  for (int k = 0; k < steps; k += 16) {
    Vec rows[16], pairs[16], quads[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) rows[i] = load(a.data + (k + i) * a.step + first);
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
      pairs[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
      pairs[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
    }
    const auto low = [](Vec v, Vec w) {
      return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(v), _mm512_castps_pd(w)));
    };
    const auto high = [](Vec v, Vec w) {
      return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(v), _mm512_castps_pd(w)));
    };
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
      quads[i] = low(pairs[i], pairs[i + 2]);
      quads[i + 1] = high(pairs[i], pairs[i + 2]);
      quads[i + 2] = low(pairs[i + 1], pairs[i + 3]);
      quads[i + 3] = high(pairs[i + 1], pairs[i + 3]);
    }
    // Quarter q of quads[4 i + j] is column 4 q + j of rows 4 i to 4 i + 3.
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const Vec even = _mm512_shuffle_f32x4(quads[j], quads[4 + j], 0x88);
      const Vec odd = _mm512_shuffle_f32x4(quads[j], quads[4 + j], 0xdd);
      const Vec even2 = _mm512_shuffle_f32x4(quads[8 + j], quads[12 + j], 0x88);
      const Vec odd2 = _mm512_shuffle_f32x4(quads[8 + j], quads[12 + j], 0xdd);
      store(out + j * steps + k, _mm512_shuffle_f32x4(even, even2, 0x88));
      store(out + (4 + j) * steps + k, _mm512_shuffle_f32x4(odd, odd2, 0x88));
      store(out + (8 + j) * steps + k, _mm512_shuffle_f32x4(even, even2, 0xdd));
      store(out + (12 + j) * steps + k, _mm512_shuffle_f32x4(odd, odd2, 0xdd));
    }
  }
}

// The tiles of two times 16 rows by two vectors, or of one of either: 0 and 1 above 2 and 3.
template <bool kTwoRows, bool kTwoVecs>
DITN_INLINE void multiply_tiles(const float* upper, const float* lower, int64_t a_row, const float* b, int64_t b_step,
                                int steps, const float* bias) {
  constexpr int64_t kWord = sizeof(float);
  __asm__ volatile("" ::: "memory");  // GCC does not know that tiles are loaded from memory, and may write it later
  _tile_loadd(0, bias, 0);
  if (kTwoVecs) _tile_loadd(1, bias + kLanes, 0);
  if (kTwoRows) _tile_loadd(2, bias, 0);
  if (kTwoRows && kTwoVecs) _tile_loadd(3, bias + kLanes, 0);
  for (int k = 0; k < steps; k += 16, b += 16 * b_step) {
    _tile_loadd(4, upper + k, a_row * kWord);
    _tile_loadd(6, b, b_step * kWord);
    _tile_dpbf16ps(0, 4, 6);
    if (kTwoVecs) _tile_loadd(7, b + kLanes, b_step * kWord);
    if (kTwoVecs) _tile_dpbf16ps(1, 4, 7);
    if (kTwoRows) _tile_loadd(5, lower + k, a_row * kWord);
    if (kTwoRows) _tile_dpbf16ps(2, 5, 6);
    if (kTwoRows && kTwoVecs) _tile_dpbf16ps(3, 5, 7);
  }
}

// Writes what multiply_tiles computed, rows `upper` and `lower` on.
template <bool kTwoRows, bool kTwoVecs>
DITN_INLINE void store_tiles(const Out& c, int upper, int lower, int v) {
  if (c.group >= kWhole) {
    float *above = c.data + upper * c.row + v * c.vec, *below = c.data + lower * c.row + v * c.vec;
    const int64_t row = c.row * static_cast<int64_t>(sizeof(float));
    _tile_stored(0, above, row);
    if (kTwoVecs) _tile_stored(1, above + c.vec, row);
    if (kTwoRows) _tile_stored(2, below, row);
    if (kTwoRows && kTwoVecs) _tile_stored(3, below + c.vec, row);
    return;
  }
  alignas(64) float sums[4][16 * kLanes];
  _tile_stored(0, sums[0], 64);
  if (kTwoVecs) _tile_stored(1, sums[1], 64);
  if (kTwoRows) _tile_stored(2, sums[2], 64);
  if (kTwoRows && kTwoVecs) _tile_stored(3, sums[3], 64);
  for (int part = 0; part <= kTwoRows; ++part) {
    const int first = part ? lower : upper;
    for (int r = 0; r < 16; ++r) {
      float* out = c.data + (first + r) / c.group * c.group_stride + (first + r) % c.group * c.row + v * c.vec;
      for (int j = 0; j <= kTwoVecs; ++j) store(out + j * c.vec, load(sums[2 * part + j] + r * kLanes));
    }
  }
}

// C = bias + A B, for what fits tiles. The last 16 rows may be computed twice.
DITN_INLINE void tile_product(const Left& a, int rows, const Right& b, int vecs, const float* bias, const Out& c) {
  alignas(64) float turned[2][16 * kDeepest];
  for (int r = 0; r < rows; r += 32) {
    const bool two_rows = rows - r > 16;
    const int last = rows - 16, upper = r < last ? r : last, lower = r + 16 < last ? r + 16 : last;
    const float *above = a.data + upper * a.row, *below = a.data + lower * a.row;
    int64_t a_row = a.row;
    if (a.step != 1) {
      turn(a, upper, b.steps, turned[0]);
      if (two_rows) turn(a, lower, b.steps, turned[1]);
      above = turned[0], below = turned[1], a_row = b.steps;
    }
    const auto multiply = [&]<bool kTwoRows, bool kTwoVecs>(int v, const float* right, int64_t step) {
      multiply_tiles<kTwoRows, kTwoVecs>(above, below, a_row, right, step, b.steps, bias + v * kLanes);
      store_tiles<kTwoRows, kTwoVecs>(c, upper, lower, v);
    };
    for (int v = 0; v < vecs; v += panel_width(vecs - v)) {
      const int width = panel_width(vecs - v);
      const int64_t step = b.stride > 0 ? b.stride : width * kLanes;
      for (int j = 0; j < width; j += 2) {
        const float* right = b.panel(v) + j * kLanes;
        if (width - j > 1) {
          two_rows ? multiply.template operator()<true, true>(v + j, right, step)
                   : multiply.template operator()<false, true>(v + j, right, step);
        } else {
          two_rows ? multiply.template operator()<true, false>(v + j, right, step)
                   : multiply.template operator()<false, false>(v + j, right, step);
        }
      }
    }
  }
}

}  // namespace ditn::DITN_LEVEL

#endif
