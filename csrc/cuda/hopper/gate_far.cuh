// SPDX-License-Identifier: Apache-2.0
// The second kernel of dilated_gate: y = x + W_out (g * (W_mix far + b_mix)) + b_out, g = W_g norm(x) + b_g, where far is
// dw7x7(near) + b with dilation 3. A block to a multiprocessor, of 32 lines by 24 columns at a time.
#pragma once

#include "gate_layout.cuh"
#include "stream.cuh"

namespace ditn::cuda::hopper::gate {

// What of the tiles of results never changes: the last channel is 1, for the bias of W_mix; those behind the last are 0.
template <class T>
__device__ __forceinline__ void fill_results(unsigned results, int channels) {
  const int words = (kSide - channels) * (kSide / 2);
  for (int i = threadIdx.x; i < kFarTiles * words; i += kFarThreads) {
    const int word = channels * (kSide / 2) + i % words;
    store_word(results + i / words * kTileBytes + word * 4, word / (kSide / 2) == kOne ? Words<T>::kOne * 0x10001 : 0);
  }
}

// x += W_out (g * (W_mix far + b_mix)) + b_out of 64 pixels by a warpgroup. far, weights: descriptors, of a tile [channel][pixel] and
// of the first of three. Each product has sums of its own: where they were shared, ptxas 13.0 lost one (docs/kernel-notes.md).
template <Norm NORM, bool FULL, class T>
__device__ __forceinline__ void gate_pixels(Stream<T>& x, uint64_t far, uint64_t weights, int channels, unsigned planes) {
  Factor u, gated;
  // The first, second or third, where there is no channel for it.
  const auto add_bias = [&](float(&sums)[32], int number) {
    if constexpr (FULL) {
      multiply_tile<T, false>(sums, plane_descriptor<kFarBiases>(planes, 0), plane_descriptor<kFarBiases>(planes, number), true);
    }
  };
  {
    float sums[32];
    begin_products();
#pragma unroll
    for (int k = 0; k < 4; ++k) multiply_tile<T, true>(sums, far + k * kNextRows, weights + kMix / 16 + k * kNextColumns, k != 0);
    add_bias(sums, 1);
    finish_products();
    round_sums<T>(gated, sums);
  }
  x.template normalize<NORM, FULL>(u, channels);
  {
    float sums[32];
    begin_products();
    start_product<T>(sums, u, weights + kGate / 16);
    add_bias(sums, 2);
    finish_products();
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      unsigned& word = gated[i / 4][i % 4];
      word = Words<T>::product(Words<T>::rounded(sums[2 * i], sums[2 * i + 1]), word);
    }
  }
  if constexpr (!FULL) set_one<T>(gated);
  float sums[32];
  begin_products();
  start_product<T>(sums, gated, weights + kOut / 16);
  add_bias(sums, 3);
  finish_products();
  x.add(sums);
}

// `weights`: those behind the first kernel's. Grid: as many blocks as run at once, which take the map's tiles in turn.
template <class T, Norm NORM, bool FULL>
__global__ void __launch_bounds__(kFarThreads, 1)
    _hopper_gate_far_kernel(const T* x, const unsigned char* near, T* y, const unsigned char* weights, Gate gate,
                            Tiles tiles) {
  assume_network(gate.pairs && gate.channels == (FULL ? kSide : 60));
  const unsigned memory = shared_address(shared_memory<unsigned char>());
  const unsigned results = memory + kResultsAt, arrivals = memory + kFarArrivalsAt, of_weights = arrivals + 2 * kPairs * 8;
  const int warp = uniform(threadIdx.x / 32), pair = warp / 2, half = warp % 2, warpgroup = warp / 4;
  const bool leads = threadIdx.x % 64 == 0 && pair < gate.channels;
  const unsigned slots = memory + kSlotsAt + 2 * pair * kSlotBytes, mine = arrivals + 2 * pair * 8;
  if (threadIdx.x <= 2 * kPairs) prepare_arrival(arrivals + threadIdx.x * 8);
  fill_results<T>(results, gate.channels);
  if constexpr (FULL) {
    const unsigned char* biases = weights + kFarWeights + kNearBiases * kSide * sizeof(T);
    fill_planes<kFarBiases>(memory + kFarPlanesAt, reinterpret_cast<const T*>(biases));
  }
  __syncthreads();
  // The pair takes every eighth channel. One thread has what is seen of these come to the two slots by turns, two ahead, and of
  // a tile's first ones while the tile before is multiplied.
  const int64_t next_channel = kPairs * gate.next_channel();
  const unsigned char* source = nullptr;
  unsigned count = 0;  // of channels that the pair has seen
  const auto start = [&](unsigned slot) {
    start_two_bulk_copies(slots + slot * kSlotBytes, source, source + gate.next_chunk(), kChunkOfSlot, mine + slot * 8);
    source += next_channel;
  };
  const auto start_tile = [&](const Tile& tile) {
    if (!leads || tile.image >= tiles.images) return;
    source = near + gate.place(tile.image, tile.column, pair, kAbove - kBefore + tile.row * kFarLines);
    start(count % 2);
    if (pair + kPairs < gate.channels) start((count + 1) % 2);
  };
  Tile tile = Tile::first(tiles);
  start_tile(tile);
  if (threadIdx.x == 0) start_bulk_copy(memory, weights, kFarWeights, of_weights);
  wait_for_arrival(of_weights, 0);
  __syncwarp();

  // This lane's rows of what is seen: 16 lines of a chunk, and of the next one. Results of 8 lines are rows of 128 bytes in a
  // tile of their own, for which see tile_descriptor.
  const unsigned seen = slots + lane() / 16 * kChunkOfSlot + (16 * half + lane() % 16) * kPhasedLine;
  const unsigned put = results + 2 * half * kPhases * kTileBytes + pair * 128 + ((lane() / 4 ^ pair) << 4) + lane() % 4 * 4;
  const unsigned tables = memory + kFarTable + wide_place() * 16;
  const uint64_t of_weight = tile_descriptor(memory);
#pragma unroll 1
  while (tile.image < tiles.images) {
#pragma unroll 1
    for (int c = pair; c < gate.channels; c += kPairs, ++count) {
      const unsigned slot = count % 2;
      wait_for_arrival(mine + slot * 8, count / 2);
      __syncwarp();
      const unsigned table = tables + c * kWideTable;
      const WideBands<7> taps(load_piece(table), load_piece(table + kWideTable / 2));
      unsigned words[kPhases][2];
      convolve<T>(words, taps, [&](unsigned(&lines)[4], int i, int phase) {
        load_matrices(lines, seen + slot * kSlotBytes + i * kPhases * kPhasedLine + phase * 16);
      });
      meet(1 + pair, 64);
      if (leads && c + 2 * kPairs < gate.channels) start(slot);
#pragma unroll
      for (int phase = 0; phase < kPhases; ++phase) {
        const unsigned place = put + (c - pair) * 128 + phase * kTileBytes;
        store_word(place, words[phase][0]);
        store_word(place + kPhases * kTileBytes, words[phase][1]);
      }
    }
    publish();
    __syncthreads();

    const Tile next = tile.next(tiles);
    start_tile(next);
    __syncwarp();
    const int line = tile.row * kFarLines + warpgroup * 8 + warp % 4 * 2;
#pragma unroll 1
    for (int phase = 0; phase < kPhases; ++phase) {
      const int column = tile.column * kChunk + kPhases * (lane() / 4) + phase;
      const bool upper = column < gate.width && line < gate.height, lower = column < gate.width && line + 1 < gate.height;
      const int64_t pixel = gate.pixel(tile.image, line, column);
      const int row = gate.width * gate.channels;
      Stream<T> stream(x + pixel, row, gate.channels, gate.pairs, upper, lower);
      gate_pixels<NORM, FULL>(stream, tile_descriptor(results + (warpgroup * kPhases + phase) * kTileBytes), of_weight, gate.channels,
                              memory + kFarPlanesAt);
      stream.store(y + pixel, row, gate.channels, gate.pairs, upper, lower);
    }
    tile = next;
    __syncthreads();
  }
}

}  // namespace ditn::cuda::hopper::gate
