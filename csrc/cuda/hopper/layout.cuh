// SPDX-License-Identifier: Apache-2.0
// Where the weights of a layer and the results of a patch lie in shared memory.
#pragma once

#include <hopper/instructions.cuh>

#include "../launch.cuh"

namespace ditn::cuda::hopper {

constexpr int kSide = 64;  // channels, pixels, and hidden channels that are taken at a time
constexpr int kTileBytes = kSide * kSide * 2;

// Channel 63 of what is multiplied by a weight is 1, and row 63 of the weight its bias. With 64 channels (FULL) none is left for
// that: they have kernels of their own, whose products are a fifth step of 16 channels deeper. In it one factor has the bias,
// as input 64, and the other a 1.
constexpr int kOne = kSide - 1;
template <bool FULL>
constexpr int kBiasInput = FULL ? kSide : kOne;

// The factors of that step are planes of pieces of 16 bytes, one for each row: the first eight columns. The other eight are a
// plane of zeros, so many bytes behind.
constexpr int kPiece = 16, kPlane = kSide * kPiece;
__device__ __forceinline__ uint64_t plane_descriptor(unsigned plane, unsigned zeros) {
  return planes_descriptor(plane, zeros, 8 * kPiece);
}

// Of attention: tiles [outputs][inputs] of W_q, W_k, W_v and W_o. With 64 channels a plane follows, with the biases of tile i in
// column i.
constexpr int kAttentionTiles = 4, kAttentionBiases = kAttentionTiles * kTileBytes;
template <bool FULL>
constexpr int kAttentionBytes = kAttentionBiases + (FULL ? kPlane : 0);

// Hidden channels are taken in passes of 64 gates and their values. For a pass: W_in as two tiles [hidden][inputs], W_out as a
// tile [outputs][gated], and the taps of 64 pairs of a gate and a value; with 64 channels W_in's biases, as those of attention. The
// last gated channel is 1, for the bias of W_out: what the taps make of its gate is 8, whose GELU is 8, and of its value 1/8.
constexpr int kPasses = 2;
constexpr int kTapsOfPair = 240;
constexpr int kOutWeight = 2 * kTileBytes, kTaps = 3 * kTileBytes;
constexpr int kPassBiases = kTaps + kSide * kTapsOfPair;
constexpr int kMostExpanded = kPasses * kSide - 1;
template <bool FULL>
constexpr int kPassBytes = kPassBiases + (FULL ? kPlane : 0);
template <bool FULL>
constexpr int kFfnBytes = kPasses * kPassBytes<FULL>;
template <bool FULL>
constexpr int kLayerBytes = kAttentionBytes<FULL> + kFfnBytes<FULL>;

// Of a patch: attention has two tiles. The FFN has a tile, and over the other one the hidden map [channel][8 lines of 8
// pixels]: channels are 144 bytes apart, so that 16 bytes of zeros lie before the first line of each and behind its last, and
// eight lines of neighbouring channels in different banks.
constexpr int kLine = 16, kHiddenPitch = 9 * kLine;
constexpr int kHiddenBytes = 2 * kSide * kHiddenPitch + kLine;
constexpr int kPatchBytes = kTileBytes + (kHiddenBytes + 1023) / 1024 * 1024;
constexpr int kZeroLinesUnderTile = (kTileBytes + kHiddenPitch - 1) / kHiddenPitch;

constexpr int kPatches = 4;  // of a block

// A layer's weights lie in front of these. With 64 channels there are four planes, of which plane i has ones in column i, for the
// biases of tile i, and behind them one of zeros. So the biases of four tiles share a plane: for one each there is no room.
template <bool FULL>
struct StageMemory {
  static constexpr int kPatchesAt = kLayerBytes<FULL>, kOnesAt = kPatchesAt + kPatches * kPatchBytes;
  static constexpr int kArrivalsAt = kOnesAt + (FULL ? (kAttentionTiles + 1) * kPlane : 0);  // two mbarriers, then two counters
  static constexpr int kSharedBytes = kArrivalsAt + 2 * 8 + 2 * 4;
  static_assert(kPassBytes<FULL> % 1024 == 0 && kPatchBytes % 1024 == 0 && kSharedBytes <= 227 << 10);
};

// Taps of a channel are multiplied as a banded matrix [column that is seen][column of the result] for each of three lines. Of
// its two words for mma lane l needs (2 j, n) and (2 j + 1, n) with j = l % 4 and n = l / 4, which are the taps d = 2 j - n and
// d + 1 of a line, each if it is -1, 0 or 1. What lanes need hence lies at five places: at place d + 2 the words of the lines
// above and at the result, and the bias four times, 16 bytes for the gate and, behind those of all places, 16 for the value;
// then the words of the line below for both, 8 bytes of 16. Place kNoTap has no taps.
constexpr int kPlaces = 5, kPlacesBytes = 16 * kPlaces;
static_assert(kTapsOfPair == 3 * kPlacesBytes);
constexpr int kNoTap = 4;
__device__ __forceinline__ int place_of_taps(int lane) {
  const int d = 2 * (lane % 4) - lane / 4;
  return d < -2 || d > 1 ? kNoTap : d + 2;
}

}  // namespace ditn::cuda::hopper
