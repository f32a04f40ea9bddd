// SPDX-License-Identifier: Apache-2.0
// Attention of a patch by a warpgroup. Queries and keys are [channels, pixels]: W u^T, for which u lies in shared memory. The
// scores are then q, from registers, times k; what comes of v and of them goes on as a left factor without leaving registers.
#pragma once

#include "stream.cuh"

namespace ditn::cuda::hopper {

// Where the row of a tile lies that store_matrices wants from a thread: of the 16 rows of its warp, words 0 and 1 of a factor are
// columns 0 to 7, words 2 and 3 columns 8 to 15. Those of the next 16 k columns are at ^ 32 k.
__device__ __forceinline__ unsigned place_in_tile() {
  const int row = threadIdx.x % 128 / 32 * 16 + lane() % 16;
  return row * 128 + ((lane() / 16 ^ row % 8) << 4);
}

__device__ __forceinline__ void store_factor(unsigned tile, unsigned place, const Factor& factor) {
#pragma unroll
  for (int k = 0; k < 4; ++k) store_matrices(tile + (place ^ k << 5), factor[k]);
}

// One divided by the lengths of a lane's two rows.
struct InverseLengths {
  float upper, lower;
  __device__ explicit InverseLengths(const float (&sums)[32]) {
    float squares[2] = {};
#pragma unroll
    for (int i = 0; i < 32; ++i) squares[i / 2 % 2] += sums[i] * sums[i];
    upper = inverse_length(squares[0]);
    lower = inverse_length(squares[1]);
  }
};

// factor = softmax over the columns below `channels` of a lane's two rows, multiplied by `upper` and `lower`: to the base 2, for
// which those make up. So multiplied scores are at most `bound`.
template <class T>
__device__ __forceinline__ void softmax(Factor& factor, float (&sums)[32], float upper, float lower, float bound, int channels) {
  const int end = channels - column();  // of this lane
  float largest[2] = {}, total[2] = {};
  // Below that powers neither overflow nor vanish, whatever the scores, and nothing needs to be subtracted.
  const bool large = bound > 60;
  assume_network(!large);
  if (large) {
    largest[0] = largest[1] = -INFINITY;
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      const float score = sums[i] * (i / 2 % 2 ? lower : upper);
      largest[i / 2 % 2] = fmaxf(largest[i / 2 % 2], 8 * (i / 4) + i % 2 < end ? score : -INFINITY);
    }
    for (float& one : largest) one = row_max(one);
  }
#pragma unroll
  for (int i = 0; i < 32; ++i) sums[i] = exp2_approx(fmaf(sums[i], i / 2 % 2 ? lower : upper, -largest[i / 2 % 2]));
  if (channels <= kSide - 8) {
#pragma unroll
    for (int i = 0; i < 28; ++i) sums[i] = 8 * (i / 4) + i % 2 < end ? sums[i] : 0;
  }
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    if (i >= 28) sums[i] = 8 * (i / 4) + i % 2 < end ? sums[i] : 0;
    total[i / 2 % 2] += sums[i];
  }
  round_sums<T>(factor, sums, __fdividef(1.0f, row_sum(total[0])), __fdividef(1.0f, row_sum(total[1])));
}

// x += W_o (softmax(t qn kn^T) v) + b_o of a warpgroup's patch. `tile` and the one behind it are its own, and not in use;
// `weights` and, for 64 channels, `ones` where these lie. The warpgroup's threads meet at `barrier`.
template <Norm NORM, bool FULL, class T>
__device__ __forceinline__ void attend(Stream<T>& x, unsigned weights, unsigned ones, unsigned tile, float temperature, int channels,
                                       int barrier) {
  const unsigned place = place_in_tile(), biases = weights + kAttentionBiases;
  const uint64_t of_weights = tile_descriptor(weights), of_tile = tile_descriptor(tile), of_second = of_tile + kNextTile;
  const auto meet_warpgroup = [&] {
    publish();
    meet(barrier, 128);
  };
  Factor u, factor;
  float sums[32];
  x.template normalize<NORM, FULL>(u, channels);
  store_factor(tile, place, u);
  meet_warpgroup();

  begin_products();
  start_product<T>(sums, of_weights + kNextTile, of_tile);
  add_biases<FULL, true, T>(sums, biases, ones, 1);
  finish_products();
  const InverseLengths of_k(sums);
  round_sums<T>(factor, sums, of_k.upper, of_k.lower);
  store_factor(tile + kTileBytes, place, factor);

  begin_products();
  start_product<T>(sums, of_weights, of_tile);
  add_biases<FULL, true, T>(sums, biases, ones, 0);
  finish_products();
  const InverseLengths of_q(sums);
  round_sums<T>(factor, sums);
  meet_warpgroup();
  begin_products();
  start_product<T>(sums, factor, of_second);
  finish_products();
  const float scale = temperature * 1.4426950408889634f;  // log2(e)
  softmax<T>(factor, sums, scale * of_q.upper, scale * of_q.lower, fabsf(scale), channels);
  store_factor(tile, place, factor);

  begin_products();
  start_product<T>(sums, u, of_weights + 2 * kNextTile);
  add_biases<FULL, false, T>(sums, biases, ones, 2);
  finish_products();
  round_sums<T>(factor, sums);
  meet_warpgroup();
  begin_products();
  start_product<T>(sums, factor, of_tile);
  finish_products();
  round_sums<T>(factor, sums);
  if constexpr (!FULL) set_one<T>(factor);
  begin_products();
  start_product<T>(sums, factor, of_weights + 3 * kNextTile);
  add_biases<FULL, false, T>(sums, biases, ones, 3);
  finish_products();
  x.add(sums);
}

}  // namespace ditn::cuda::hopper
