// SPDX-License-Identifier: Apache-2.0
// Tiles of maps, and pieces of their lines between global memory and rows of channels in shared memory: by one warp, 16
// lanes to a pixel, every STEP-th pixel.
#pragma once

#include "pixels.cuh"
#include "product.cuh"

namespace ditn::cuda {

// A block's tile: images follow each other along x of the grid, and in each the rows of tiles; columns of tiles along y.
struct TilePlace {
  int64_t image;
  int row, column;
  __device__ explicit TilePlace(int rows)
      : image(blockIdx.x / rows), row(blockIdx.x - static_cast<int>(image) * rows), column(blockIdx.y) {}
};

inline int parts(int64_t whole, int size) { return static_cast<int>((whole + size - 1) / size); }

inline dim3 tile_grid(const char* name, int64_t images, int rows, int columns) {
  return dim3(blocks_for(images * rows, 1, name), columns);
}

// Pixels left, left + STEP, ... of a line. `first` is where the line's pixel 0 starts in the map.
struct Line {
  int64_t first;
  int left, width;  // of the map; pixels beyond either end of the line do not exist
  bool exists;
};

// rows[i][0, WIDTH) = the channels of the line's pixel i, then zeros, for i < COUNT, which is even; tanh of them if `tanh`.
// Pixels that do not exist are zeros. Whoever reads the rows calls finish_copies before the barrier.
template <int COUNT, int STEP, int WIDTH, class T>
__device__ __forceinline__ void load_line(T* rows, int stride, const Map<T>& map, const Line& line, bool tanh) {
  const int half = lane() / 16, left = line.left + half * STEP;
#pragma unroll
  for (int c = lane() % 16 * 4; c < WIDTH; c += 64) {
    const bool channel = line.exists && c < map.channels;
    const T* source = map.data + line.first + static_cast<int64_t>(left) * map.channels + c;
    T* target = rows + half * stride + c;
    if (kCopies && map.quads && !tanh) {
#pragma unroll
      for (int i = 0; i < COUNT / 2; ++i) {
        const bool exists = channel && static_cast<unsigned>(left + 2 * i * STEP) < static_cast<unsigned>(line.width);
        copy_quad(target + 2 * i * stride, source, exists);
        source += 2 * STEP * map.channels;
      }
      continue;
    }
    Quad<T> quads[COUNT / 2] = {};
#pragma unroll
    for (int i = 0; i < COUNT / 2; ++i) {
      const auto column = static_cast<unsigned>(left + 2 * i * STEP);
      if (channel && column < static_cast<unsigned>(line.width)) {
        if (map.quads) {
          quads[i] = fetch_quad(source);
        } else {
          T values[4] = {};
          for (int k = 0; k < 4 && c + k < map.channels; ++k) values[k] = source[k];
          quads[i] = load_quad(values);
        }
      }
      source += 2 * STEP * map.channels;
    }
#pragma unroll
    for (int i = 0; i < COUNT / 2; ++i) {
      store_quad(target + 2 * i * stride, tanh ? tanh_of(quads[i]) : quads[i]);
    }
  }
}

// y = rows + residual at the line's pixels that exist.
template <int COUNT, int STEP, int WIDTH, class T>
__device__ __forceinline__ void store_line(const T* rows, int stride, T* y, const Map<T>& residual, const Line& line) {
  const int half = lane() / 16, left = line.left + half * STEP, channels = residual.channels;
#pragma unroll
  for (int c = lane() % 16 * 4; c < WIDTH; c += 64) {
    if (!line.exists || c >= channels) continue;
    T* target = y + line.first;
    const T* source = residual.data + line.first;
#pragma unroll
    for (int i = 0; i < COUNT / 2; ++i) {
      const int column = left + 2 * i * STEP, place = column * channels + c;
      if (static_cast<unsigned>(column) >= static_cast<unsigned>(line.width)) continue;
      const T* added = rows + (2 * i + half) * stride + c;
      if (residual.quads) {
        write_quad(target + place, sum_of(load_quad(added), fetch_quad(source + place)));
      } else {
        for (int k = 0; k < 4 && c + k < channels; ++k) {
          target[place + k] = rounded<T>(to_float(added[k]) + to_float(source[place + k]));
        }
      }
    }
  }
}

}  // namespace ditn::cuda
