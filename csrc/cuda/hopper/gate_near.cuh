// SPDX-License-Identifier: Apache-2.0
// The first kernel of dilated_gate: near = dw5x5(W_a norm(x) + b_a) + b, sorted by phases. Two blocks to a multiprocessor, so
// that one multiplies pixels while the other convolves.
#pragma once

#include "gate_layout.cuh"
#include "stream.cuh"

namespace ditn::cuda::hopper::gate {

// planes[channel][block][line] = W_a norm(x) + b_a of what a tile sees; zeros outside the image. A warpgroup takes two lines at a
// time, a warp half a line.
template <Norm NORM, bool FULL, class T>
__device__ __forceinline__ void multiply_seen(unsigned planes, unsigned memory, const T* x, const Gate& gate, int image, int top,
                                              int left) {
  const int half = threadIdx.x / 32 % 2, column = half * 16 + lane() / 4;
  const bool upper = column < kSeenColumns && static_cast<unsigned>(left + column) < static_cast<unsigned>(gate.width);
  const bool lower = column + 8 < kSeenColumns && static_cast<unsigned>(left + column + 8) < static_cast<unsigned>(gate.width);
  const unsigned place = planes + (lane() / 16 * 8 + lane() % 8) * kPlaneBytes + (2 * half + lane() / 8 % 2) * kBlockBytes;
#pragma unroll 1
  for (int line = threadIdx.x / 64; line < kSeenLines; line += kNearThreads / 64) {
    const bool exists = static_cast<unsigned>(top + line) < static_cast<unsigned>(gate.height);
    const Stream<T> stream(x + gate.pixel(image, top + line, left + column), 8 * gate.channels, gate.channels, gate.pairs,
                           exists && upper, exists && lower);
    Factor u, rounded;
    float sums[32];
    stream.template normalize<NORM, FULL>(u, gate.channels, exists && upper, exists && lower);
    if constexpr (FULL) {
      // The ones, of pixels that exist. They have to be in registers before products begin.
      unsigned ones[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool there = exists && i < 2 && (i ? lower : upper) && lane() % 4 == 0;
        ones[i] = read_again(there ? static_cast<int>(Words<T>::kOne) : 0);
      }
      begin_products();
      start_product<T>(sums, u, tile_descriptor(memory));
      multiply_tile<T>(sums, ones, plane_descriptor<kNearBiases>(memory + kNearPlanesAt, 1), true);
    } else {
      begin_products();
      start_product<T>(sums, u, tile_descriptor(memory));
    }
    finish_products();
    round_sums<T>(rounded, sums);
#pragma unroll
    for (int k = 0; k < 4; ++k) store_matrices_trans(place + 16 * k * kPlaneBytes + line * 16, rounded[k]);
  }
}

// Results of the 5x5 as kNearLines lines of the map between the kernels, of which the first `lines` are in the image; `target` is
// that of channel 0, 16 bytes of it this lane's. A warp takes every eighth channel, and puts results where its a was.
template <class T>
__device__ __forceinline__ void convolve_seen(unsigned planes, unsigned tables, unsigned char* target, const Gate& gate,
                                              const Sorting<T>& sorting, int lines) {
  constexpr int kPieces = kNearLines * kPhases;
  const int warp = uniform(threadIdx.x / 32);
  const unsigned seen = lane() / 16 * kBlockBytes + lane() % 16 * 16;
  const unsigned put = lane() / 4 * kPhasedLine + lane() % 4 * 4;
  const auto from = [&](int piece) { return piece < lines * kPhases ? piece * 16 : kZeroPiece; };
  const unsigned first = from(lane()), second = from(lane() + 32);
  const int64_t channel = gate.next_channel();
  target += warp * channel;
  tables += warp * kWideTable + wide_place() * 16;
  planes += warp * kPlaneBytes;
#pragma unroll 1
  for (int c = warp; c < gate.channels; c += kNearThreads / 32) {
    const WideBands<5> taps(load_piece(tables), load_piece(tables + kWideTable / 2));
    unsigned dense[3][2], sorted[kPhases][2];
    convolve<T>(dense, taps, [&](unsigned(&lines)[4], int i, int n) { load_matrices(lines, planes + seen + n * kBlockBytes + i * 16); });
    sorting.sort(sorted, dense);
#pragma unroll
    for (int phase = 0; phase < kPhases; ++phase) {
      store_word(planes + put + phase * 16, sorted[phase][0]);
      store_word(planes + put + phase * 16 + 8 * kPhasedLine, sorted[phase][1]);
    }
    __syncwarp();
    reinterpret_cast<uint4*>(target)[0] = load_piece(planes + first);
    if (lane() < kPieces - 32) reinterpret_cast<uint4*>(target)[32] = load_piece(planes + second);
    target += channel * (kNearThreads / 32);
    tables += kWideTable * (kNearThreads / 32);
    planes += kPlaneBytes * (kNearThreads / 32);
  }
}

// `weights`: all, of which the first kNearWeights bytes are multiplied with. FULL: 64 channels. Grid: as many blocks as run at once, which take the map's tiles in turn: of
// kNearLines lines of a chunk.
template <class T, Norm NORM, bool FULL>
__global__ void __launch_bounds__(kNearThreads, 2)
    _hopper_gate_near_kernel(const T* x, unsigned char* near, const unsigned char* weights, Gate gate, Tiles tiles) {
  assume_network(gate.pairs && gate.channels == (FULL ? kSide : 60));
  const unsigned memory = shared_address(shared_memory<unsigned char>());
  const unsigned planes = memory + kPlanesAt, arrival = memory + kNearArrivalAt;
  if (threadIdx.x == 0) prepare_arrival(arrival);
  if (threadIdx.x < kSide) clear_piece(planes + threadIdx.x * kPlaneBytes + kZeroPiece);
  if constexpr (FULL) fill_planes<kNearBiases>(memory + kNearPlanesAt, reinterpret_cast<const T*>(weights + kWeights));
  __syncthreads();
  if (threadIdx.x == 0) start_bulk_copy(memory, weights, kNearWeights, arrival);
  wait_for_arrival(arrival, 0);
  __syncwarp();
  const Sorting<T> sorting;
#pragma unroll 1
  for (Tile tile = Tile::first(tiles); tile.image < tiles.images; tile = tile.next(tiles)) {
    const int top = tile.row * kNearLines - kAbove, left = tile.column * kChunk - kBefore;
    unsigned char* target = near + gate.place(tile.image, tile.column, 0, tile.row * kNearLines) + lane() * 16;
    if (top < 0 || top >= gate.height || left >= gate.width) {
#pragma unroll 1
      for (int i = threadIdx.x / 32; i < 2 * gate.channels; i += kNearThreads / 32) {
        unsigned char* place = target + (i / 2) * gate.next_channel() + i % 2 * 512;
        if (i % 2 == 0 || lane() < 16) *reinterpret_cast<uint4*>(place) = uint4{};
      }
      continue;
    }
    multiply_seen<NORM, FULL>(planes, memory, x, gate, tile.image, top - 2, left - 2);
    __syncthreads();
    convolve_seen(planes, memory + kNearTable, target, gate, sorting.inside(left, gate.width), gate.height - top);
    __syncthreads();
  }
}

}  // namespace ditn::cuda::hopper::gate
