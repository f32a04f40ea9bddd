// SPDX-License-Identifier: Apache-2.0
// gated_ffn in patches of 8 by 8, for halves and up to 64 channels, where bands pay: the hidden map lies in shared memory as
// [channels, pixels], so that tensor cores do the taps (bands.cuh).
#pragma once

#include "bands.cuh"
#include "lines.cuh"
#include "pack.cuh"

namespace ditn::cuda {

constexpr int kSquare = 8;

// A block takes two patches side by side: the upper and the lower 8 lines of the products with bands.
struct BandedFfn {
  static constexpr int kWarps = 8, kThreads = 32 * kWarps, kColumns = 2 * kSquare, kPixels = kColumns * kSquare;
  static constexpr int kStride = 64 + kSpare<__half>;  // of the pixels, line by line: rows of channels

  // Hidden channels are taken in slices of so many gates and as many values. A channel of a patch is a line of zeros, which is
  // also the line below the channel before, and 8 lines of pixels; eight channels start in different banks. What comes of a
  // gate takes its place.
  static constexpr int kSlice = 32, kLine = kSquare, kChannel = (kSquare + 1) * kLine;
  static constexpr int kMap = 2 * kSlice * kChannel + kLine;  // of a patch

  // The slice's tables, gates and values by turns, lie in front of the hidden map.
  static constexpr int kWords = 2 * kSlice * kPlaces, kTables = kWords * sizeof(BandWords) / sizeof(__half);  // values
  static constexpr int kScratch = kTables + 2 * kMap;
  static constexpr size_t kShared = (kPixels * kStride + kScratch) * sizeof(__half);
  static_assert(kShared <= kTuringShared);
  static constexpr int kBlocks = blocks_at_once(kShared, kThreads, 128);
};

struct BandedFfnWeights {
  Weight<__half, kLeft> in[2];  // of gates and of values
  Bands taps;                   // of gates and values by turns
  Weight<__half> out;
  const __half* out_bias;
  int channels, expanded;

  __host__ __device__ BandedFfnWeights of_layer(int64_t i) const {
    return {{in[0].of_layer(i), in[1].of_layer(i)}, taps.of_layer(i), out.of_layer(i), out_bias + channels * i, channels, expanded};
  }
};

// The packer has to run before the weights are used. Parameters are [layers][...].
inline BandedFfnWeights pack_banded_ffn(Device& device, Packer<__half>& packer, const char* name, const FfnOf<const __half>& w,
                                        int channels, int layers = 1) {
  const int expanded = w.expanded, sliced = (expanded + BandedFfn::kSlice - 1) / BandedFfn::kSlice * BandedFfn::kSlice;
  const auto in = [&](int half) {
    return packer.add<kLeft>(w.in_weight + half * expanded, channels, 2 * expanded, expanded, 64, sliced);
  };
  return {{in(0), in(1)},
          pack_bands(device, name, {w.dw_weight, w.dw_bias, w.in_bias, 2, expanded}, sliced, layers),
          packer.add(w.out_weight, expanded, channels, channels, sliced, 64),
          w.out_bias,
          channels,
          expanded};
}

// Zeros above and below the channels of the hidden map.
__device__ __forceinline__ void clear_banded(__half* hidden) {
  const int line = threadIdx.x / 2;
  if (line <= 2 * BandedFfn::kSlice) {
    *reinterpret_cast<uint4*>(hidden + threadIdx.x % 2 * BandedFfn::kMap + line * BandedFfn::kChannel) = uint4{};
  }
}

// Starts to bring a slice's tables to shared memory; as finish_copies says.
__device__ __forceinline__ void copy_words(BandWords* target, const BandWords* source) {
#pragma unroll
  for (int first = 0; first < BandedFfn::kWords; first += BandedFfn::kThreads) {
    const int i = first + threadIdx.x;
    if (i >= BandedFfn::kWords) break;
    if constexpr (kBands) start_copy<sizeof(BandWords)>(target + i, source + i, true);
  }
}

// Rows [kPixels] of u become W_out (gelu(d1) * d2) + b_out, d = dw3x3(W_in u + b_in) + b_dw. Before, they are the normalized
// pixels. The block's threads have to meet before the call, and after it.
__device__ __forceinline__ void banded_feed_forward(__half* u, __half* scratch, const BandedFfnWeights& w) {
  using Tile = BandedFfn;
  constexpr int kSlice = Tile::kSlice, kStride = Tile::kStride, kLine = Tile::kLine, kChannel = Tile::kChannel;
  constexpr int kMine = kSlice / Tile::kWarps, kDepth = 64 / 16, kTiles = 4;
  auto* const words = reinterpret_cast<BandWords*>(scratch);
  __half* const hidden = scratch + Tile::kTables;
  clear_banded(hidden);
  const BandWords* tables = w.taps.words;
  copy_words(words, tables);

  // W_in: a pair of warps takes two lines of both patches, 32 pixels, one the gates and one the values. Its place moves on
  // with the slices, as that of what follows.
  const int half = warp() % 2, group = warp() / 2;
  Weight<__half, kLeft> in = half ? w.in[1] : w.in[0];
  in.stride = kDepth;
  const __half2* in_bias = w.taps.input_bias + 2 * row() + half;
  __half* const put = hidden + (half * kSlice + row()) * kChannel + (2 * group + 1) * kLine + column();

  // The taps of the warp's pairs of channels: the lines that this lane gives to ldmatrix, above and at those of the result, or
  // below them, of a gate and its value; its words.
  const int line = lane() % 8, patch = lane() / 8 % 2, second = lane() / 16;
  __half* const pair = hidden + warp() * kMine * kChannel;
  const __half* const seen = pair + patch * Tile::kMap + (line + second) * kLine;
  const __half* const below = pair + patch * Tile::kMap + (line + 2) * kLine + second * kSlice * kChannel;
  const BandWords* const mine = words + 2 * warp() * kMine * kPlaces + band_place();

  // W_out: the pair of warps takes half a patch, and half the results each.
  const Columns<__half> gated{hidden + group / 2 * Tile::kMap + (group % 2 * 4 + 1) * kLine, kChannel};
  float out[2][4][4] = {};
  for (int e = 0; e < w.expanded; e += kSlice) {
    float sums[2][kTiles][4] = {};
    product(sums, in, 0, Rows<__half>{u, kStride}, group * kTiles * 8, 64);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const __half2 bias = __ldg(in_bias + 16 * i);
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {  // a line of 8 channels
        const float* sum = sums[i / 2][n] + i % 2 * 2;
        store_pair(put + i * 8 * kChannel + n % 2 * Tile::kMap + n / 2 * kLine, sum_of(pair_of<__half>(sum[0], sum[1]), bias));
      }
    }
    in.data += kSlice * 64;
    in_bias += 2 * kSlice;
    finish_copies(true);
    __syncthreads();

#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      unsigned sums[2][2], lines[4], last[4];
      ldmatrix_x4(last, below + i * kChannel);
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        const BandWords taps = mine[(2 * i + part) * kPlaces];
        sums[part][0] = sums[part][1] = taps.bias;
        ldmatrix_x4(lines, seen + (part * kSlice + i) * kChannel);
        multiply_bands(sums[part], lines, taps.taps[0], taps.taps[1]);
        multiply_bands(sums[part], last[2 * part], last[2 * part + 1], taps.taps[2]);
      }
      const auto& [gates, values] = reinterpret_cast<const __half2(&)[2][2]>(sums);
#pragma unroll
      for (int p = 0; p < 2; ++p) {
        store_pair(pair + i * kChannel + p * Tile::kMap + (row() + 1) * kLine + column(), multiply(gelu(gates[p]), values[p]));
      }
    }
    __syncthreads();

    tables += Tile::kWords;
    if (e + kSlice < w.expanded) copy_words(words, tables);
    product(out, gated, 0, w.out.from_input(e), half * 32, kSlice);
    __syncthreads();
  }

  const int again = read_again(warp());  // lest these places be kept in registers from the start on
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    const int c = again % 2 * 32 + 8 * n + column();
    // Behind the last channel anything will do.
    const __half2 bias = pair_of(w.out_bias[min(c, w.channels - 1)], w.out_bias[min(c + 1, w.channels - 1)]);
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      const float* sum = out[m / 2][n] + m % 2 * 2;
      const int pixel = (again / 2 % 2 * 4 + m) * Tile::kColumns + again / 4 * kSquare + row();
      store_pair(u + pixel * kStride + c, sum_of(pair_of<__half>(sum[0], sum[1]), bias));
    }
  }
}

// x + W_out (gelu(d1) * d2) + b_out, d = dw3x3(W_in norm(x) + b_in) + b_dw.
// Grid: a tile_grid of pairs of patches.
__global__ void __launch_bounds__(BandedFfn::kThreads, BandedFfn::kBlocks)
    _banded_ffn_kernel(Map<__half> x, __half* y, BandedFfnWeights w, Norm norm, int height, int width) {
  if constexpr (!kBands) return;
  assume_network(x.quads, norm);
  using Tile = BandedFfn;
  static_assert(kSquare == Tile::kWarps);
  // [kPixels][kStride]. The compiler would compute places from a known address over and over.
  __half* u = shared_memory<__half>() + read_again(0);
  __half* mine = u + warp() * Tile::kColumns * Tile::kStride;
  const TilePlace tile(height / kSquare);
  const int64_t row = tile.image * height + tile.row * kSquare + warp();
  const Line line{row * width * x.channels, tile.column * Tile::kColumns, width, true};

  load_line<Tile::kColumns, 1, 64>(mine, Tile::kStride, x, line, norm == Norm::kTanh);
  finish_copies(norm != Norm::kTanh);
  __syncthreads();
  if (norm == Norm::kLayerNorm) {
    layer_norm<Tile::kThreads>(u, Tile::kStride, x.channels, Tile::kPixels, kLayerNormEps, [](int, float value) { return value; });
    __syncthreads();
  }
  banded_feed_forward(u, u + Tile::kPixels * Tile::kStride, w);
  __syncthreads();
  store_line<Tile::kColumns, 1, 64>(mine, Tile::kStride, y, x, line);
}

inline void launch_banded_ffn(Device& device, const char* name, Shape shape, const __half* x, __half* y,
                              const BandedFfnWeights& weights, Norm norm) {
  const int height = static_cast<int>(shape.height), width = static_cast<int>(shape.width);
  const dim3 tiles = tile_grid(name, shape.batch, height / kSquare, parts(width, BandedFfn::kColumns));
  launch(device, name, _banded_ffn_kernel, tiles, BandedFfn::kThreads, BandedFfn::kShared,
         Map<__half>{x, shape.channels, in_quads(x, shape.channels) && in_quads(y, shape.channels)}, y, weights, norm, height, width);
}

}  // namespace ditn::cuda
