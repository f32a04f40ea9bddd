// SPDX-License-Identifier: Apache-2.0
// The 3x3 convolution of image_head and image_tail: nine products of shifted lines of pixels, which lie in shared memory.
#pragma once

#include "lines.cuh"
#include "pack.cuh"

namespace ditn::cuda {

constexpr int kLineTile = 16;  // pixels of a line in a block's tile: a tile of the product

constexpr int kMostOutputs = 128;

// WIDTH: channels at most, 16, 64 or 128.
template <class T, int WIDTH>
struct ConvTile {
  static constexpr bool kHalf = sizeof(T) == sizeof(__half);
  static constexpr int kHeight = (kHalf ? 8 : 4) / (WIDTH == 128 ? 2 : 1);
  static constexpr int kWarps = kHeight, kThreads = 32 * kWarps;  // a pair of them takes two lines, half of the columns each
  static constexpr int kSeenColumns = kLineTile + 2, kStride = WIDTH + kSpare<T>;
  static constexpr int kSeen = (kHeight + 2) * kSeenColumns * kStride;
  static constexpr size_t shared(int outputs) {
    return (kSeen + kHeight * kLineTile * ((outputs + 15) / 16 * 16 + kSpare<T>)) * sizeof(T);
  }
  static_assert(shared(kMostOutputs) <= kTuringShared);
  static constexpr int kBlocks = blocks_at_once(shared(64), kThreads, kHalf && WIDTH == 16 ? 64 : 128);
};

// Lines of kLineTile pixels out of longer ones, as the factor a of a product.
template <class T>
struct Windows {
  using Value = T;
  const T* data;
  int stride, columns;  // of a pixel, in values, and of a line, in pixels
  __device__ const T* line(int outer) const {
    return data + (outer / kLineTile * columns + outer % kLineTile) * stride;
  }
  __device__ T at(int outer, int depth) const { return line(outer)[depth]; }
};

// How results are stored: output c * upscale^2 + i * upscale + j of a pixel is channel c of the pixel (i, j) of the square
// that takes its place.
struct Shuffle {
  int upscale, channels;
  Divisor square, line;  // pixels of a square; units of a line of it, which are Quads, or values
  bool quads;            // so are places in y and in the skip
  // Where an output lies among those of a pixel, sorted by i, then j, then c.
  __device__ int place(int output) const {
    const int c = square.divide(output);
    return (output - c * square.value) * channels + c;
  }
};

// conv3x3(x) + bias, + skip where there is one, with zero padding; pixels shuffled.
// Grid: a tile_grid.
template <class T, int WIDTH>
__global__ void __launch_bounds__(ConvTile<T, WIDTH>::kThreads, ConvTile<T, WIDTH>::kBlocks)
    _conv3x3_kernel(Map<T> x, T* y, Weight<T> weight, const T* bias, const T* skip, Shuffle shuffle, int height, int width) {
  assume_network(shuffle.quads && x.quads == (WIDTH > 16), Norm::kTanh);
  using Tile = ConvTile<T, WIDTH>;
  constexpr int kStride = Tile::kStride;
  T* seen = shared_memory<T>();  // [kHeight + 2][kSeenColumns][kStride]
  T* results = seen + Tile::kSeen;  // [kHeight * kLineTile][results_stride], outputs in the order of Shuffle::place
  const int results_stride = padded(weight.outputs) + kSpare<T>;
  const TilePlace tile((height + Tile::kHeight - 1) / Tile::kHeight);
  const int top = tile.row * Tile::kHeight, left = tile.column * kLineTile;

  for (int i = warp(); i < Tile::kHeight + 2; i += Tile::kWarps) {
    const int row = top - 1 + i;
    const Line line{(tile.image * height + row) * width * x.channels, left - 1, width, row >= 0 && row < height};
    load_line<Tile::kSeenColumns, 1, WIDTH>(seen + i * Tile::kSeenColumns * kStride, kStride, x, line, false);
  }
  finish_copies(x.quads);
  __syncthreads();

  constexpr int kColumns = 32;  // of a warp at a time
  const int first_line = warp() / 2 * 2;
#pragma unroll 1
  for (int o = warp() % 2 * kColumns; o < weight.outputs; o += 2 * kColumns) {
    float sums[2][kColumns / 8][4] = {};
#pragma unroll 1
    for (int tap = 0; tap < 9; ++tap) {
      const T* pixels = seen + ((first_line + tap / 3) * Tile::kSeenColumns + tap % 3) * kStride;
      const Windows<T> window{pixels, kStride, Tile::kSeenColumns};
      if constexpr (sizeof(T) == sizeof(__half)) {
        product(sums, window, 0, weight.of_layer(tap), o, WIDTH);
      } else {
        // One long sum would show its rounding.
        float of_tap[2][kColumns / 8][4] = {};
        product(of_tap, window, 0, weight.of_layer(tap), o, x.channels);
#pragma unroll
        for (int i = 0; i < kColumns; ++i) (&sums[0][0][0])[i] += (&of_tap[0][0][0])[i];
      }
    }
#pragma unroll
    for (int i = 0; i < kColumns / 4; ++i) {
      const int output = o + i / 2 * 8 + column() + i % 2;
      if (output >= weight.outputs) continue;
      T* place = results + (first_line * kLineTile + row()) * results_stride + shuffle.place(output);
      const float added = to_float(bias[output]);
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        place[8 * m * results_stride] = rounded<T>(sums[m / 2][i / 2][m % 2 * 2 + i % 2] + added);
      }
    }
  }
  __syncthreads();

  // A line of the tile becomes `upscale` lines, whose values lie one behind the other in y.
  const int unit = shuffle.quads ? 4 : 1, run = shuffle.line.value * unit;
  const int count = min(width - left, kLineTile) * shuffle.line.value;
#pragma unroll 1
  for (int i = warp(); i < Tile::kHeight * shuffle.upscale; i += Tile::kWarps) {
    const int line = i / shuffle.upscale, part = i - line * shuffle.upscale;
    if (top + line >= height) break;
    const T* source = results + line * kLineTile * results_stride + part * run;
    const int64_t target = (((tile.image * height + top + line) * shuffle.upscale + part) * width + left) * run;
#pragma unroll 1
    for (int q = lane(); q < count; q += 32) {
      const int pixel = shuffle.line.divide(q);
      const T* value = source + pixel * results_stride + (q - pixel * shuffle.line.value) * unit;
      const int64_t place = target + q * unit;
      if (shuffle.quads) {
        const Quad<T> quad = load_quad(value);
        write_quad(y + place, skip ? sum_of(quad, fetch_quad(skip + place)) : quad);
      } else {
        y[place] = skip ? rounded<T>(to_float(*value) + to_float(skip[place])) : *value;
      }
    }
  }
}

// Channels of a kernel that takes so many.
inline int conv_width(int channels) { return channels <= 16 ? 16 : channels <= 64 ? 64 : 128; }

// The packer has nine layers, and has to run before the weight is used. weight [3, 3, inputs, outputs].
template <class T>
Weight<T> pack_conv3x3(Packer<T>& packer, const T* weight, int inputs, int outputs) {
  return packer.add(weight, inputs, outputs, outputs, conv_width(inputs), (outputs + 31) / 32 * 32);
}

template <class T>
void launch_conv3x3(Device& device, const char* name, Shape shape, const T* x, T* y, const Weight<T>& weight, int outputs,
                    const T* bias, const T* skip, int upscale) {
  if (outputs > kMostOutputs) {
    throw std::runtime_error(std::string(name) + " has room for " + std::to_string(kMostOutputs) + " outputs, not " +
                             std::to_string(outputs));
  }
  const int run = outputs / upscale;
  const bool quads = in_quads(y, run) && (!skip || in_quads(skip, run));
  const auto run_with = [&](auto width) {
    constexpr int kWidth = decltype(width)::value;
    using Tile = ConvTile<T, kWidth>;
    const dim3 tiles = tile_grid(name, shape.batch, parts(shape.height, Tile::kHeight), parts(shape.width, kLineTile));
    launch(device, name, _conv3x3_kernel<T, kWidth>, tiles, Tile::kThreads, Tile::shared(outputs),
           Map<T>{x, shape.channels, in_quads(x, shape.channels)}, y, weight, bias, skip,
           Shuffle{upscale, outputs / (upscale * upscale), Divisor(upscale * upscale), Divisor(quads ? run / 4 : run), quads}, static_cast<int>(shape.height), static_cast<int>(shape.width));
  };
  switch (conv_width(shape.channels)) {
    case 16:
      return run_with(std::integral_constant<int, 16>());
    case 64:
      return run_with(std::integral_constant<int, 64>());
    default:
      return run_with(std::integral_constant<int, 128>());
  }
}

}  // namespace ditn::cuda
