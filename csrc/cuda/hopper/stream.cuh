// SPDX-License-Identifier: Apache-2.0
// The pixels of a patch in the registers of a warpgroup, and what its warps do with tiles.
#pragma once

#include "../pixels.cuh"
#include "elements.cuh"
#include "layout.cuh"

namespace ditn::cuda::hopper {

// Values as the left factor of a product of depth 64: [depth / 16][word of mma.m16n8k16's a].
using Factor = unsigned[4][4];

// The same in all lanes of a warp, which lets the compiler keep what comes of it in registers that they share.
__device__ __forceinline__ int uniform(int x) { return __shfl_sync(0xffffffff, x, 0); }

// Channel kOne of a row of a factor becomes 1, or 0 where there is no such pixel: `upper` is about row row(), `lower` about the
// one 8 below.
template <class T>
__device__ __forceinline__ void set_one(Factor& factor, bool upper = true, bool lower = true) {
  const bool mine = column() == kOne % 8 - 1;
#pragma unroll
  for (int i = 2; i < 4; ++i) {
    const unsigned one = (i == 2 ? upper : lower) ? Words<T>::kOne << 16 : 0;
    factor[3][i] = mine ? (factor[3][i] & 0xffff) | one : factor[3][i];
  }
}

// Sums of a product as a factor, after scaling the rows.
template <class T>
__device__ __forceinline__ void round_sums(Factor& factor, const float (&sums)[32], float upper, float lower) {
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    const float scale = i % 2 ? lower : upper;
    factor[i / 4][i % 4] = Words<T>::rounded(sums[2 * i] * scale, sums[2 * i + 1] * scale);
  }
}
template <class T>
__device__ __forceinline__ void round_sums(Factor& factor, const float (&sums)[32]) {
#pragma unroll
  for (int i = 0; i < 16; ++i) factor[i / 4][i % 4] = Words<T>::rounded(sums[2 * i], sums[2 * i + 1]);
}

// From the descriptor of a tile to that of the next one, of the next 16 columns and of the next 16 rows.
constexpr uint64_t kNextTile = kTileBytes / 16, kNextColumns = 16 * 2 / 16, kNextRows = 16 * kSide * 2 / 16;

// sums = factor b^T. b: the descriptor of a tile [column of the result][depth].
template <class T>
__device__ __forceinline__ void start_product(float (&sums)[32], const Factor& factor, uint64_t b) {
#pragma unroll
  for (int k = 0; k < 4; ++k) multiply_tile<T>(sums, factor[k], b + k * kNextColumns, k != 0);
}

// sums = a b^T of two tiles [row or column of the result][depth].
template <class T>
__device__ __forceinline__ void start_product(float (&sums)[32], uint64_t a, uint64_t b) {
#pragma unroll
  for (int k = 0; k < 4; ++k) multiply_tile<T, false>(sums, a + k * kNextColumns, b + k * kNextColumns, k != 0);
}

// Planes of ones and one of zeros, as StageMemory has them. By all threads, which then have to meet.
template <class T>
__device__ __forceinline__ void fill_ones(unsigned ones) {
  for (int i = threadIdx.x; i < (kAttentionTiles + 1) * kSide; i += blockDim.x) {
    const int column = i / kSide;
    const unsigned one = Words<T>::kOne << column % 2 * 16;
    store_piece(ones + i * kPiece, {column / 2 == 0 ? one : 0, column / 2 == 1 ? one : 0, 0, 0});
  }
  publish();
}

// With 64 channels: sums += the biases of tile `tile`, one for each row or, if not OF_ROWS, for each column. `biases`: their plane.
template <bool FULL, bool OF_ROWS, class T>
__device__ __forceinline__ void add_biases(float (&sums)[32], unsigned biases, unsigned ones, int tile) {
  if constexpr (FULL) {
    const uint64_t bias = plane_descriptor(biases, ones + kAttentionTiles * kPlane - biases);
    const uint64_t one = plane_descriptor(ones + tile * kPlane, (kAttentionTiles - tile) * kPlane);
    multiply_tile<T, false>(sums, OF_ROWS ? bias : one, OF_ROWS ? one : bias, true);
  }
}

// x [64 pixels][64 channels], as a factor: of it warp w of the warpgroup has the pixels 16 w on. A lane has two, `row` values
// apart, which exist or not (`upper`, `lower`). Channels behind the last are zeros.
template <class T>
class Stream {
 public:
  // Zeros for a pixel that does not exist.
  __device__ Stream(const T* source, int row, int channels, bool pairs, bool upper, bool lower) {
    const T* const sources[2] = {source + column(), source + column() + row};
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const int c = 8 * (i / 2) + column();
      const T* from = sources[i % 2] + 8 * (i / 2);
      words_[i / 4][i % 4] = 0;
      if (!(i % 2 ? lower : upper) || c >= channels) continue;
      words_[i / 4][i % 4] = pairs ? __ldg(reinterpret_cast<const unsigned*>(from))
                                   : Words<T>::of(from[0], c + 1 < channels ? from[1] : T(0.0f));
    }
  }

  __device__ void store(T* target, int row, int channels, bool pairs, bool upper = true, bool lower = true) const {
    T* const targets[2] = {target + column(), target + column() + row};
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const int c = 8 * (i / 2) + column();
      T* to = targets[i % 2] + 8 * (i / 2);
      if (!(i % 2 ? lower : upper) || c >= channels) continue;
      if (pairs) {
        *reinterpret_cast<unsigned*>(to) = words_[i / 4][i % 4];
      } else {
        to[0] = Words<T>::first(words_[i / 4][i % 4]);
        if (c + 1 < channels) to[1] = Words<T>::second(words_[i / 4][i % 4]);
      }
    }
  }

  // u = norm(x), and 1 in channel kOne unless all 64 are there; all of it 0 for a pixel that does not exist.
  template <Norm NORM, bool FULL = false>
  __device__ void normalize(Factor& u, int channels, bool upper = true, bool lower = true) const {
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const unsigned x = words_[i / 4][i % 4];
      u[i / 4][i % 4] = NORM == Norm::kTanh ? Words<T>::tanh(x) : x;
    }
    if constexpr (NORM == Norm::kLayerNorm) {
#pragma unroll
      for (int half = 0; half < 2; ++half) layer_norm(u, channels, half);
    }
    if constexpr (!FULL) set_one<T>(u, upper, lower);
  }

  __device__ void add(const float (&sums)[32]) {
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      unsigned& word = words_[i / 4][i % 4];
      word = Words<T>::sum(word, Words<T>::rounded(sums[2 * i], sums[2 * i + 1]));
    }
  }

 private:
  // Of the pixels row() + 8 half of the warp.
  __device__ void layer_norm(Factor& u, int channels, int half) const {
    const int end = channels - column();  // of this lane
    float sum = 0, squares = 0;
#pragma unroll
    for (int i = half; i < 16; i += 2) {
      const float2 x = Words<T>::widened(words_[i / 4][i % 4]);
      sum += x.x + x.y;
    }
    const float share = __fdividef(1.0f, static_cast<float>(channels)), mean = row_sum(sum) * share;
#pragma unroll
    for (int i = half; i < 16; i += 2) {
      const float2 x = Words<T>::widened(words_[i / 4][i % 4]);
      squares += 8 * (i / 2) < end ? (x.x - mean) * (x.x - mean) : 0;
      squares += 8 * (i / 2) + 1 < end ? (x.y - mean) * (x.y - mean) : 0;
    }
    const float scale = rsqrtf(row_sum(squares) * share + kLayerNormEps);
#pragma unroll
    for (int i = half; i < 16; i += 2) {
      const float2 x = Words<T>::widened(words_[i / 4][i % 4]);
      u[i / 4][i % 4] = Words<T>::rounded((x.x - mean) * scale, (x.y - mean) * scale);  // behind the channels weights are zero
    }
  }

  Factor words_;
};

}  // namespace ditn::cuda::hopper
