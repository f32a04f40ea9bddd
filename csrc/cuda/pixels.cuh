// SPDX-License-Identifier: Apache-2.0
// Pixels between a map in global memory and rows of channels in shared memory: 16 lanes to a pixel.
#pragma once

#include "launch.cuh"
#include "math.cuh"

namespace ditn::cuda {

constexpr float kLayerNormEps = 1e-5f;

// Values behind the channels of a row in shared memory, so that eight rows start in different banks.
template <class T>
constexpr int kSpare = 16 / sizeof(T);

// Channels of a row in shared memory, a multiple of what tensor cores take.
__host__ __device__ inline int padded(int channels) { return (channels + 15) / 16 * 16; }

// Four channels at once, where they lie at a multiple of their size.
template <class T>
struct alignas(4 * sizeof(T)) Quad {
  T values[4];
};

// A map whose pixels start at multiples of a Quad's size, or do not (`quads`).
template <class T>
struct Map {
  const T* data;
  int channels;
  bool quads;
};

template <class T>
bool in_quads(const T* data, int channels) {
  return channels % 4 == 0 && reinterpret_cast<uintptr_t>(data) % sizeof(Quad<T>) == 0;
}

template <class T>
__device__ __forceinline__ Quad<T> tanh_of(const Quad<T>& x) {
  const auto& in = reinterpret_cast<const Pair<T>(&)[2]>(x);
  Pair<T> out[2] = {tanh_of(in[0]), tanh_of(in[1])};
  return reinterpret_cast<const Quad<T>&>(out);
}

template <class T>
__device__ __forceinline__ Quad<T> sum_of(const Quad<T>& a, const Quad<T>& b) {
  const auto& left = reinterpret_cast<const Pair<T>(&)[2]>(a);
  const auto& right = reinterpret_cast<const Pair<T>(&)[2]>(b);
  Pair<T> out[2] = {sum_of(left[0], right[0]), sum_of(left[1], right[1])};
  return reinterpret_cast<const Quad<T>&>(out);
}

// rows[i][0, width) = the channels of pixel i, then zeros, for i < count; tanh of them if `tanh`. offset(i) is where the
// pixel starts in the map, or negative for a pixel of zeros. All threads of the block take part.
template <class T, class Offset>
__device__ __forceinline__ void load_pixels(T* rows, int stride, int width, const Map<T>& map, int count, bool tanh,
                                            const Offset& offset) {
  const int pixels = blockDim.x / 16;
  for (int i = threadIdx.x / 16; i < count; i += pixels) {
    const int64_t start = offset(i);
    for (int c = threadIdx.x % 16 * 4; c < width; c += 64) {
      Quad<T> quad{};
      if (start >= 0 && c < map.channels) {
        const T* source = map.data + start + c;
        if (map.quads) {
          quad = *reinterpret_cast<const Quad<T>*>(source);
        } else {
          for (int k = 0; k < 4 && c + k < map.channels; ++k) quad.values[k] = source[k];
        }
      }
      *reinterpret_cast<Quad<T>*>(rows + i * stride + c) = tanh ? tanh_of(quad) : quad;
    }
  }
}

// rows[i][c] = affine(c, (rows[i][c] - mean) / sqrt(variance + eps)) over the channels, in place; what lies behind them
// stays. Four neighbouring lanes to a pixel. All threads of the block take part.
template <class T, class Affine>
__device__ __forceinline__ void layer_norm(T* rows, int stride, int channels, int count, float eps, const Affine& affine) {
  const int pixels = blockDim.x / 4, start = threadIdx.x % 4;
  for (int first = 0; first < count; first += pixels) {
    const int i = first + threadIdx.x / 4;
    const int end = i < count ? channels : 0;  // lanes without a pixel go along, for the sums
    T* row = rows + i * stride;
    float sum = 0, squares = 0;
    for (int c = start; c < end; c += 4) sum += to_float(row[c]);
    const float mean = quad_sum(sum) / channels;
    for (int c = start; c < end; c += 4) squares += (to_float(row[c]) - mean) * (to_float(row[c]) - mean);
    const float scale = 1.0f / sqrtf(quad_sum(squares) / channels + eps);
    for (int c = start; c < end; c += 4) row[c] = rounded<T>(affine(c, (to_float(row[c]) - mean) * scale));
  }
}

// load_pixels, and the norm without its affine part. Other threads may read the rows after the next barrier.
template <class T, class Offset>
__device__ __forceinline__ void load_normalized(T* rows, int stride, int width, const Map<T>& map, int count, Norm norm,
                                                const Offset& offset) {
  load_pixels(rows, stride, width, map, count, norm == Norm::kTanh, offset);
  if (norm == Norm::kLayerNorm) {
    __syncthreads();
    layer_norm(rows, stride, map.channels, count, kLayerNormEps, [](int, float value) { return value; });
  }
}

// y[first + c] = rows[i][c] for c < count at every pixel i < pixels; with the same of `residual` added, where there is one.
// `quads` is about all three. A pixel whose offset is negative does not exist. All threads of the block take part.
template <class T, class Offset>
__device__ __forceinline__ void store_pixels(const T* rows, int stride, T* y, const T* residual, bool quads, int first, int count,
                                             int pixels, const Offset& offset) {
  for (int i = threadIdx.x / 16; i < pixels; i += blockDim.x / 16) {
    const int64_t pixel = offset(i), start = pixel + first;
    if (pixel < 0) continue;
    for (int c = threadIdx.x % 16 * 4; c < count; c += 64) {
      Quad<T> quad = *reinterpret_cast<const Quad<T>*>(rows + i * stride + c);
      if (quads) {
        if (residual) quad = sum_of(quad, *reinterpret_cast<const Quad<T>*>(residual + start + c));
        *reinterpret_cast<Quad<T>*>(y + start + c) = quad;
      } else {
        for (int k = 0; k < 4 && c + k < count; ++k) {
          const float added = residual ? to_float(residual[start + c + k]) : 0.0f;
          y[start + c + k] = rounded<T>(to_float(quad.values[k]) + added);
        }
      }
    }
  }
}

}  // namespace ditn::cuda
