// SPDX-License-Identifier: Apache-2.0
// Depthwise convolutions of up to seven taps a line as products with band matrices; ../bands.cuh has the same of three taps.
//
// A line of 8 results sees 16 columns, of which its own are the first: the factor a is of depth 16, two matrices of 8 columns. Of
// T_i[x'][x] = w[i][x' - x] a lane holds, with d = column() - row() from -7 to 6, the pairs (w[i][d], w[i][d + 1]) and
// (w[i][d + 8], w[i][d + 9]). The first is zero where d < -1, and the second where not. So a lane needs one word for each i, and
// knows to which of its two it belongs; those at d and at d + 8 have the same place in a table of eight.
#pragma once

#include "../warp.cuh"
#include "elements.cuh"

namespace ditn::cuda::hopper {

// A channel's table has 16 bytes for each place, from d = -1 on, with the words for i from 0 to 3; then 16 for each with the words
// for i from 4 to 6, and the bias twice.
constexpr int kWidePlaces = 8, kWideTable = 2 * kWidePlaces * sizeof(uint4);

__device__ __forceinline__ int wide_place() { return (column() - row() + 1) & (kWidePlaces - 1); }

// The i-th value of a channel's table: tap(line, column) of those that exist, and the bias.
template <class T, class Tap>
__device__ T value_of_table(int i, int taps, T bias, const Tap& tap) {
  const int line = i / (8 * kWidePlaces) * 4 + i % 8 / 2, column = i / 8 % kWidePlaces - 1 + i % 2;
  if (line == 7) return bias;
  return line < taps && column >= 0 && column < taps ? tap(line, column) : T(0.0f);
}

// A lane's part of the matrices of a channel with SIZE x SIZE taps, from the two pieces of the table at its place.
template <int SIZE>
struct WideBands {
  unsigned first[SIZE], second[SIZE], bias;

  __device__ WideBands(const uint4& upper, const uint4& lower) : bias(lower.w) {
    const unsigned words[7] = {upper.x, upper.y, upper.z, upper.w, lower.x, lower.y, lower.z};
    const unsigned mask = column() - row() < -1 ? 0 : ~0u;
#pragma unroll
    for (int i = 0; i < SIZE; ++i) {
      first[i] = words[i] & mask;
      second[i] = words[i] & ~mask;
    }
  }
};

// words[n]: sums [16 lines, 8] of the bias and what the taps make of the lines that load(lines, i, n) gives for the taps of line i.
template <class T, int SIZE, int RESULTS, class Load>
__device__ __forceinline__ void convolve(unsigned (&words)[RESULTS][2], const WideBands<SIZE>& taps, const Load& load) {
  BandSums<T> sums[RESULTS];
#pragma unroll
  for (BandSums<T>& one : sums) one = BandSums<T>(taps.bias, taps.bias);
#pragma unroll
  for (int i = 0; i < SIZE; ++i) {
#pragma unroll
    for (int n = 0; n < RESULTS; ++n) {
      unsigned lines[4];
      load(lines, i, n);
      sums[n].add(lines, taps.first[i], taps.second[i]);
    }
  }
#pragma unroll
  for (int n = 0; n < RESULTS; ++n) sums[n].round(words[n]);
}

}  // namespace ditn::cuda::hopper
