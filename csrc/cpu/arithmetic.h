// SPDX-License-Identifier: Apache-2.0
// What products multiply. An operand is made of words of 32 bits: a float, or two neighbours of its depth as bfloat16,
// which one instruction multiplies and adds in float32. So both kinds share every layout, and a product of pairs is the
// same loop over half as many words. Words are handled as floats and only ever moved.
#pragma once

#include <cstring>

#include "half.h"

namespace ditn::DITN_LEVEL {

struct Single {
  static constexpr int kPack = 1;  // values in a word

  // Words of so many values.
  static int steps(int depth) { return depth; }
  DITN_INLINE Vec multiply_add(Vec a, Vec b, Vec c) { return fma(a, b, c); }
  // Word k of a column whose value at depth i is value(i).
  template <class Value>
  static float word(const Value& value, int k) {
    return value(k);
  }
  // Rows of `width` floats, `pitch` apart, into words in place. Along: the depth runs along the row. Across: it runs
  // down the rows, whose words are then kPack * pitch apart; behind an odd number of rows there is one more, of zeros.
  static void pack_along(float*, int64_t, int64_t, int) {}
  static void pack_across(float*, int64_t, int64_t, int) {}
  // The same, but into `words`, which may be where the rows are. Words across are one `pitch` apart here, and what is behind
  // an odd number of rows is taken for zeros. A float is a word: these stay where they are.
  static const float* along(const float* rows, int64_t, int64_t, int, float*) { return rows; }
  static const float* across(const float* rows, int64_t, int64_t, int, float*) { return rows; }
};

#if defined(__AVX512BF16__)

struct Pairs {
  static constexpr int kPack = 2;

#if defined(__AMX_BF16__)
  // With zeros up to whole vectors, which the rows on the other side have, too: tiles are as deep.
  static int steps(int depth) { return vecs_for(depth) * kLanes / 2; }
#else
  static int steps(int depth) { return (depth + 1) / 2; }
#endif
  DITN_INLINE Vec multiply_add(Vec a, Vec b, Vec c) {
    return _mm512_dpbf16_ps(c, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
  template <class Value>
  static float word(const Value& value, int k) {
    return _mm512_cvtss_f32(joined(splat(value(2 * k)), splat(value(2 * k + 1))));
  }
  static void pack_along(float* rows, int64_t count, int64_t pitch, int width) { along(rows, count, pitch, width, rows); }
  static void pack_across(float* rows, int64_t count, int64_t pitch, int width) {
    for (int64_t i = 0; i < count; i += 2) {
      float* row = rows + i * pitch;
      for (int at = 0; at < width; at += kLanes) store(row + at, joined(load(row + at), load(row + pitch + at)));
    }
  }
  static const float* along(const float* rows, int64_t count, int64_t pitch, int width, float* words) {
    for (int64_t i = 0; i < count; ++i) {
      const float* row = rows + i * pitch;
      for (int at = 0; at < width; at += 2 * kLanes) {
        const Vec behind = at + kLanes < width ? load(row + at + kLanes) : splat(0.0f);
        store(words + i * pitch + at / 2, narrowed(load(row + at), behind));
      }
    }
    return words;
  }
  static const float* across(const float* rows, int64_t count, int64_t pitch, int width, float* words) {
    for (int64_t i = 0; i < count; i += 2) {
      const float* row = rows + i * pitch;
      for (int at = 0; at < width; at += kLanes) {
        const Vec below = i + 1 < count ? load(row + pitch + at) : splat(0.0f);
        store(words + i / 2 * pitch + at, joined(load(row + at), below));
      }
    }
    return words;
  }

 private:
  // [a0 .. a15 b0 .. b15]
  DITN_INLINE Vec narrowed(Vec a, Vec b) { return reinterpret_cast<Vec>(_mm512_cvtne2ps_pbh(b, a)); }
  // [a0 b0 a1 b1 ..]
  DITN_INLINE Vec joined(Vec a, Vec b) {
    alignas(64) static constexpr uint16_t kOrder[] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return _mm512_castsi512_ps(_mm512_permutexvar_epi16(_mm512_load_si512(kOrder), _mm512_castps_si512(narrowed(a, b))));
  }
};

#endif

// How activations of type T are multiplied.
template <class T>
struct Multiplied {
  using As = Single;
};
#if defined(__AVX512BF16__)
template <>
struct Multiplied<bfloat16> {
  using As = Pairs;
};
#endif

}  // namespace ditn::DITN_LEVEL
