// SPDX-License-Identifier: Apache-2.0
// gated_ffn on a map: what lies where in shared memory, and its weights.
#pragma once

#include "../warp.cuh"
#include "pack.cuh"

namespace ditn::cuda::hopper::ffn {

// A block's tile: it sees one pixel more on every side than it has results. Pixels are numbered line by line, and results so that
// those of a line are as far apart as the pixels.
constexpr int kThreads = 512, kWarps = kThreads / 32, kGroups = kThreads / 128;
constexpr int kSeenLines = 16, kSeenColumns = 24, kSeen = kSeenLines * kSeenColumns;
constexpr int kLines = kSeenLines - 2, kColumns = kSeenColumns - 2;
static_assert(kWarps == kSeenLines);

// The hidden channels are taken in slices of 32 gates and their values, of which the last gated channel is 1, for the bias of
// W_out. For a slice: W_in as a tile [hidden][inputs]; W_out as factors a of wgmma, [depth / 16][warp][lane][8]; and tables
// [pair][gate, value][kPlaces] of words for the taps, see below. With 64 channels (FULL) a plane of W_in's biases follows, and
// one of zeros.
constexpr int kPairs = 32, kMostSlices = 4, kMostExpanded = kMostSlices * kPairs - 1;
constexpr int kOutFactors = kTileBytes, kTables = kOutFactors + kSide * kPairs * 2;
constexpr int kTableBytes = kPlaces * 16, kBiases = kTables + 2 * kPairs * kTableBytes;
template <bool FULL>
constexpr int kSliceBytes = kBiases + (FULL ? 2 * kPlane : 0);
__host__ __device__ constexpr int slices(int expanded) { return expanded / kPairs + 1; }

// u [pixels][channels] and, where that was, what comes of W_out: rows of tiles, see tile_descriptor. Gated channels are blocks of
// 64 results, in each rows [gated channel][results]. The hidden map is [channel][line][column]; between channels are 16 bytes,
// so that the same piece of eight channels lies in different banks, as do the pieces of eight lines of a channel.
constexpr int kRowBytes = kSide * 2, kBlockBytes = kPairs * kRowBytes, kLineBytes = kSeenColumns * 2, kHiddenPitch = kSeen * 2 + 16;
constexpr int kValues = kPairs * kHiddenPitch;  // from a gate to its value
constexpr int kOnes = kSeen * kPiece;

// Slices lie in front of these. With 64 channels planes of a piece for each pixel follow: of ones, which are 0 outside the image,
// and of zeros.
template <bool FULL>
struct Memory {
  static constexpr int kSeenAt = kMostSlices * kSliceBytes<FULL>, kGatedAt = kSeenAt + kSeen * kRowBytes;
  static constexpr int kHiddenAt = kGatedAt + kSeen / kSide * kBlockBytes, kOnesAt = kHiddenAt + 2 * kValues;
  static constexpr int kArrivalAt = kOnesAt + (FULL ? 2 * kOnes : 0), kSharedBytes = kArrivalAt + 8;
  static_assert(kSliceBytes<FULL> % 1024 == 0 && kGatedAt % 1024 == 0 && kSharedBytes <= 227 << 10);
};

// Taps are multiplied as band matrices, see ../bands.cuh, here [16 columns that are seen][8 columns of results]. A lane has the
// taps d = 2 (l % 4) - l / 4 and d + 1 of each line for the first eight columns, and d + 8 and d + 9 for the others. At most one of
// these is there, so a lane reads only one place of a table: for the d from -1 to 2, and for all others, the words of the three
// lines, and the bias twice.
__device__ __forceinline__ int difference() { return column() - row(); }
__device__ __forceinline__ int table_place() {
  const int d = difference() & 7;
  return d == 7 ? 0 : d < 3 ? d + 1 : kPlaces - 1;
}

// The weights, and what becomes of them.
template <class T, bool FULL>
struct Packing {
  FfnPacking<T, FULL> weights;

  // The i-th value of a slice as it lies in shared memory.
  __device__ T at(int slice, int i) const {
    const int first = slice * kPairs;
    const auto of_in = [&](int row, int input) { return weights.of_in(0, row / kPairs, first + row % kPairs, input); };
    if (i < kOutFactors / 2) {
      const int row = i / kSide;
      return of_in(row, (i / 8 % 8 ^ row % 8) * 8 + i % 8);
    }
    if (i < kTables / 2) {
      const int j = i - kOutFactors / 2, lane = j / 8 % 32, warp = j / 256 % 4, k = j / 1024, word = j % 8 / 2;
      return weights.of_out(0, 16 * warp + lane / 4 + word % 2 * 8, first + 16 * k + lane % 4 * 2 + j % 2 + word / 2 * 8);
    }
    if (FULL && i >= kBiases / 2) {
      const int row = (i - kBiases / 2) / 8;
      return row < kSide && i % 8 == 0 ? of_in(row, kBiasInput<FULL>) : T(0.0f);
    }
    const int j = i - kTables / 2, channel = j / (kTableBytes / 2), place = j / 8 % kPlaces, word = j % 8 / 2;
    const int value = channel % 2, e = first + channel / 2;
    if (word == 3) return weights.bias(0, value, e);
    return place == kPlaces - 1 ? T(0.0f) : weights.tap(0, value, e, word, place - 1 + j % 2);
  }
};

// Grid: (a thread per value, the slices).
template <class T, bool FULL>
__global__ void _pack_map_ffn_kernel(T* target, Packing<T, FULL> packing) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x, values = kSliceBytes<FULL> / 2;
  if (i < values) target[blockIdx.y * values + i] = packing.at(blockIdx.y, i);
}

}  // namespace ditn::cuda::hopper::ffn
