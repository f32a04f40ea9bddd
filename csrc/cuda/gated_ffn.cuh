// SPDX-License-Identifier: Apache-2.0
// gated_ffn: a block takes a tile of pixels, and the hidden channels in slices that stay in shared memory. Of patches that
// banded_ffn.cuh can take, it does the work where that pays.
#pragma once

#include "banded_ffn.cuh"
#include "depthwise.cuh"
#include "hopper.h"
#include "pack.cuh"
#include "lines.cuh"

namespace ditn::cuda {

constexpr int kSlice = kGroup / 2;  // channels of each half of the hidden map that are taken at a time

// What a block of the FFN works on. WIDTH: channels of the stream at most, 64 or 128. PATCH 4 or 8: whole patches, 64
// pixels of them if they fit. PATCH 0: a piece of something larger, which computes the hidden channels of a border of one
// pixel for itself.
template <class T, int WIDTH, int PATCH>
struct FfnTile {
  static constexpr bool kHalf = sizeof(T) == sizeof(__half), kBordered = PATCH == 0;
  static constexpr int kWidth = WIDTH;
  static constexpr int kHeight = kBordered ? (kHalf ? 8 : 4) : PATCH;
  static constexpr int kColumns = kBordered ? (kHalf && WIDTH == 64 ? 16 : 8) : PATCH;
  static constexpr int kPatches = PATCH != 4 ? 1 : kHalf || WIDTH == 64 ? 4 : 2;
  static constexpr int kPatchPixels = kHeight * kColumns, kPixels = kPatches * kPatchPixels;
  static constexpr int kWarps = kPixels == 128 ? 8 : 4, kThreads = 32 * kWarps;

  // Normalized pixels, those of the border among them: rows of kStride values.
  static constexpr int kStride = WIDTH + kSpare<T>;
  static constexpr int kSeenColumns = kColumns + 2 * kBordered;
  static constexpr int kSeen = kBordered ? (kHeight + 2) * kSeenColumns : kPixels;
  // A pair of warps takes some rows of the product with W_in at once, one the gates and one the values.
  static constexpr int kInTiles = kPixels == 128 ? 3 : kSeen == 32 ? 1 : 2, kInRows = 16 * kInTiles;
  static constexpr int kInColumns = kPixels == 128 ? 16 : 32;  // at a time, lest registers spill
  static constexpr int kInRounds = (kSeen + kInRows * kWarps / 2 - 1) / (kInRows * kWarps / 2);
  static constexpr int kSeenRows = (kSeen + kInRows - 1) / kInRows * kInRows;
  // And some of the product with W_out, half of its columns each.
  static constexpr int kOutTiles = kPixels / 16 / (kWarps / 2), kOutColumns = WIDTH / 16;

  // A slice of the hidden map: lines of pixels, one line above and one below each patch. The pitches keep the lanes of a
  // warp in different banks: neighbouring rows of the map, or pixels of a row.
  static constexpr int kPixelPitch = 2 * kSlice + kSpare<T>;
  static constexpr int kLinePitch = kSeenColumns * kPixelPitch + (kHalf ? (80 - kSeenColumns * kPixelPitch / 2 % 32) % 32 * 2 : 0);
  static constexpr int kHidden = kPatches * (kHeight + 2) * kLinePitch;
  static constexpr int kRun = kPixels * kSlice / 2 / kThreads < kColumns ? kPixels * kSlice / 2 / kThreads : kColumns;
  static constexpr int kGatedStride = kSlice + kSpare<T>;

  static constexpr int kScratch = kHidden + kPixelPitch + kPixels * kGatedStride;  // values, a multiple of 16 bytes
  static constexpr size_t kShared = (kSeenRows * kStride + kScratch) * sizeof(T);
  static_assert(kShared <= kTuringShared);
  static constexpr int kBlocks = blocks_at_once(kShared, kThreads, WIDTH == 128 ? 240 : kHalf ? 128 : 168);
};

template <class T>
struct FfnWeights {
  Weight<T> in[2];  // of gates and of values
  Taps<T> taps;     // 3x3, their bias, and W_in's
  Weight<T> out;
  const T* out_bias;
  int channels, expanded;

  __host__ __device__ FfnWeights of_layer(int64_t i) const {
    return {{in[0].of_layer(i), in[1].of_layer(i)}, taps.of_layer(i), out.of_layer(i), out_bias + i * channels, channels, expanded};
  }
};

// The packer has to run before the weights are used. Parameters are [layers][...].
template <class T>
FfnWeights<T> pack_ffn(Device& device, Packer<T>& packer, const char* name, const FfnOf<const T>& w, int channels, int layers = 1) {
  const int width = width_of(channels), expanded = w.expanded, sliced = (expanded + kSlice - 1) / kSlice * kSlice;
  const auto in = [&](int half) {
    return packer.add(w.in_weight + half * expanded, channels, 2 * expanded, expanded, width, sliced);
  };
  return {{in(0), in(1)},
          pack_taps<T>(device, name, {w.dw_weight, 9, 2, {{w.dw_bias, 2 * expanded}, {w.in_bias, 2 * expanded}}}, 2, expanded, layers),
          packer.add(w.out_weight, expanded, channels, channels, sliced, width),
          w.out_bias,
          channels,
          expanded};
}

// Zeros into the hidden map: what a pixel sees where nothing is stored.
template <class Tile, class T>
__device__ __forceinline__ void clear_hidden(T* scratch) {
  constexpr int kWords = Tile::kHidden * static_cast<int>(sizeof(T)) / 16;
#pragma unroll
  for (int i = 0; i < kWords; i += Tile::kThreads) {
    if (i + static_cast<int>(threadIdx.x) < kWords) reinterpret_cast<uint4*>(scratch)[i + threadIdx.x] = uint4{};
  }
}

// Rows [kPixels] of u become W_out (gelu(d1) * d2) + b_out, d = dw3x3(W_in u + b_in) + b_dw. Before, they are the kSeen
// normalized pixels of the tile, line by line; exists(y, x) says whether
// one of a bordered tile does, or is zero padding, and lines below the tile do not. The block's
// threads have to meet before the call, and after it.
template <class Tile, class T, class Exists>
__device__ __forceinline__ void feed_forward(T* u, T* scratch, const FfnWeights<T>& w, const Exists& exists) {
  constexpr int kPairs = kGroup / 2, kStride = Tile::kStride;
  T* hidden = scratch;
  T* gated = scratch + Tile::kHidden + Tile::kPixelPitch;
  const int half = warp() % 2, group = warp() / 2;
  const Weight<T> in = half ? w.in[1] : w.in[0];

  // Where this lane's sums of the first product belong; pixels that are not to be seen go behind the map.
  int slots[Tile::kInRounds][Tile::kInTiles][2];
#pragma unroll
  for (int i = 0; i < Tile::kInRounds * Tile::kInTiles * 2; ++i) {
    const int offset = i / 2 / Tile::kInTiles * Tile::kWarps / 2 * Tile::kInRows + i / 2 % Tile::kInTiles * 16 + i % 2 * 8;
    const int pixel = group * Tile::kInRows + row() + offset;
    int slot;
    if constexpr (Tile::kBordered) {
      const int y = pixel / Tile::kSeenColumns, x = pixel - y * Tile::kSeenColumns;
      slot = y * Tile::kLinePitch + x * Tile::kPixelPitch;
      slot = exists(y, x) ? slot : Tile::kHidden;
    } else {
      // Eight pixels are whole lines, and sixteen a patch of them, or part of one.
      const int y = (group * Tile::kInRows + row()) / Tile::kColumns, x = row() % Tile::kColumns;
      const int patch = group * Tile::kInRows / Tile::kPatchPixels, lines = offset / Tile::kColumns;
      slot = (y + 1 + 2 * patch) * Tile::kLinePitch + x * Tile::kPixelPitch;
      slot += (lines + offset / Tile::kPatchPixels * 2) * Tile::kLinePitch;
    }
    slots[i / 2 / Tile::kInTiles][i / 2 % Tile::kInTiles][i % 2] = slot + half * kSlice + column();
  }

  float out[Tile::kOutTiles][Tile::kOutColumns][4] = {};
  const Pair<T>* taps = w.taps.data;
  for (int e = 0; e < w.expanded; e += kSlice, taps += 11 * kPairs) {
#pragma unroll
    for (int round = 0; round < Tile::kInRounds; ++round) {
      const int first = (round * Tile::kWarps / 2 + group) * Tile::kInRows;
      if (Tile::kBordered && first >= Tile::kSeen) break;
#pragma unroll
      for (int c = 0; c < kSlice; c += Tile::kInColumns) {
        float sums[Tile::kInTiles][Tile::kInColumns / 8][4] = {};
        product(sums, Rows<T>{u, kStride}, first, in, e + c, Tile::kHalf ? Tile::kWidth : w.channels);
        const Pair<T>* bias = taps + 10 * kPairs + (half * kSlice + c + column()) / 2;
#pragma unroll
        for (int n = 0; n < Tile::kInColumns / 8; ++n) {
          const Pair<T> added = bias[4 * n];
#pragma unroll
          for (int m = 0; m < Tile::kInTiles * 2; ++m) {
            const float* sum = sums[m / 2][n] + m % 2 * 2;
            store_pair(hidden + slots[round][m / 2][m % 2] + c + 8 * n, sum_of(pair_of<T>(sum[0], sum[1]), added));
          }
        }
      }
    }
    __syncthreads();

    constexpr int kRun = Tile::kRun, kSpot = kSlice / 2, kTasks = Tile::kPixels / kRun * kSpot;
    static_assert(kTasks % Tile::kThreads == 0);
#pragma unroll
    for (int round = 0; round < kTasks / Tile::kThreads; ++round) {
      const int task = round * Tile::kThreads + threadIdx.x;
      // Neighbouring runs lie in neighbouring rows.
      const int pair = task % kSpot, run = task / kSpot;
      const int patch = run / (Tile::kPatchPixels / kRun);
      const int y = run % Tile::kHeight, x = run / Tile::kHeight % (Tile::kColumns / kRun) * kRun;
      const T* seen = hidden + (patch * (Tile::kHeight + 2) + y) * Tile::kLinePitch + x * Tile::kPixelPitch + 2 * pair;
      Pair<T> sums[2][1][kRun];
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        depthwise<T, 3, !Tile::kBordered>(sums[part], taps + part * kSpot + pair, [&](int i, int j) {
          const int offset = i * Tile::kLinePitch + (j - !Tile::kBordered) * Tile::kPixelPitch + part * kSlice;
          return load_pair(seen + offset);
        });
      }
      T* target = gated + (patch * Tile::kPatchPixels + y * Tile::kColumns + x) * Tile::kGatedStride + 2 * pair;
#pragma unroll
      for (int i = 0; i < kRun; ++i) {
        store_pair(target + i * Tile::kGatedStride, multiply(gelu(sums[0][0][i]), sums[1][0][i]));
      }
    }
    __syncthreads();

    product(out, Rows<T>{gated, Tile::kGatedStride}, group * Tile::kOutTiles * 16, w.out.from_input(e),
            half * Tile::kOutColumns * 8, Tile::kHalf ? kSlice : min(kSlice, w.expanded - e));
  }

#pragma unroll
  for (int n = 0; n < Tile::kOutColumns; ++n) {
    const int c = half * Tile::kOutColumns * 8 + 8 * n + column();
    // Behind the last channel anything will do.
    const Pair<T> bias = pair_of(w.out_bias[min(c, w.channels - 1)], w.out_bias[min(c + 1, w.channels - 1)]);
#pragma unroll
    for (int m = 0; m < Tile::kOutTiles * 2; ++m) {
      const float* sum = out[m / 2][n] + m % 2 * 2;
      T* target = u + ((group * Tile::kOutTiles + m / 2) * 16 + m % 2 * 8 + row()) * kStride + c;
      store_pair(target, sum_of(pair_of<T>(sum[0], sum[1]), bias));
    }
  }
}

// What a pixel sees: the square around it on a grid, or the whole map. Outside there are zeros.
struct Bound {
  int height, width, mask;  // (mask & row) is where row lies in its square
};

// x + W_out (gelu(d1) * d2) + b_out, d = dw3x3(W_in norm(x) + b_in) + b_dw.
// Grid: a tile_grid; of patches of 4 pixels a block takes several neighbours.
template <class T, int WIDTH, int PATCH>
__global__ void __launch_bounds__(FfnTile<T, WIDTH, PATCH>::kThreads, FfnTile<T, WIDTH, PATCH>::kBlocks)
    _gated_ffn_kernel(Map<T> x, T* y, FfnWeights<T> w, Norm norm, Bound bound, int height, int width) {
  assume_network(x.quads, norm);
  using Tile = FfnTile<T, WIDTH, PATCH>;
  T* u = shared_memory<T>();  // [kSeenRows][kStride]
  T* scratch = u + Tile::kSeenRows * Tile::kStride;

  const TilePlace tile((height + Tile::kHeight - 1) / Tile::kHeight);
  const int top = tile.row * Tile::kHeight, left = tile.column * Tile::kPatches * Tile::kColumns;
  // A line of a patch of the tile, from a column of the patch on.
  const auto line = [&](int patch, int row, int column) {
    row += top;
    return Line{(tile.image * height + row) * width * x.channels, left + patch * Tile::kColumns + column, width,
                row >= 0 && row < height};
  };
  // Where the square begins in the bordered tile, and how many lines of it are there.
  const int bound_top = 1 - (top & bound.mask), bound_left = 1 - (left & bound.mask);
  const int lines = min(bound.height, Tile::kHeight + 2 - bound_top);
  const auto exists = [&](int y, int x) {
    const bool column = static_cast<unsigned>(x - bound_left) < static_cast<unsigned>(bound.width);
    return column & (static_cast<unsigned>(y - bound_top) < static_cast<unsigned>(lines));
  };

  constexpr int kBorder = Tile::kBordered;
  for (int i = warp(); i < Tile::kSeen / Tile::kSeenColumns; i += Tile::kWarps) {
    const Line seen = line(kBorder ? 0 : i / Tile::kHeight, kBorder ? i - 1 : i % Tile::kHeight, -kBorder);
    load_line<Tile::kSeenColumns, 1, WIDTH>(u + i * Tile::kSeenColumns * Tile::kStride, Tile::kStride, x, seen, norm == Norm::kTanh);
  }
  clear_hidden<Tile>(scratch);
  finish_copies(norm != Norm::kTanh);
  __syncthreads();
  if (norm == Norm::kLayerNorm) {
    layer_norm<Tile::kThreads>(u, Tile::kStride, x.channels, Tile::kSeen, kLayerNormEps, [](int, float value) { return value; });
    __syncthreads();
  }
  feed_forward<Tile>(u, scratch, w, exists);
  __syncthreads();
  for (int i = warp(); i < Tile::kPixels / Tile::kColumns; i += Tile::kWarps) {
    store_line<Tile::kColumns, 1, WIDTH>(u + i * Tile::kColumns * Tile::kStride, Tile::kStride, y, x,
                                         line(i / Tile::kHeight, i % Tile::kHeight, 0));
  }
}

template <class T, int WIDTH, int PATCH>
void launch_gated_ffn(Device& device, const char* name, Shape shape, const T* x, T* y, const FfnWeights<T>& weights, Norm norm,
                      int side) {
  using Tile = FfnTile<T, WIDTH, PATCH>;
  const int height = static_cast<int>(shape.height), width = static_cast<int>(shape.width);
  const dim3 tiles = tile_grid(name, shape.batch, parts(height, Tile::kHeight), parts(width, Tile::kPatches * Tile::kColumns));
  // The side of a patch is a power of two.
  const Bound bound = side ? Bound{side, side, side - 1} : Bound{height, width, -1};
  launch(device, name, _gated_ffn_kernel<T, WIDTH, PATCH>, tiles, Tile::kThreads, Tile::kShared,
         Map<T>{x, shape.channels, in_quads(x, shape.channels) && in_quads(y, shape.channels)}, y, weights, norm, bound,
         height, width);
}

template <class T>
void gated_ffn(Device& device, const char* name, Shape shape, const T* x, T* y, const FfnWeights<T>& weights, Norm norm,
               int patch) {
  const auto run = [&](auto width) {
    constexpr int kWidth = decltype(width)::value;
    if (patch == 4) return launch_gated_ffn<T, kWidth, 4>(device, name, shape, x, y, weights, norm, 4);
    if (patch == 8) return launch_gated_ffn<T, kWidth, 8>(device, name, shape, x, y, weights, norm, 8);
    launch_gated_ffn<T, kWidth, 0>(device, name, shape, x, y, weights, norm, patch);
  };
  if (shape.channels <= 64) return run(std::integral_constant<int, 64>());
  run(std::integral_constant<int, 128>());
}

template <class T>
void gated_ffn(Device& device, Shape shape, const T* x, T* y, const FfnOf<const T>& parameters, Norm norm, int patch) {
  constexpr const char* kName = "gated_ffn";
  if (shape.batch * shape.height * shape.width == 0) return;
  Packer<T> packer(device, kName);
  if constexpr (sizeof(T) == sizeof(__half)) {
#ifdef DITN_HOPPER
    if (hopper::serves_ffn(shape, parameters.expanded, patch)) return hopper::gated_ffn(device, shape, x, y, parameters, norm);
#endif
    if (patch == kSquare && shape.channels <= 64 && has_bands(kName)) {
      const BandedFfnWeights weights = pack_banded_ffn(device, packer, kName, parameters, shape.channels);
      packer.run();
      return launch_banded_ffn(device, kName, shape, x, y, weights, norm);
    }
  }
  const FfnWeights<T> weights = pack_ffn(device, packer, kName, parameters, shape.channels);
  packer.run();
  gated_ffn(device, kName, shape, x, y, weights, norm, patch);
}

}  // namespace ditn::cuda
