// SPDX-License-Identifier: Apache-2.0
// gated_ffn on a map: a block to a multiprocessor, which takes a tile of 14 lines of 22 pixels at a time. All weights stay in
// shared memory. Both products are transposed, [channels, pixels], a quarter of the pixels to each warpgroup.
#pragma once

#include <algorithm>

#include "../hopper.h"
#include "ffn_pixels.cuh"

namespace ditn::cuda::hopper::ffn {

// The matrices of two neighbouring columns of pieces that stmatrix takes from sums [channels][pixels], of which eight are columns
// 8 n on.
template <class T, int COUNT>
__device__ __forceinline__ void round_columns(unsigned (&words)[4], const float (&sums)[COUNT], int n) {
#pragma unroll
  for (int i = 0; i < 4; ++i) words[i] = Words<T>::rounded(sums[4 * n + 2 * i], sums[4 * n + 2 * i + 1]);
}

// hidden [channel][pixel] = W_in u of a slice, for a warpgroup's 96 pixels. `ones`: theirs.
template <bool FULL, class T>
__device__ __forceinline__ void project_in(unsigned hidden, unsigned slice, unsigned u, unsigned ones) {
  const int warpgroup = threadIdx.x / 128, channel = threadIdx.x / 32 % 4 * 16 + lane() % 16;
  const unsigned place = hidden + channel * kHiddenPitch + (warpgroup * (kSeen / kGroups / 8) + lane() / 16) * 16;
  float sums[kSeen / kGroups / 2];
  begin_products();
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    multiply_tile<T, false>(sums, tile_descriptor(slice) + k * kNextColumns, tile_descriptor(u) + k * kNextColumns, k != 0);
  }
  if constexpr (FULL) {
    multiply_tile<T, false>(sums, plane_descriptor(slice + kBiases, kPlane), plane_descriptor(ones, kOnes), true);
  }
  finish_products();
#pragma unroll
  for (int n = 0; n < kSeen / kGroups / 8; n += 2) {
    unsigned words[4];
    round_columns<T>(words, sums, n);
    store_matrices(place + n * 16, words);
  }
}

// A lane's part of a channel's band matrices: for the columns 0 to 7 that results see, and for 8 to 15.
struct Bands {
  unsigned first[3], second[3], bias;
  __device__ explicit Bands(unsigned table) {
    const uint4 words = load_piece(table);
    const unsigned taps[3] = {words.x, words.y, words.z}, mask = difference() < -1 ? 0 : ~0u;
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      first[i] = taps[i] & mask;
      second[i] = taps[i] & ~mask;
    }
    bias = words.w;
  }
};

// Three blocks of 8 columns of a channel's results, in all lines, from three pieces of lines. The first block sees the pieces 0
// and 1, the second 1 and 2, and the third, of which 6 columns are needed, only 2. `left`: pieces 0 and 1 of the line above, of
// the line and of that below; `right`: piece 2 of the first two; then that of the third.
template <class T>
__device__ __forceinline__ void convolve(unsigned (&words)[3][2], const Bands& bands, const unsigned (&left)[3][4],
                                         const unsigned (&right)[4], unsigned below_upper, unsigned below_lower) {
  BandSums<T> sums[3];
#pragma unroll
  for (BandSums<T>& one : sums) one = BandSums<T>(bands.bias, bands.bias);
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    const unsigned upper = i < 2 ? right[2 * i] : below_upper, lower = i < 2 ? right[2 * i + 1] : below_lower;
    sums[0].add(left[i], bands.first[i], bands.second[i]);
    sums[1].add(left[i][2], left[i][3], bands.first[i]);
    sums[2].add(upper, lower, bands.first[i]);
    sums[1].add(upper, lower, bands.second[i]);
  }
#pragma unroll
  for (int n = 0; n < 3; ++n) sums[n].round(words[n]);
}

// Where a lane reads and writes what comes between the products; kept, lest it be computed again for every tile. In bfloat16,
// whose sums are floats, there are no registers for that.
template <class T>
constexpr bool kKeepsPlaces = std::is_same_v<T, __half>;

struct GatePlaces {
  unsigned left, right, below;  // in the hidden map, for load_matrices
  unsigned table;               // in a slice
  unsigned put[3];              // in the gated channels, for each block of 8 columns

  GatePlaces() = default;
  __device__ GatePlaces(unsigned gated, unsigned hidden) {
    // The 16 rows of a left factor are lines. There are no results of the last two, which see what the ones before do.
    const int line = min(lane() % 16, kLines - 1), second = lane() / 16;
    const unsigned seen = hidden + warp() * kHiddenPitch + line * kLineBytes;
    left = read_again(seen + second * 16);
    right = read_again(seen + second * kLineBytes + 32);
    below = read_again(seen + second * kValues + 2 * kLineBytes + 32);
    table = read_again(kTables + warp() * 2 * kTableBytes + table_place() * 16);
#pragma unroll
    for (int n = 0; n < 3; ++n) {
      const int piece = lane() / 4 * 3 + n;
      put[n] = read_again(gated + warp() * kRowBytes + piece / 8 * kBlockBytes + ((piece ^ warp()) % 8 << 4) + lane() % 4 * 4);
    }
  }
};

// gated [channel][result] = gelu(gate) * value of a slice, of which a warp takes every kWarps-th pair.
template <class T>
__device__ __forceinline__ void gate_hidden(const GatePlaces& places, unsigned slice) {
#pragma unroll
  for (int e = 0; e < kPairs; e += kWarps) {
    const unsigned channel = e * kHiddenPitch;
    unsigned below[4], words[2][3][2];
    load_matrices(below, places.below + channel);
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      unsigned left[3][4], right[4];
#pragma unroll
      for (int i = 0; i < 3; ++i) load_matrices(left[i], places.left + channel + part * kValues + i * kLineBytes);
      load_matrices(right, places.right + channel + part * kValues);
      const Bands bands(slice + places.table + (2 * e + part) * kTableBytes);
      convolve<T>(words[part], bands, left, right, below[2 * part], below[2 * part + 1]);
    }
#pragma unroll
    for (int n = 0; n < 3; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const unsigned one = Words<T>::product(Words<T>::twice_gelu(words[0][n][half]), words[1][n][half]);
        store_word(places.put[n] + e * kRowBytes + half * 3 * kBlockBytes, one);
      }
    }
  }
}

// What comes of W_out [channels][results], for a warpgroup: a block of 64 results, and half of another.
struct Results {
  float whole[32] = {}, half[16] = {};

  // Adds those of a slice.
  template <class T>
  __device__ void add(unsigned gated, unsigned factors) {
    const int warpgroup = threadIdx.x / 128;
    const uint64_t of_whole = tile_descriptor(gated + warpgroup * kBlockBytes);
    const uint64_t of_half = tile_descriptor(gated + (kGroups + warpgroup / 2) * kBlockBytes + warpgroup % 2 * (kRowBytes / 2));
    unsigned weights[kPairs / 16][4];
#pragma unroll
    for (int k = 0; k < kPairs / 16; ++k) {
      const uint4 words = load_piece(factors + k * 2048 + threadIdx.x % 128 * 16);
      weights[k][0] = words.x, weights[k][1] = words.y, weights[k][2] = words.z, weights[k][3] = words.w;
    }
    begin_products();
#pragma unroll
    for (int k = 0; k < kPairs / 16; ++k) {
      multiply_columns<T>(whole, weights[k], of_whole + k * kNextRows, true);
      multiply_columns<T>(half, weights[k], of_half + k * kNextRows, true);
    }
    finish_products();
  }

  // rows [result][channel] = the rounded results.
  template <class T>
  __device__ void store(unsigned rows) const {
    const int warpgroup = threadIdx.x / 128, piece = threadIdx.x / 32 % 4 * 2 + lane() / 8 % 2, row = lane() / 16 * 8 + lane() % 8;
    const unsigned place = rows + row * kRowBytes + ((piece ^ row % 8) << 4);
    unsigned words[4];
#pragma unroll
    for (int n = 0; n < 8; n += 2) {
      round_columns<T>(words, whole, n);
      store_matrices_trans(place + (warpgroup * 64 + 8 * n) * kRowBytes, words);
    }
#pragma unroll
    for (int n = 0; n < 4; n += 2) {
      round_columns<T>(words, half, n);
      store_matrices_trans(place + (kGroups * 64 + warpgroup * 32 + 8 * n) * kRowBytes, words);
    }
  }
};

// Grid: as many blocks as run at once, which take tiles in turn. `weights`: kSliceBytes for each slice. FULL: 64 channels, which
// leave no registers for descriptors from one slice to the next.
template <class T, Norm NORM, bool FULL>
__global__ void __launch_bounds__(kThreads, 1)
    _hopper_map_ffn_kernel(const T* x, T* y, const unsigned char* weights, int slices, Work work) {
  using At = Memory<FULL>;
  assume_network(work.quads && work.channels == (FULL ? kSide : 60));
  const unsigned memory = shared_address(shared_memory<unsigned char>()), arrival = memory + At::kArrivalAt;
  const unsigned u = memory + At::kSeenAt, gated = memory + At::kGatedAt, hidden = memory + At::kHiddenAt;
  const unsigned ones = memory + At::kOnesAt;
  const unsigned line = u + warp() * kSeenColumns * kRowBytes + place_of_first_quad();
  const int warpgroup = uniform(threadIdx.x / 128);
  GatePlaces gate_places;
  if constexpr (kKeepsPlaces<T>) gate_places = GatePlaces(gated, hidden);
  if (threadIdx.x == 0) prepare_arrival(arrival);
  if (FULL && threadIdx.x < kSeen) clear_piece(ones + kOnes + threadIdx.x * kPiece);
  __syncthreads();
  if (threadIdx.x == 0) start_bulk_copy(memory, weights, slices * kSliceBytes<FULL>, arrival);
  Tile tile = work.tile(blockIdx.x);
  Pixels<T>(x, work, tile).template store<NORM, FULL>(line, ones, work.channels);
  wait_for_arrival(arrival, 0);
  __syncwarp();
#pragma unroll 1
  while (tile.image < work.images) {
    publish();
    __syncthreads();
    if constexpr (!kKeepsPlaces<T>) gate_places = GatePlaces(gated, hidden);
    Results results;
    unsigned of_slice = memory;
#pragma unroll 1
    for (int slice = 0; slice < slices; ++slice, of_slice += kSliceBytes<FULL>) {
      project_in<FULL, T>(hidden, of_slice, u + warpgroup * (kSeen / kGroups * kRowBytes), ones + warpgroup * (kOnes / kGroups));
      __syncthreads();
      gate_hidden<T>(gate_places, of_slice);
      publish();
      __syncthreads();
      results.add<T>(FULL ? read_again(gated) : gated, of_slice + kOutFactors);
    }
    results.store<T>(read_again(u));
    __syncthreads();
    // A lane reads results where it then puts pixels. There are no registers to keep the place in.
    const unsigned here = read_again(line);
    const Tile next = work.after(tile);
    const Pixels<T> pixels(x, work, next);
    store_results(here, x, y, work, tile);
    pixels.template store<NORM, FULL>(here, read_again(ones), work.channels);
    tile = next;
  }
}

template <bool FULL, class T>
void run(Device& device, const char* name, const Shape& shape, const T* x, T* y, const FfnOf<const T>& parameters, Norm norm) {
  const int count = slices(parameters.expanded);
  auto* weights = static_cast<T*>(device.allocate_weights(static_cast<size_t>(count) * kSliceBytes<FULL>));
  constexpr unsigned kPackers = 256, kHalves = kSliceBytes<FULL> / 2;
  if (!device.has_weights()) {
    launch(device, name, _pack_map_ffn_kernel<T, FULL>, dim3((kHalves + kPackers - 1) / kPackers, count), kPackers, 0, weights,
           Packing<T, FULL>{{parameters, shape.channels, count * kPairs - 1}});
  }
  const int height = static_cast<int>(shape.height), width = static_cast<int>(shape.width);
  Work work{static_cast<int>(shape.batch), height, width, shape.channels, (height + kLines - 1) / kLines,
            (width + kColumns - 1) / kColumns, {}, in_quads(x, shape.channels) && in_quads(y, shape.channels)};
  const unsigned tiles = blocks_for(shape.batch * work.rows * work.columns, 1, name);
  const unsigned blocks = std::min(tiles, static_cast<unsigned>(persistent_blocks(name)));
  work.step = work.tile(blocks);
  const auto run_kernel = [&](auto kernel) {
    launch(device, name, kernel, dim3(blocks), kThreads, Memory<FULL>::kSharedBytes, x, y,
           reinterpret_cast<const unsigned char*>(weights), count, work);
  };
  if (norm == Norm::kTanh) return run_kernel(_hopper_map_ffn_kernel<T, Norm::kTanh, FULL>);
  if (norm == Norm::kLayerNorm) return run_kernel(_hopper_map_ffn_kernel<T, Norm::kLayerNorm, FULL>);
  run_kernel(_hopper_map_ffn_kernel<T, Norm::kNone, FULL>);
}

template <class T>
void gated_ffn(Device& device, const char* name, const Shape& shape, const T* x, T* y, const FfnOf<const T>& parameters, Norm norm) {
  const auto run_kernels = shape.channels == kSide ? run<true, T> : run<false, T>;
  run_kernels(device, name, shape, x, y, parameters, norm);
}

}  // namespace ditn::cuda::hopper::ffn
