// SPDX-License-Identifier: Apache-2.0
// dilated_gate: what lies where in shared memory, and its weights. The map between its kernels: phased.cuh.
#pragma once

#include "layout.cuh"
#include "phased.cuh"
#include "stream.cuh"

namespace ditn::cuda::hopper::gate {

// The first kernel makes kNearLines lines of a chunk at a time. It sees two columns and two lines more on every side: 28 columns,
// as four blocks of 8 with zeros behind them. a = W_a u + b_a lies as [channel][block][line][8]; of a channel all lines of a
// block are in different banks, and the pieces of 16 bytes at the same place of eight channels. The last one is zeros.
constexpr int kNearLines = 16, kNearThreads = 256;
constexpr int kSeenLines = kNearLines + 4, kSeenColumns = kChunk + 4, kBlocks = 4;
constexpr int kBlockBytes = kSeenLines * 16, kZeroPiece = kBlocks * kBlockBytes, kPlaneBytes = kZeroPiece + 16;
constexpr int kNearTable = kTileBytes, kNearWeights = kNearTable + kSide * kWideTable;
constexpr int kPlanesAt = kNearWeights, kNearArrivalAt = kPlanesAt + kSide * kPlaneBytes;
constexpr int kNearShared = kNearArrivalAt + 8;
static_assert(2 * (kNearShared + 1024) <= 228 << 10);

// The second kernel makes kFarLines lines of 24 columns at a time. A pair of warps has two slots, each for what the results of
// a channel see: kFarSeen lines of a chunk and of the next one. What comes of it lies as tiles [channel][8 lines of 8 columns of
// a phase], a tile for each 8 lines and phase.
constexpr int kFarLines = 32, kFarThreads = 512, kPairs = kFarThreads / 64;
constexpr int kFarSeen = kFarLines + 2 * kBefore, kChunkOfSlot = kFarSeen * kPhasedLine, kSlotBytes = 2 * kChunkOfSlot;
constexpr int kMix = 0, kGate = kTileBytes, kOut = 2 * kTileBytes, kFarTable = 3 * kTileBytes;
constexpr int kFarWeights = kFarTable + kSide * kWideTable;
constexpr int kFarTiles = kFarLines / 8 * kPhases;
constexpr int kResultsAt = kFarWeights, kSlotsAt = kResultsAt + kFarTiles * kTileBytes;
constexpr int kFarArrivalsAt = kSlotsAt + 2 * kPairs * kSlotBytes;  // of the slots, and of the weights
constexpr int kFarShared = kFarArrivalsAt + (2 * kPairs + 1) * 8;
static_assert(kResultsAt % 1024 == 0 && kFarShared <= 227 << 10);

constexpr int kWeights = kNearWeights + kFarWeights;

// With 64 channels planes (plane_descriptor) lie behind all else in shared memory: ones, the biases in the order of the products,
// zeros. Of a piece only the first value is not zero. In global memory biases lie behind the weights.
constexpr int kNearBiases = 1, kFarBiases = 3, kPacked = kWeights + (kNearBiases + kFarBiases) * kSide * 2;
constexpr int kNearPlanesAt = (kNearShared + 15) / 16 * 16, kFarPlanesAt = (kFarShared + 15) / 16 * 16;
constexpr int kNearFullShared = kNearPlanesAt + (kNearBiases + 2) * kPlane, kFarFullShared = kFarPlanesAt + (kFarBiases + 2) * kPlane;
static_assert(2 * (kNearFullShared + 1024) <= 228 << 10 && kFarFullShared <= 227 << 10);

// By all threads, which then have to meet.
template <int BIASES, class T>
__device__ __forceinline__ void fill_planes(unsigned planes, const T* biases) {
  for (int i = threadIdx.x; i < (BIASES + 2) * kSide; i += blockDim.x) {
    const T value = i < kSide ? T(1.0f) : i < (BIASES + 1) * kSide ? biases[i - kSide] : T(0.0f);
    store_piece(planes + i * kPiece, {Words<T>::of(value, T(0.0f)), 0, 0, 0});
  }
  publish();
}
// Plane 0 has the ones, and those from 1 on the biases.
template <int BIASES>
__device__ __forceinline__ uint64_t plane_descriptor(unsigned planes, int plane) {
  return hopper::plane_descriptor(planes + plane * kPlane, (BIASES + 1 - plane) * kPlane);
}

struct Gate : PhasedMap {
  bool pairs;  // two channels lie at a multiple of four bytes, in x and in y
};

// The tiles of a map: images follow each other, in each the rows of tiles, in each the columns. Blocks take them in turn, and go
// from one to their next without dividing.
struct Tiles {
  int images, rows, columns;
  int next_image, next_row, next_column;  // what comes to a tile's numbers, before rows and columns are full

  Tiles(int images, int rows, int columns, int blocks)
      : images(images), rows(rows), columns(columns), next_image(blocks / (rows * columns)), next_row(blocks / columns % rows),
        next_column(blocks % columns) {}
};

struct Tile {
  int image, row, column;

  // The block's first.
  __device__ static Tile first(const Tiles& tiles) {
    const int block = blockIdx.x;
    return {block / (tiles.rows * tiles.columns), block / tiles.columns % tiles.rows, block % tiles.columns};
  }
  // That of this block after this one; there is none if its image does not exist.
  __device__ Tile next(const Tiles& tiles) const {
    Tile found{image + tiles.next_image, row + tiles.next_row, column + tiles.next_column};
    if (found.column >= tiles.columns) {
      found.column -= tiles.columns;
      ++found.row;
    }
    if (found.row >= tiles.rows) {
      found.row -= tiles.rows;
      ++found.image;
    }
    return found;
  }
};

// Weights as the kernels have them in shared memory.
template <class T>
struct GatePacking {
  GateOf<const T> weights;
  int channels;

  // The i-th value, the first kernel's before the second's.
  __device__ T at(int i) const {
    if (i >= kWeights / 2) return of_biases((i - kWeights / 2) / kSide, i % kSide);
    const bool far = i >= kNearWeights / 2;
    i -= far ? kNearWeights / 2 : 0;
    const int tables = (far ? kFarTable : kNearTable) / 2;
    if (i >= tables) return of_table(far, (i - tables) / (kWideTable / 2), (i - tables) % (kWideTable / 2));
    // Of a tile; see tile_descriptor.
    const int part = i / (kTileBytes / 2), row = i % (kTileBytes / 2) / kSide, column = (i / 8 % 8 ^ row % 8) * 8 + i % 8;
    const int c = channels;
    if (!far) return of_weight(weights.in_weight, weights.in_bias, 2 * c, row, column);
    if (part == 0) return of_weight(weights.mix_weight, weights.mix_bias, c, row, column);
    if (part == 1) return of_weight(weights.in_weight + c, weights.in_bias + c, 2 * c, row, column);
    return of_weight(weights.out_weight, weights.out_bias, c, row, column);
  }

 private:
  // Of the products in the order of the kernels.
  __device__ T of_biases(int product, int output) const {
    if (output >= channels) return T(0.0f);
    if (product == 0) return weights.in_bias[output];
    if (product == 1) return weights.mix_bias[output];
    return product == 2 ? weights.in_bias[channels + output] : weights.out_bias[output];
  }
  // Of a weight [channels][stride], whose bias stands for input kOne, where that is none.
  __device__ T of_weight(const T* weight, const T* bias, int stride, int output, int input) const {
    if (output >= channels) return T(0.0f);
    if (input == kOne && channels <= kOne) return bias[output];
    return input < channels ? weight[input * stride + output] : T(0.0f);
  }
  __device__ T of_table(bool far, int channel, int i) const {
    if (channel >= channels) return T(0.0f);
    const int taps = far ? 7 : 5;
    const T* source = (far ? weights.dw7_weight : weights.dw5_weight) + channel;
    const T bias = (far ? weights.dw7_bias : weights.dw5_bias)[channel];
    return value_of_table(i, taps, bias, [&](int line, int column) { return source[(line * taps + column) * channels]; });
  }
};

// Grid: a thread per value.
template <class T>
__global__ void _pack_gate_kernel(T* target, GatePacking<T> packing) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < kPacked / 2) target[i] = packing.at(i);
}

}  // namespace ditn::cuda::hopper::gate
