// SPDX-License-Identifier: Apache-2.0
// dilated_gate in two kernels. The 7x7 with dilation 3 sees 9 pixels to every side, too many to compute twice what it
// reads: the result of the 5x5 goes to memory, in a frame of zeros that spares the taps every comparison.
#pragma once

#include "depthwise.cuh"
#include "hopper.h"
#include "lines.cuh"
#include "pack.cuh"

namespace ditn::cuda {

constexpr int kDilation = 3, kFrame = 9;

// near: the map of the 5x5's results, [batch][height][width][WIDTH], whose pixel (kFrame, kFrame) is the image's first.
struct Framed {
  int height, width;
};

template <class T>
struct GateWeights {
  Weight<T> a, g, mix, out;
  Taps<T> near;  // 5x5, its bias, and that of a
  Taps<T> far;   // 7x7, its bias, and those of mix, g and out
};

// A block's piece of `near`.
template <class T, int WIDTH>
struct NearTile {
  static constexpr bool kHalf = sizeof(T) == sizeof(__half);
  static constexpr int kHeight = kHalf ? (WIDTH == 64 ? 16 : 8) : 4, kColumns = kHeight == 16 ? 16 : 8;
  static constexpr int kWarps = kHeight == 16 ? 8 : 4, kThreads = 32 * kWarps;
  static constexpr int kSeenColumns = kColumns + 4, kSeen = (kHeight + 4) * kSeenColumns;
  static constexpr int kSeenRows = (kSeen + 15) / 16 * 16;
  static constexpr int kLines = kHeight / 4, kRun = 8;  // results of a lane
  static constexpr int kStride = WIDTH + kSpare<T>;
  static constexpr size_t kShared = kSeenRows * kStride * sizeof(T);
  static_assert(kShared <= kTuringShared);
  static constexpr int kBlocks = blocks_at_once(kShared, kThreads, WIDTH == 64 ? 128 : 200);
};

// near = dw5x5(a) + b, a = W_a norm(x) + b_a; zeros in the frame.
// Grid: a tile_grid of the framed maps.
template <class T, int WIDTH>
__global__ void __launch_bounds__(NearTile<T, WIDTH>::kThreads, NearTile<T, WIDTH>::kBlocks)
    _dilated_gate_near_kernel(Map<T> x, T* near, GateWeights<T> w, Norm norm, int height, int width, Framed framed) {
  assume_network(x.quads, norm);
  using Tile = NearTile<T, WIDTH>;
  constexpr int kStride = Tile::kStride;
  T* u = shared_memory<T>();  // [kSeenRows][kStride]
  const TilePlace tile(framed.height / Tile::kHeight);
  const int framed_top = tile.row * Tile::kHeight, framed_left = tile.column * Tile::kColumns;
  const int top = framed_top - kFrame, left = framed_left - kFrame;
  T* target = near + ((tile.image * framed.height + framed_top) * framed.width + framed_left) * WIDTH + 2 * lane();

  const bool empty = top + Tile::kHeight <= 0 || top >= height || left + Tile::kColumns <= 0 || left >= width;
  const auto exists = [&](int row, int column) {
    return static_cast<unsigned>(row) < static_cast<unsigned>(height) && static_cast<unsigned>(column) < static_cast<unsigned>(width);
  };
  if (!empty) {
    for (int i = warp(); i < Tile::kHeight + 4; i += Tile::kWarps) {
      const int row = top - 2 + i;
      const Line line{(tile.image * height + row) * width * x.channels, left - 2, width, row >= 0 && row < height};
      load_line<Tile::kSeenColumns, 1, WIDTH>(u + i * Tile::kSeenColumns * kStride, kStride, x, line, norm == Norm::kTanh);
    }
    finish_copies(norm != Norm::kTanh);
    __syncthreads();
    if (norm == Norm::kLayerNorm) {
      layer_norm<Tile::kThreads>(u, kStride, x.channels, Tile::kSeen, kLayerNormEps, [](int, float value) { return value; });
      __syncthreads();
    }
    // A warp has rows of its own, and a takes the place of u.
    for (int first = 16 * warp(); first < Tile::kSeenRows; first += 16 * Tile::kWarps) {
      float sums[WIDTH / 8][4] = {};
      product(sums, Rows<T>{u, kStride}, first, w.a, 0, Tile::kHalf ? WIDTH : x.channels);
      __syncwarp();
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        const int pixel = first + 8 * m + row();
        // A pixel outside is zeros already, but for the bias.
        const bool there = exists(top - 2 + pixel / Tile::kSeenColumns, left - 2 + pixel % Tile::kSeenColumns);
        const Pair<T> shown = pair_if(there, pair_of<T>(1.0f, 1.0f));
#pragma unroll
        for (int n = 0; n < WIDTH / 8; ++n) {
          const Pair<T> bias = *w.near.at(26, 8 * n + column());
          store_pair(u + pixel * kStride + 8 * n + column(),
                     multiply_add(bias, shown, pair_of<T>(sums[n][2 * m], sums[n][2 * m + 1])));
        }
      }
    }
  }
  __syncthreads();

  constexpr int kGroups = WIDTH / kGroup, kRuns = Tile::kColumns / Tile::kRun;
  for (int task = warp(); task < kGroups * kRuns * Tile::kHeight / Tile::kLines; task += Tile::kWarps) {
    const int first = task % kGroups * kGroup;
    const int line = task / kGroups / kRuns * Tile::kLines, run = task / kGroups % kRuns * Tile::kRun;
    Pair<T> sums[Tile::kLines][Tile::kRun] = {};
    if (!empty) {
      const T* seen = u + (line * Tile::kSeenColumns + run) * kStride + first + 2 * lane();
      depthwise<T, 5, 0>(sums, w.near.at(0, first + 2 * lane()), [&](int i, int j) {
        return load_pair(seen + (i * Tile::kSeenColumns + j) * kStride);
      });
    }
#pragma unroll
    for (int i = 0; i < Tile::kLines; ++i) {
      T* place = target + (static_cast<int64_t>(line + i) * framed.width + run) * WIDTH + first;
#pragma unroll
      for (int j = 0; j < Tile::kRun; ++j) {
        store_pair(place + j * WIDTH, pair_if(exists(top + line + i, left + run + j), sums[i][j]));
      }
    }
  }
}

// What a block makes of `near`: 24 columns of every third row. A warp takes every third column of some of the rows, which
// share what they see.
template <class T, int WIDTH>
struct FarTile {
  static constexpr bool kHalf = sizeof(T) == sizeof(__half);
  static constexpr int kColumns = 8, kLines = kHalf ? 4 : 2;  // of a warp
  static constexpr int kTiles = kColumns * kLines / 16;
  static constexpr int kWarps = 2 * kDilation, kThreads = 32 * kWarps, kPixels = kWarps * 16 * kTiles;
  static constexpr int kHeight = 2 * kLines * kDilation, kWidth = kColumns * kDilation;  // of kDilation blocks
  static constexpr int kStride = WIDTH + kSpare<T>;
  static constexpr size_t kShared = kPixels * kStride * sizeof(T);
  static_assert(kShared <= kTuringShared);
  static constexpr int kBlocks = blocks_at_once(kShared, kThreads, WIDTH == 64 && !kVolta ? 168 : 240);
};

// x + W_out (g * (W_mix far + b_mix)) + b_out, g = W_g norm(x) + b_g, far = dw7x7(near) + b with dilation 3.
// Grid: a tile_grid, with a block for each third of a tile's rows.
template <class T, int WIDTH>
__global__ void __launch_bounds__(FarTile<T, WIDTH>::kThreads, FarTile<T, WIDTH>::kBlocks)
    _dilated_gate_far_kernel(Map<T> x, const T* near, T* y, GateWeights<T> w, Norm norm, int height, int width, Framed framed) {
  assume_network(x.quads, norm);
  using Tile = FarTile<T, WIDTH>;
  constexpr int kStride = Tile::kStride, kChunk = 32;  // columns of the products at a time
  T* rows = shared_memory<T>();  // [kPixels][kStride], those of a warp one behind the other
  const TilePlace tile((height + Tile::kHeight - 1) / Tile::kHeight * kDilation);
  const int top = tile.row / kDilation * Tile::kHeight + tile.row % kDilation, left = tile.column * Tile::kWidth;
  const int depth = Tile::kHalf ? WIDTH : x.channels, first_row = warp() * Tile::kTiles * 16;

#pragma unroll 1
  for (int first = 0; first < WIDTH; first += kGroup) {
    const int row = top + warp() / kDilation * Tile::kLines * kDilation, column = left + warp() % kDilation;
    const T* seen = near + ((tile.image * framed.height + row) * framed.width + column) * WIDTH + first + 2 * lane();
    Pair<T> sums[Tile::kLines][Tile::kColumns];
    depthwise<T, 7, 0>(sums, w.far.at(0, first + 2 * lane()), [&](int i, int j) {
      const T* pixel = seen + i * static_cast<int64_t>(kDilation * framed.width * WIDTH);
      return load_pair(pixel + j * kDilation * WIDTH);
    });
#pragma unroll
    for (int i = 0; i < Tile::kLines * Tile::kColumns; ++i) {
      store_pair(rows + (first_row + i) * kStride + first + 2 * lane(), sums[i / Tile::kColumns][i % Tile::kColumns]);
    }
  }
  __syncwarp();

  // The warp's rows times a weight, plus the bias in a row of the taps, a pair of columns at a time.
  const auto multiplied = [&](const Weight<T>& weight, int bias, const auto& take) {
#pragma unroll
    for (int chunk = 0; chunk < WIDTH / kChunk; ++chunk) {
      float sums[Tile::kTiles][kChunk / 8][4] = {};
      product(sums, Rows<T>{rows, kStride}, first_row, weight, chunk * kChunk, depth);
#pragma unroll
      for (int n = 0; n < kChunk / 8; ++n) {
        const Pair<T> added = *w.far.at(bias, chunk * kChunk + 8 * n + column());
#pragma unroll
        for (int m = 0; m < Tile::kTiles * 2; ++m) {
          const float* sum = sums[m / 2][n] + m % 2 * 2;
          take(m, chunk * kChunk / 8 + n, sum_of(pair_of<T>(sum[0], sum[1]), added));
        }
      }
    }
  };
  Pair<T> held[Tile::kTiles * 2][WIDTH / 8];
  const auto put_back = [&] {
    __syncwarp();
#pragma unroll
    for (int m = 0; m < Tile::kTiles * 2; ++m) {
#pragma unroll
      for (int n = 0; n < WIDTH / 8; ++n) {
        store_pair(rows + (first_row + 8 * m + row()) * kStride + 8 * n + column(), held[m][n]);
      }
    }
    __syncwarp();
  };
  // One of the warp's lines.
  const auto line = [&](int i) {
    const int row = top + (warp() / kDilation * Tile::kLines + i) * kDilation;
    return Line{(tile.image * height + row) * width * x.channels, left + warp() % kDilation, width, row < height};
  };

  multiplied(w.mix, 50, [&](int m, int n, Pair<T> mixed) { held[m][n] = mixed; });
  __syncwarp();
#pragma unroll 1
  for (int i = 0; i < Tile::kLines; ++i) {
    load_line<Tile::kColumns, kDilation, WIDTH>(rows + (first_row + i * Tile::kColumns) * kStride, kStride, x, line(i),
                                                norm == Norm::kTanh);
  }
  finish_copies(norm != Norm::kTanh);
  if (norm == Norm::kLayerNorm) {
    __syncthreads();
    layer_norm<Tile::kThreads>(rows, kStride, x.channels, Tile::kPixels, kLayerNormEps, [](int, float value) { return value; });
    __syncthreads();
  }
  __syncwarp();
  multiplied(w.g, 51, [&](int m, int n, Pair<T> g) { held[m][n] = multiply(g, held[m][n]); });
  put_back();
  multiplied(w.out, 52, [&](int m, int n, Pair<T> out) { held[m][n] = out; });
  put_back();
#pragma unroll 1
  for (int i = 0; i < Tile::kLines; ++i) {
    store_line<Tile::kColumns, kDilation, WIDTH>(rows + (first_row + i * Tile::kColumns) * kStride, kStride, y, x, line(i));
  }
}

template <class T, int WIDTH>
void launch_dilated_gate(Device& device, Shape shape, const T* x, T* y, const GateOf<const T>& w, Norm norm) {
  constexpr const char* kName = "dilated_gate";
  using Near = NearTile<T, WIDTH>;
  using Far = FarTile<T, WIDTH>;
  const int height = static_cast<int>(shape.height), width = static_cast<int>(shape.width), channels = shape.channels;
  const int rows = parts(height, Far::kHeight), columns = parts(width, Far::kWidth);
  const int near_rows = parts(rows * Far::kHeight + 2 * kFrame, Near::kHeight);
  const int near_columns = parts(columns * Far::kWidth + 2 * kFrame, Near::kColumns);
  const Framed framed{near_rows * Near::kHeight, near_columns * Near::kColumns};
  if (shape.batch * height * width == 0) return;

  Packer<T> packer(device, kName);
  const auto square = [&](const T* weight, int stride) { return packer.add(weight, channels, stride, channels, WIDTH, WIDTH); };
  const GateWeights<T> weights{
      square(w.in_weight, 2 * channels),
      square(w.in_weight + channels, 2 * channels),
      square(w.mix_weight, channels),
      square(w.out_weight, channels),
      pack_taps<T>(device, kName, {w.dw5_weight, 25, 2, {{w.dw5_bias, 0}, {w.in_bias, 0}}}, 1, channels),
      pack_taps<T>(device, kName,
                   {w.dw7_weight, 49, 4, {{w.dw7_bias, 0}, {w.mix_bias, 0}, {w.in_bias + channels, 0}, {w.out_bias, 0}}}, 1,
                   channels)};
  packer.run();
  auto* near = static_cast<T*>(device.allocate(shape.batch * framed.height * framed.width * WIDTH * sizeof(T)));
  const Map<T> map{x, channels, in_quads(x, channels) && in_quads(y, channels)};
  launch(device, kName, _dilated_gate_near_kernel<T, WIDTH>, tile_grid(kName, shape.batch, near_rows, near_columns),
         Near::kThreads, Near::kShared, map, near, weights, norm, height, width, framed);
  launch(device, kName, _dilated_gate_far_kernel<T, WIDTH>, tile_grid(kName, shape.batch, rows * kDilation, columns),
         Far::kThreads, Far::kShared, map, near, y, weights, norm, height, width, framed);
}

template <class T>
void dilated_gate(Device& device, Shape shape, const T* x, T* y, const GateOf<const T>& w, Norm norm) {
#ifdef DITN_HOPPER
  if constexpr (sizeof(T) == sizeof(__half)) {
    if (hopper::serves_gate(shape)) return hopper::dilated_gate(device, shape, x, y, w, norm);
  }
#endif
  if (shape.channels <= 64) return launch_dilated_gate<T, 64>(device, shape, x, y, w, norm);
  launch_dilated_gate<T, 128>(device, shape, x, y, w, norm);
}

}  // namespace ditn::cuda
