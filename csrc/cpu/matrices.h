// SPDX-License-Identifier: Apache-2.0
// The matrices of a product, where they lie. Elements are words of an arithmetic.
#pragma once

#include "arithmetic.h"

namespace ditn::DITN_LEVEL {

// A: word (r, k) is at data[r * row + k * step].
struct Left {
  const float* data;
  int64_t row, step;
};

DITN_INLINE Left rows_of(const float* p, int64_t row) { return {p, row, 1}; }
DITN_INLINE Left columns_of(const float* p, int64_t row) { return {p, 1, row}; }

// B: packed panels, or (stride > 0) a plain matrix whose rows are `stride` words apart. `steps` is its depth in words.
struct Right {
  const float* data;
  int steps;
  int64_t stride;

  const float* panel(int vec) const {
    const int64_t words = static_cast<int64_t>(vec) * kLanes;
    return stride > 0 ? data + words : data + words * steps;
  }
};

// C: vector j of row r is at data + (r / group) * group_stride + (r % group) * row + j * vec.
constexpr int kWhole = 1 << 30;  // all rows are one group
struct Out {
  float* data;
  int64_t row;
  int64_t vec = kLanes;
  int group = kWhole;
  int64_t group_stride = 0;
};

// Panels of three; four vectors are two and two, since a panel of one loads more than it multiplies.
DITN_INLINE int panel_width(int vecs_left) { return vecs_left == 4 ? 2 : vecs_left < 3 ? vecs_left : 3; }

}  // namespace ditn::DITN_LEVEL
