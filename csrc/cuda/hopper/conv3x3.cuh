// SPDX-License-Identifier: Apache-2.0
// The 3x3 convolution of image_head and image_tail, from up to 64 channels: nine products by wgmma of the pixels of a tile with
// a tap's weight. Pixels lie in planes, eight channels of each one behind the other, so what a tap sees is another address.
// Weights stay in shared memory, where the next tile's pixels are copied to while those of this one are multiplied.
#pragma once

#include "../pixels.cuh"
#include "stream.cuh"

namespace ditn::cuda::hopper {

constexpr int kMostConvOutputs = 128;  // as all kernels have it (../conv3x3.cuh)

// A block's tile, of which each of its four warpgroups takes squares of 8 by 8 pixels, one below the other.
constexpr int kConvWarpgroups = 4, kConvThreads = 128 * kConvWarpgroups, kConvSquares = 2;
constexpr int kConvWidth = 8 * kConvWarpgroups, kConvHeight = 8 * kConvSquares;

// The pixels that a tile sees, 16 bytes in each of eight planes, which start in different banks.
constexpr int kOctets = kSide / 8;
constexpr int kSeenWidth = kConvWidth + 2, kSeenHeight = kConvHeight + 2;
constexpr int kSeenLine = kSeenWidth * kPiece, kPlaneBytes = (kSeenHeight * kSeenWidth + 1) * kPiece;
constexpr int kSeenBytes = kOctets * kPlaneBytes;
static_assert(kPlaneBytes / kPiece % 2 == 1);

// COLUMNS: of the products, each an output. For each tap a tile [columns][channels], then the columns' biases as floats.
template <int COLUMNS>
struct ConvMemory {
  static constexpr int kTapBytes = COLUMNS * kSide * 2, kBiases = 9 * kTapBytes;
  static constexpr int kWeightBytes = kBiases + COLUMNS * static_cast<int>(sizeof(float));
  static constexpr int kArrivalAt = kWeightBytes + 2 * kSeenBytes, kSharedBytes = kArrivalAt + 8;
  static_assert(kTapBytes % 1024 == 0 && kWeightBytes % 16 == 0 && kSharedBytes <= 227 << 10);
};

// Of 16 columns, a lane has four neighbouring outputs, 4 (lane % 4) on, in the columns 2 (lane % 4) and the next, and those plus
// 8. Which output a column hence is:
__device__ __forceinline__ int output_of_column(int column) {
  return column / 16 * 16 + column % 8 / 2 * 4 + column / 8 % 2 * 2 + column % 2;
}

// What is to be done. Outputs are counted as they lie in y: a pixel becomes a square of `upscale` lines, `run` values of each.
template <class T>
struct Conv {
  const T *x, *skip;  // or no skip
  T* y;
  int height, width, channels;  // of x and of the skip
  int rows, columns, tiles;
  int outputs, upscale, run;
  Divisor line;  // `run`
  bool quads, y_quads;  // whether four channels lie at a multiple of eight bytes, in x and in the skip; whether four outputs do
};

// Of a tile's first pixel: its number among all, and where it is in its image. Behind the last tile it is below the image.
struct ConvPlace {
  int64_t pixel;
  int top, left;
  template <class T>
  __device__ ConvPlace(const Conv<T>& conv, int tile) {
    const int of_image = conv.rows * conv.columns, image = tile / of_image, row = (tile - image * of_image) / conv.columns;
    top = tile < conv.tiles ? row * kConvHeight : conv.height + 1;
    left = (tile - image * of_image - row * conv.columns) * kConvWidth;
    pixel = (static_cast<int64_t>(image) * conv.height + top) * conv.width + left;
  }
};

// Starts to copy what a tile sees, BYTES at a time. Pixels that do not exist are zeros, and channels from the last one on.
template <int BYTES, class T>
__device__ __forceinline__ void start_loading(unsigned seen, const Conv<T>& conv, const ConvPlace& place) {
  constexpr int kParts = kSide * 2 / BYTES, kPixels = kConvThreads / kParts, kLines = kPixels / kConvWidth;
  const int thread = read_again(threadIdx.x), part = thread % kParts, pixel = thread / kParts;
  const bool there = part * (BYTES / 2) < conv.channels;
  const unsigned target = seen + part * BYTES / kPiece * kPlaneBytes + part * BYTES % kPiece;
  const int top = place.top - 1, left = place.left - 1;
  const T* corner = conv.x + place.pixel * conv.channels + part * (BYTES / 2);
  const auto source = [&](int line, int column) { return corner + ((line - 1) * conv.width + column - 1) * conv.channels; };
  const auto exists = [](int place, int size) { return static_cast<unsigned>(place) < static_cast<unsigned>(size); };
  // kLines lines of kConvWidth pixels at a time.
  const int first = pixel / kConvWidth, column = pixel % kConvWidth;
  const bool column_exists = there && exists(left + column, conv.width);
  const int step = kLines * conv.width * conv.channels;
  const T* from = source(first, column);
#pragma unroll
  for (int i = 0; i < kSeenHeight; i += kLines, from += step) {
    start_async_copy<BYTES>(target + (first + i) * kSeenLine + column * kPiece, from,
                            column_exists && exists(top + first + i, conv.height));
  }
  // The two pixels at the end of each line.
#pragma unroll
  for (int i = 0; i < 2 * kSeenHeight; i += kPixels) {
    const int line = (i + pixel) / 2, end = kConvWidth + (i + pixel) % 2;
    start_async_copy<BYTES>(target + line * kSeenLine + end * kPiece, source(line, end),
                            there && exists(left + end, conv.width) && exists(top + line, conv.height), line < kSeenHeight);
  }
}

// The same for any channels.
template <class T>
__device__ __forceinline__ void load_values(unsigned seen, const Conv<T>& conv, const ConvPlace& place) {
#pragma unroll 1
  for (int i = threadIdx.x; i < kOctets * kSeenHeight * kSeenWidth; i += kConvThreads) {
    const int octet = i % kOctets, pixel = i / kOctets, line = pixel / kSeenWidth;
    const int right = pixel % kSeenWidth - 1, down = line - 1, row = place.top + down, column = place.left + right;
    const bool exists = row >= 0 && row < conv.height && column >= 0 && column < conv.width;
    const T* source = conv.x + (place.pixel + down * conv.width + right) * conv.channels;
    alignas(16) T values[8];
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const int c = 8 * octet + k;
      values[k] = exists && c < conv.channels ? source[c] : T(0.0f);
    }
    store_piece(seen + octet * kPlaneBytes + pixel * kPiece, reinterpret_cast<const uint4&>(values));
  }
}

// What comes of a pixel's products: outputs of a lane, of which `first` is the first. PADDED: see below.
template <class T, bool PADDED>
struct Outputs {
  const Conv<T>& conv;
  int first;
  bool exists[2];

  // Where an output lies behind the first of its pixel.
  __device__ int place(int output) const {
    return PADDED ? output + conv.line.divide(output) * (conv.width - 1) * conv.run : output;
  }

  __device__ uint2 of_skip(const T* skip, int i, int half) const {
    const int c = first + 16 * i;
    if (conv.quads) return fetch_words(skip + c, exists[half] && c < conv.channels);
    T values[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) values[k] = exists[half] && c + k < conv.channels ? skip[c + k] : T(0.0f);
    return {Words<T>::of(values[0], values[1]), Words<T>::of(values[2], values[3])};
  }

  __device__ void store(T* y, int i, int half, const uint2& words) const {
    const int output = first + 16 * i;
    if (conv.y_quads) {
      write_words(y + place(output), words, exists[half] && output < conv.outputs);
    } else {
      const T values[4] = {Words<T>::first(words.x), Words<T>::second(words.x), Words<T>::first(words.y), Words<T>::second(words.y)};
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if (exists[half] && output + k < conv.outputs) y[place(output + k)] = values[k];
      }
    }
  }
};

// y = the sums of a warpgroup's square, of which a warp has two lines, + biases and what is skipped. `down`: lines between the
// tile's first and the square's.
template <int COLUMNS, bool PADDED, class T>
__device__ __forceinline__ void store_square(const float (&sums)[COLUMNS / 2], const Conv<T>& conv, const ConvPlace& tile, int down,
                                             unsigned biases) {
  // There are no registers to keep what follows from the thread's number in.
  const int thread = read_again(threadIdx.x), lane = thread % 32;
  const int right = thread / 128 * 8 + lane / 4, quad_of_lane = lane % 4 * 4;
  down += thread % 128 / 32 * 2;
  // Of the warp's two lines, those that there are.
  const int lines = tile.left + right < conv.width ? conv.height - tile.top - down : 0;
  const Outputs<T, PADDED> outputs{conv, static_cast<int>(blockIdx.y) * COLUMNS + quad_of_lane, {lines > 0, lines > 1}};
  biases += quad_of_lane * static_cast<int>(sizeof(float));
  // Of the tile's first pixel. A line of x is `upscale` of y.
  const int values = conv.upscale * conv.run;
  T* of_tile = conv.y + (tile.pixel - tile.left) * values + tile.left * conv.run;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    T* y = of_tile + (down + half) * conv.width * values + right * conv.run;
    uint2 skipped[COLUMNS / 16] = {};
    if (!PADDED && conv.skip) {
      const T* skip = conv.skip + (tile.pixel + (down + half) * conv.width + right) * conv.channels;
#pragma unroll
      for (int i = 0; i < COLUMNS / 16; ++i) skipped[i] = outputs.of_skip(skip, i, half);
    }
#pragma unroll
    for (int i = 0; i < COLUMNS / 16; ++i) {
      const uint4 bits = load_piece(biases + 16 * i * static_cast<int>(sizeof(float)));
      const float4 bias = reinterpret_cast<const float4&>(bits);
      const float* sum = sums + 8 * i + 2 * half;
      uint2 words = {Words<T>::rounded(sum[0] + bias.x, sum[1] + bias.y), Words<T>::rounded(sum[4] + bias.z, sum[5] + bias.w)};
      if constexpr (!PADDED) words = {Words<T>::sum(words.x, skipped[i].x), Words<T>::sum(words.y, skipped[i].y)};
      outputs.store(y, i, half, words);
    }
  }
}

// y = conv3x3(x) + bias, + skip where there is one, with zero padding; pixels shuffled. A warpgroup has two squares of a tile.
// While the products of one are computed, it stores those of the other one.
// Grid: (as many blocks as run at once, which take tiles in turn; COLUMNS outputs each).
template <class T, int COLUMNS, bool PADDED>
__global__ void __launch_bounds__(kConvThreads, 1) _hopper_conv3x3_kernel(Conv<T> conv, const unsigned char* weights) {
  assume_network(conv.quads && conv.y_quads);
  using Memory = ConvMemory<COLUMNS>;
  const unsigned memory = shared_address(shared_memory<unsigned char>()), arrival = memory + Memory::kArrivalAt;
  const unsigned first_seen = memory + Memory::kWeightBytes, biases = memory + Memory::kBiases;
  if (threadIdx.x == 0) prepare_arrival(arrival);
  __syncthreads();
  if (threadIdx.x == 0) {
    start_bulk_copy(memory, weights + blockIdx.y * Memory::kWeightBytes, Memory::kWeightBytes, arrival);
  }
  const auto load = [&](unsigned seen, const ConvPlace& place) {
    if constexpr (PADDED) {
      start_loading<16>(seen, conv, place);
    } else if (conv.quads) {
      start_loading<8>(seen, conv, place);
    } else {
      load_values(seen, conv, place);
    }
  };
  // The descriptors are computed again each time, lest 36 of them for weights be kept.
  const auto start = [&](float(&sums)[COLUMNS / 2], unsigned seen) {
    const uint64_t of_weights = tile_descriptor(uniform(memory));
    const uint64_t pixels = planes_descriptor(uniform(seen + threadIdx.x / 128 * 8 * kPiece), kPlaneBytes, kSeenLine);
    begin_products();
#pragma unroll
    for (int i = 0; i < 9 * kSide / 16; ++i) {
      const int tap = i / (kSide / 16), depth = i % (kSide / 16);
      multiply_tile<T, false>(sums, pixels + (tap / 3 * kSeenLine + tap % 3 * kPiece + depth * 2 * kPlaneBytes) / 16,
                           of_weights + (tap * Memory::kTapBytes + depth * 32) / 16, i != 0);
    }
    commit_products();
  };

  float upper[COLUMNS / 2], lower[COLUMNS / 2] = {};
  int tile = blockIdx.x;
  ConvPlace next(conv, tile), before = next;
  before.top = conv.height;  // such a tile has no pixels
  load(first_seen, next);
  wait_for_arrival(arrival, 0);
  unsigned seen = first_seen, other = first_seen + kSeenBytes;
#pragma unroll 1
  while (tile < conv.tiles) {
    const ConvPlace place = next;
    wait_for_async_copies();
    publish();
    __syncthreads();  // now all is there, and nobody needs what was there for the tile before
    start(upper, seen);
    tile += gridDim.x;
    next = ConvPlace(conv, tile);  // perhaps none, all of whose pixels are zeros
    load(other, next);
    wait_for_earlier_products();
    store_square<COLUMNS, PADDED>(lower, conv, before, 8, biases);
    wait_for_products();
    start(lower, seen + 8 * kSeenLine);
    store_square<COLUMNS, PADDED>(upper, conv, place, 0, biases);
    wait_for_products();
    before = place;
    const unsigned swapped = seen;
    seen = other;
    other = swapped;
  }
  store_square<COLUMNS, PADDED>(lower, conv, before, 8, biases);
}

}  // namespace ditn::cuda::hopper
