// SPDX-License-Identifier: Apache-2.0
// The gradient of depthwise taps, all channels of some pixels of a row.
#pragma once

#include "norm.h"

namespace ditn::DITN_LEVEL {

// sums [taps, stride] += the gradient for `count` pixels: d, their results' gradient, is zero behind them; corner is
// where the first pixel's first tap reads. kTileRows pixels of d stay in registers.
template <int kSize, int kDilation>
DITN_INLINE void depthwise_taps(const float* corner, int64_t row, const Rows& rows, const float* d, int count,
                                float* sums) {
  constexpr int kRead = kTileRows + (kSize - 1) * kDilation;
  const int stride = rows.stride;
  for (int x = 0; x < count; x += kTileRows) {
    for (int j = 0; j < stride; j += kLanes) {
      Vec pixels[kTileRows];
#pragma GCC unroll 8
      for (int i = 0; i < kTileRows; ++i) pixels[i] = load(d + (x + i) * stride + j);
      for (int dy = 0; dy < kSize; ++dy) {
        const float* from = corner + dy * kDilation * row + x * stride + j;
        Vec total[kSize] = {};
#pragma GCC unroll 26
        for (int read = 0; read < kRead; ++read) {
          const Vec pixel = load(from + read * stride);
#pragma GCC unroll 7
          for (int dx = 0; dx < kSize; ++dx) {
            const int i = read - dx * kDilation;
            if (i >= 0 && i < kTileRows) total[dx] = fma(pixel, pixels[i], total[dx]);
          }
        }
#pragma GCC unroll 7
        for (int dx = 0; dx < kSize; ++dx) {
          float* tap = sums + (dy * kSize + dx) * stride + j;
          store(tap, load(tap) + total[dx]);
        }
      }
    }
  }
}

}  // namespace ditn::DITN_LEVEL
