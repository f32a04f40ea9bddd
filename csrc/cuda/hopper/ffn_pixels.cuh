// SPDX-License-Identifier: Apache-2.0
// gated_ffn on a map: pixels between the map and rows in shared memory. A warp takes a line of the tile, 16 lanes a pixel.
#pragma once

#include "ffn_layout.cuh"
#include "stream.cuh"

namespace ditn::cuda::hopper::ffn {

// Images follow each other, in each the rows of tiles, in each the columns.
struct Tile {
  int image, row, column;
};

struct Work {
  int images, height, width, channels, rows, columns;
  Tile step;   // the way to a block's next tile
  bool quads;  // four channels lie at a multiple of their size, in x and in y

  __host__ __device__ Tile tile(int number) const {
    return {number / (rows * columns), number / columns % rows, number % columns};
  }
  __device__ Tile after(const Tile& tile) const {
    Tile next{tile.image + step.image, tile.row + step.row, tile.column + step.column};
    if (next.column >= columns) next.column -= columns, ++next.row;
    if (next.row >= rows) next.row -= rows, ++next.image;
    return next;
  }
};

// This warp's line of a tile, or of `border` pixels more on every side: every second pixel, from a lane's first one on.
struct Line {
  int64_t first;    // value of the map, of this lane's channels
  unsigned exists;  // a bit for each pixel

  __device__ Line(const Work& work, const Tile& tile, int border) {
    const int y = tile.row * kLines + warp() - border, x = tile.column * kColumns + lane() / 16 - border;
    first = ((static_cast<int64_t>(tile.image) * work.height + y) * work.width + x) * work.channels + lane() % 16 * 4;
    const bool line = tile.image < work.images && static_cast<unsigned>(y) < static_cast<unsigned>(work.height);
    const int count = min((work.width - x + 1) / 2, kSeenColumns / 2);  // with one before the image, if x is -1
    exists = line && count > 0 ? ((1u << count) - 1) & (x < 0 ? ~1u : ~0u) : 0;
  }
};

// Where a lane's four channels of its i-th pixel lie; `line`: of the first one.
__device__ __forceinline__ unsigned place_of_first_quad() {
  const int pixel = lane() / 16, quad = lane() % 16;
  return pixel * kRowBytes + ((quad / 2 ^ pixel) << 4) + quad % 2 * 8;
}
__device__ __forceinline__ unsigned place_of_quad(unsigned first, int i) { return (first ^ i % 4 << 5) + i * 2 * kRowBytes; }

// A lane's channels of the pixels of a line, four in two words; zeros outside the image.
template <class T, int COUNT>
__device__ __forceinline__ void load_quads(uint2 (&quads)[COUNT], const T* x, const Work& work, const Line& line) {
  const T* source = read_again(x + line.first);
  const int left = work.channels - lane() % 16 * 4;
  const unsigned exists = left > 0 ? line.exists : 0;
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    quads[i] = {};
    if (!(exists >> i & 1)) continue;
    const T* from = source + 2 * i * work.channels;
    if (work.quads) {
      quads[i] = __ldg(reinterpret_cast<const uint2*>(from));
    } else {
      T values[4] = {};
      for (int k = 0; k < 4 && k < left; ++k) values[k] = from[k];
      quads[i] = {Words<T>::of(values[0], values[1]), Words<T>::of(values[2], values[3])};
    }
  }
}

// Over the 16 lanes of a pixel.
__device__ __forceinline__ float pixel_sum(float x) {
#pragma unroll
  for (int mask = 1; mask < 16; mask *= 2) x += __shfl_xor_sync(0xffffffff, x, mask);
  return x;
}

// What a warp's line of the tile sees.
template <class T>
class Pixels {
 public:
  static constexpr int kCount = kSeenColumns / 2;

  // Pixels outside the image are zeros, and all if there is no such tile.
  __device__ Pixels(const T* x, const Work& work, const Tile& tile) : line_(work, tile, 1) { load_quads(quads_, x, work, line_); }

  // Rows of norm(x), and 1 in channel kOne or, with 64 channels, in a piece of `pieces`; zeros where there is no pixel. `first`:
  // where this lane's channels of the first lie.
  template <Norm NORM, bool FULL>
  __device__ void store(unsigned first, unsigned pieces, int channels) const {
    if constexpr (FULL) {
      const int i = lane() % 16, pixel = warp() * kSeenColumns + 2 * i + lane() / 16;
      if (i < kCount) store_piece(pieces + pixel * kPiece, {line_.exists >> i & 1 ? Words<T>::kOne : 0, 0, 0, 0});
    }
    const bool has_one = !FULL && lane() % 16 == kOne / 4;
    const unsigned ones = read_again(has_one ? line_.exists : 0);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      uint2 words = quads_[i];
      if constexpr (NORM == Norm::kTanh) words = {Words<T>::tanh(words.x), Words<T>::tanh(words.y)};
      if constexpr (NORM == Norm::kLayerNorm) words = layer_norm(words, channels);
      if (NORM == Norm::kLayerNorm && has_one) words.y &= 0xffff;  // else that channel is zero
      if (ones >> i & 1) words.y |= Words<T>::kOne << 16;
      store_half_piece(place_of_quad(first, i), words);
    }
  }

 private:
  // What lies behind the channels has no weights.
  __device__ static uint2 layer_norm(const uint2& x, int channels) {
    const int left = channels - lane() % 16 * 4;  // of this lane
    const float2 first = Words<T>::widened(x.x), second = Words<T>::widened(x.y);
    float values[4] = {first.x, first.y, second.x, second.y};
    const float share = __fdividef(1.0f, static_cast<float>(channels));
    const float mean = pixel_sum(values[0] + values[1] + values[2] + values[3]) * share;
    float squares = 0;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      values[k] -= mean;
      squares += k < left ? values[k] * values[k] : 0;
    }
    const float scale = rsqrtf(pixel_sum(squares) * share + kLayerNormEps);
    return {Words<T>::rounded(values[0] * scale, values[1] * scale), Words<T>::rounded(values[2] * scale, values[3] * scale)};
  }

  const Line line_;
  uint2 quads_[kCount];
};

// y = x + rows of results, of which this lane's channels of the first are at `first`.
template <class T>
__device__ __forceinline__ void store_results(unsigned first, const T* x, T* y, const Work& work, const Tile& tile) {
  if (warp() >= kLines) return;
  const Line line(work, tile, 0);
  uint2 residual[kColumns / 2];
  load_quads(residual, x, work, line);
  T* target = read_again(y + line.first);
  const int left = work.channels - lane() % 16 * 4;
  const unsigned exists = left > 0 ? line.exists : 0;
#pragma unroll
  for (int i = 0; i < kColumns / 2; ++i) {
    const uint2 words = load_half_piece(place_of_quad(first, i));
    const uint2 sum = {Words<T>::sum(words.x, residual[i].x), Words<T>::sum(words.y, residual[i].y)};
    if (!(exists >> i & 1)) continue;
    T* to = target + 2 * i * work.channels;
    if (work.quads) {
      __stwb(reinterpret_cast<uint2*>(to), sum);
    } else {
      const T values[4] = {Words<T>::first(sum.x), Words<T>::second(sum.x), Words<T>::first(sum.y), Words<T>::second(sum.y)};
      for (int k = 0; k < 4 && k < left; ++k) to[k] = values[k];
    }
  }
}

}  // namespace ditn::cuda::hopper::ffn
