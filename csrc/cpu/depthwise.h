// SPDX-License-Identifier: Apache-2.0
// Depthwise convolutions of one vector of channels, several pixels of a row at a time.
#pragma once

#include "norm.h"

namespace ditn::DITN_LEVEL {

// acc[i] = bias + the kSize x kSize taps on pixel i: lines[dy] points at what tap dy meets first, pixels are `step` floats
// apart and taps `tap_step`. Each pixel is read once for all the sums it goes into: a row of the 7x7 with dilation 3 on 16
// pixels takes 41 loads for 112 FMAs. Two FMA units of latency 4 want more than 8 sums at a time.
template <int kPixels, int kSize, int kDilation>
DITN_INLINE void depthwise(const float* const* lines, int64_t step, const float* taps, int64_t tap_step, Vec bias,
                           Vec (&acc)[kPixels]) {
  constexpr int kRead = kPixels + (kSize - 1) * kDilation;
#pragma GCC unroll 16
  for (int i = 0; i < kPixels; ++i) acc[i] = bias;
#pragma GCC unroll 3
  for (int dy = 0; dy < kSize; ++dy) {
    Vec tap[kSize];
#pragma GCC unroll 7
    for (int dx = 0; dx < kSize; ++dx) tap[dx] = load(taps + (dy * kSize + dx) * tap_step);
#pragma GCC unroll 34
    for (int read = 0; read < kRead; ++read) {
      const Vec pixel = load(lines[dy] + read * step);
#pragma GCC unroll 7
      for (int dx = 0; dx < kSize; ++dx) {
        const int i = read - dx * kDilation;
        if (i >= 0 && i < kPixels) acc[i] = fma(tap[dx], pixel, acc[i]);
      }
    }
  }
}

// All channels of `count` pixels of a row, rounded up to kTileRows; taps [kSize * kSize, stride].
template <int kSize, int kDilation>
DITN_INLINE void depthwise_row(const float* corner, int64_t row, const Rows& rows, const float* taps, const float* bias,
                               int count, float* out) {
  for (int x = 0; x < count; x += kTileRows) {
    for (int j = 0; j < rows.vecs; ++j) {
      const float* lines[kSize];
      for (int dy = 0; dy < kSize; ++dy) lines[dy] = corner + dy * kDilation * row + x * rows.stride + j * kLanes;
      Vec acc[kTileRows];
      depthwise<kTileRows, kSize, kDilation>(lines, rows.stride, taps + j * kLanes, rows.stride, load(bias + j * kLanes), acc);
#pragma GCC unroll 8
      for (int i = 0; i < kTileRows; ++i) store(out + (x + i) * rows.stride + j * kLanes, acc[i]);
    }
  }
}

}  // namespace ditn::DITN_LEVEL
