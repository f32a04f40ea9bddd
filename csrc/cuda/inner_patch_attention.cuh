// SPDX-License-Identifier: Apache-2.0
// inner_patch_attention: a patch to a block, 16 channels to a warp. Attention is between channels, so queries, keys, values
// and what comes of them are [channels, pixels]: lengths and softmax are sums along rows, which stay inside a warp.
#pragma once

#include "pack.cuh"
#include "pixels.cuh"

namespace ditn::cuda {

// Of one layer.
template <class T>
struct PackedAttention {
  Weight<T, kLeft> q, k, v, out;
  const T *qkv_bias, *temperature, *out_bias;
  __host__ __device__ PackedAttention of_layer(int64_t i) const {
    const int64_t channels = out.outputs;
    return {q.of_layer(i),           k.of_layer(i),   v.of_layer(i),          out.of_layer(i),
            qkv_bias + 3 * channels * i, temperature + i, out_bias + channels * i};
  }
};

template <class T>
PackedAttention<T> packed(Packer<T>& packer, const AttentionOf<const T>& attention, int channels) {
  const int side = width_of(channels);
  const auto of_qkv = [&](int part) {
    return packer.template add<kLeft>(attention.qkv_weight + part * channels, channels, 3 * channels, channels, side, side);
  };
  return {of_qkv(0), of_qkv(1), of_qkv(2), packer.template add<kLeft>(attention.out_weight, channels, channels, channels, side, side),
          attention.qkv_bias, attention.temperature, attention.out_bias};
}

// How many pixels of a patch are taken at a time, so that what they need fits the 64 KiB of shared memory that Turing has.
template <int CHANNELS, int SIDE>
constexpr int kPixelsOf = SIDE == 4 ? 16 : CHANNELS > 64 ? 32 : 64;

// Shared memory for a patch, of which PIXELS are taken at a time, and up to CHANNELS channels.
template <class T, int CHANNELS, int PIXELS>
struct AttentionTiles {
  static constexpr int kWarps = CHANNELS / 16;
  // Columns of the scores that are there at a time, in the place of the queries: the 128 of float32 would take 64 KiB.
  static constexpr int kScores = sizeof(T) == sizeof(__half) || CHANNELS <= 64 ? CHANNELS : 32;
  static constexpr int kPixelStride = CHANNELS + kSpare<T>, kStride = PIXELS + kSpare<T>;
  static constexpr int kWide = (kScores > PIXELS ? kScores : PIXELS) + kSpare<T>;
  static constexpr int kTile = PIXELS * kPixelStride > CHANNELS * kStride ? PIXELS * kPixelStride : CHANNELS * kStride;
  static constexpr size_t kBytes = (2 * kTile + CHANNELS * kWide) * sizeof(T) + CHANNELS * sizeof(float);
  static_assert(kBytes <= kTuringShared);

  T *u, *k, *q;   // [PIXELS][kPixelStride]; [CHANNELS][kStride]; [CHANNELS][kWide]
  float* k_scale;  // [CHANNELS]

  __device__ explicit AttentionTiles(T* memory)
      : u(memory), k(u + kTile), q(k + kTile), k_scale(reinterpret_cast<float*>(q + CHANNELS * kWide)) {}
};

// The first of the 16 channels of a warp, where so many are in a patch.
template <int CHANNELS>
__device__ __forceinline__ int first_channel() {
  return 16 * (read_again(warp()) % (CHANNELS / 16));
}

// sums[16 channels][PIXELS] = W^T u^T + b for a warp's channels, of which CHANNELS are in a patch.
template <int CHANNELS, int TILES, class T, class Factor>
__device__ __forceinline__ void project(float (&sums)[TILES][4], const Weight<T, kLeft>& weight, const T* bias, const Factor& u,
                                        int depth) {
  const int upper = first_channel<CHANNELS>() + row(), lower = upper + 8;
  const float first = upper < weight.outputs ? to_float(bias[upper]) : 0.0f;
  const float second = lower < weight.outputs ? to_float(bias[lower]) : 0.0f;
#pragma unroll
  for (int n = 0; n < TILES; ++n) {
    sums[n][0] = sums[n][1] = first;
    sums[n][2] = sums[n][3] = second;
  }
  product(sums, weight, first_channel<CHANNELS>(), u, 0, depth);
}

// rows[first channel + ...][column] = sums.
template <int CHANNELS, int TILES, class T>
__device__ __forceinline__ void store_rows(T* rows, int stride, const float (&sums)[TILES][4]) {
  T* target = rows + (first_channel<CHANNELS>() + row()) * stride + column();
#pragma unroll
  for (int n = 0; n < TILES; ++n) {
    store_pair(target + 8 * n, sums[n][0], sums[n][1]);
    store_pair(target + 8 * n + 8 * stride, sums[n][2], sums[n][3]);
  }
}

// The squared lengths of a warp's rows: its rows row() and row() + 8.
template <int TILES>
__device__ __forceinline__ void add_squares(float (&squares)[2], const float (&sums)[TILES][4]) {
#pragma unroll
  for (int n = 0; n < TILES; ++n) {
    squares[0] += sums[n][0] * sums[n][0] + sums[n][1] * sums[n][1];
    squares[1] += sums[n][2] * sums[n][2] + sums[n][3] * sums[n][3];
  }
}

// scores = softmax(scores) along the columns, of which there are `channels`, after scaling rows and columns; to the base 2,
// for which the rows' scale makes up.
template <class T, int TILES>
__device__ __forceinline__ void softmax(float (&scores)[TILES][4], const float (&row_scale)[2], const float* column_scale,
                                        int channels) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float largest = -INFINITY, sum = 0;
#pragma unroll
    for (int i = 0; i < 2 * TILES; ++i) {
      float& score = scores[i / 2][2 * half + i % 2];
      const int c = 8 * (i / 2) + column() + i % 2;
      score = c < channels ? score * row_scale[half] * column_scale[c] : -INFINITY;
      largest = fmaxf(largest, score);
    }
    largest = row_max(largest);
#pragma unroll
    for (int i = 0; i < 2 * TILES; ++i) {
      float& score = scores[i / 2][2 * half + i % 2];
      score = power_of_two<T>(score - largest);
      sum += score;
    }
    const float scale = __fdividef(1.0f, row_sum(sum));
#pragma unroll
    for (int i = 0; i < 2 * TILES; ++i) scores[i / 2][2 * half + i % 2] *= scale;
  }
}

// W_o (softmax(t qn kn^T) v) + b_o of a patch of BLOCKS times PIXELS pixels. load(block, u) fills u with the norm of a
// block's pixels, put(block, rows) gets the result, [PIXELS][kPixelStride]; both by all threads of the patch: CHANNELS / 16
// warps. A block may take several patches, each by warps and in memory of its own.
template <int CHANNELS, int PIXELS, int BLOCKS, class T, class Load, class Put>
__device__ __forceinline__ void attend(const PackedAttention<T>& weights, int channels, T* memory, const Load& load,
                                       const Put& put) {
  using Tiles = AttentionTiles<T, CHANNELS, PIXELS>;
  const Tiles tiles(memory);
  const Rows<T> u{tiles.u, Tiles::kPixelStride};
  const Rows<T> q{tiles.q, Tiles::kWide}, k{tiles.k, Tiles::kStride};
  // Tensor cores go over zeros as well, in a loop whose end is known; floats end with the channels.
  const int depth = sizeof(T) == sizeof(__half) ? CHANNELS : channels;
  const int first = first_channel<CHANNELS>();
  float scores[CHANNELS / 8][4] = {}, squares[2][2] = {};
  for (int block = 0; block < BLOCKS; ++block) {
    load(block, tiles.u);
    __syncthreads();
    float sums[PIXELS / 8][4];
    project<CHANNELS>(sums, weights.q, weights.qkv_bias, u, depth);
    add_squares(squares[0], sums);
    store_rows<CHANNELS>(tiles.q, Tiles::kWide, sums);
    project<CHANNELS>(sums, weights.k, weights.qkv_bias + channels, u, depth);
    add_squares(squares[1], sums);
    store_rows<CHANNELS>(tiles.k, Tiles::kStride, sums);
    __syncthreads();
    product(scores, q, first, k, 0, PIXELS);
    if (BLOCKS > 1) __syncthreads();
  }
  const float temperature = to_float(*weights.temperature) * 1.4426950408889634f;  // log2(e)
  const float q_scale[2] = {temperature * inverse_length(squares[0][0]), temperature * inverse_length(squares[0][1])};
  const float k_scale[2] = {inverse_length(squares[1][0]), inverse_length(squares[1][1])};
  if (column() == 0) {
    tiles.k_scale[first + row()] = k_scale[0];
    tiles.k_scale[first + row() + 8] = k_scale[1];
  }
  __syncthreads();  // and with that all warps have done with k
  softmax<T>(scores, q_scale, tiles.k_scale, channels);
  const auto put_scores = [&](int c) {  // over the queries of this warp alone
    store_rows<CHANNELS>(tiles.q, Tiles::kWide, reinterpret_cast<const float(&)[Tiles::kScores / 8][4]>(scores[c / 8]));
  };
  constexpr bool kAtOnce = Tiles::kScores == CHANNELS;
  if (kAtOnce) put_scores(0);
  for (int block = 0; block < BLOCKS; ++block) {
    if (BLOCKS > 1) {
      load(block, tiles.u);
      __syncthreads();
    }
    float sums[PIXELS / 8][4];
    project<CHANNELS>(sums, weights.v, weights.qkv_bias + 2 * channels, u, depth);
    store_rows<CHANNELS>(tiles.k, Tiles::kStride, sums);
    __syncthreads();
    float attended[PIXELS / 8][4] = {};
#pragma unroll
    for (int c = 0; c < CHANNELS; c += Tiles::kScores) {
      if (!kAtOnce) {
        __syncwarp();
        put_scores(c);
        __syncwarp();
      }
      const Columns<T> v{tiles.k + c * Tiles::kStride, Tiles::kStride};
      product(attended, q, first, v, 0, min(depth - c, Tiles::kScores));
    }
    store_rows<CHANNELS>(tiles.u, Tiles::kStride, attended);
    __syncthreads();
    project<CHANNELS>(sums, weights.out, weights.out_bias, Columns<T>{tiles.u, Tiles::kStride}, depth);
    T* result = tiles.k + column() * Tiles::kPixelStride + first + row();
#pragma unroll
    for (int n = 0; n < PIXELS / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        result[(8 * n + i % 2) * Tiles::kPixelStride + 8 * (i / 2)] = rounded<T>(sums[n][i]);
      }
    }
    __syncthreads();
    put(block, tiles.k);
    if (BLOCKS > 1) __syncthreads();
  }
}

// Where the pixels of a patch lie in a map.
struct Patch {
  uint64_t corner, row;
  int channels, side;
  __device__ uint64_t operator()(int pixel) const {
    return corner + pixel / side * row + pixel % side * channels;
  }
};

// A patch by its number in a map [batch, height, width, channels].
__device__ __forceinline__ Patch patch_at(unsigned number, int columns, int channels, int side) {
  const uint64_t row = static_cast<uint64_t>(columns) * side * channels;
  return {number / columns * side * row + number % columns * side * channels, row, channels, side};
}

// x + W_o (softmax(t qn kn^T) v) + b_o in every patch.
// Grid: a block for every patch.
template <class T, int CHANNELS, int SIDE>
__global__ void __launch_bounds__(2 * CHANNELS, 1)
    _inner_patch_attention_kernel(Map<T> x, T* y, PackedAttention<T> weights, Norm norm, int columns) {
  const bool quads = x.quads;
  assume_network(quads, norm);
  constexpr int kPixels = kPixelsOf<CHANNELS, SIDE>;
  using Tiles = AttentionTiles<T, CHANNELS, kPixels>;
  const Patch patch = patch_at(blockIdx.x, columns, x.channels, SIDE);
  const auto of_block = [&](int block) { return [&patch, block](int i) { return patch(block * kPixels + i); }; };
  attend<CHANNELS, kPixels, SIDE * SIDE / kPixels>(
      weights, x.channels, shared_memory<T>(),
      [&](int block, T* u) { load_normalized<2 * CHANNELS>(u, Tiles::kPixelStride, CHANNELS, x, kPixels, norm, of_block(block)); },
      [&](int block, const T* rows) {
        store_pixels<2 * CHANNELS>(rows, Tiles::kPixelStride, CHANNELS, y, x.data, quads, 0, x.channels, kPixels, of_block(block));
      });
}

template <class T, int CHANNELS, int SIDE>
void launch_attention(Device& device, const char* name, const Map<T>& x, T* y, const PackedAttention<T>& weights, Norm norm,
                      int64_t patches, int columns) {
  launch(device, name, _inner_patch_attention_kernel<T, CHANNELS, SIDE>, blocks_for(patches, 1, name), 2 * CHANNELS,
         AttentionTiles<T, CHANNELS, kPixelsOf<CHANNELS, SIDE>>::kBytes, x, y, weights, norm, columns);
}

template <class T>
void inner_patch_attention(Device& device, const char* name, Shape shape, const T* x, T* y, const PackedAttention<T>& weights,
                           Norm norm, int patch) {
  const Map<T> map{x, shape.channels, in_quads(x, shape.channels) && in_quads(y, shape.channels)};
  const int columns = static_cast<int>(shape.width / patch);
  const int64_t patches = shape.batch * (shape.height / patch) * columns;
  const auto run = [&](auto launch_kernel) { launch_kernel(device, name, map, y, weights, norm, patches, columns); };
  if (shape.channels <= 64) {
    run(patch == 4 ? launch_attention<T, 64, 4> : patch == 8 ? launch_attention<T, 64, 8> : launch_attention<T, 64, 16>);
  } else {
    run(patch == 4 ? launch_attention<T, 128, 4> : patch == 8 ? launch_attention<T, 128, 8> : launch_attention<T, 128, 16>);
  }
}

template <class T>
void inner_patch_attention(Device& device, Shape shape, const T* x, T* y, const AttentionOf<const T>& attention, Norm norm,
                           int patch) {
  constexpr const char* kName = "inner_patch_attention";
  Packer<T> packer(device, kName);
  const PackedAttention<T> weights = packed(packer, attention, shape.channels);
  packer.run();
  inner_patch_attention(device, kName, shape, x, y, weights, norm, patch);
}

}  // namespace ditn::cuda
