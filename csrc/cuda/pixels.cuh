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

// Calls visit(i, c) for every pixel i < count and every multiple c < width of four. The fast way has no loop where count and
// width are known.
template <int THREADS, bool FAST, class Visit>
__device__ __forceinline__ void each_quad(int count, int width, const Visit& visit) {
  const int pixel = threadIdx.x / 16, channel = threadIdx.x % 16 * 4;
#pragma unroll(FAST ? 8 : 1)
  for (int i = 0; i < count; i += THREADS / 16) {
#pragma unroll(FAST ? 2 : 1)
    for (int c = 0; c < width; c += 64) {
      if (i + pixel < count && c + channel < width) visit(i + pixel, c + channel);
    }
  }
}

// rows[i][0, width) = the channels of pixel i, then zeros, for i < count; tanh of them if `tanh`. offset(i) is where the
// pixel starts in the map, or negative for a pixel of zeros. All threads of the block take part, of which there are THREADS.
template <int THREADS, class T, class Offset>
__device__ __forceinline__ void load_pixels(T* rows, int stride, int width, const Map<T>& map, int count, bool tanh,
                                            const Offset& offset) {
  const auto put = [&](int i, int c, const Quad<T>& quad) {
    *reinterpret_cast<Quad<T>*>(rows + i * stride + c) = tanh ? tanh_of(quad) : quad;
  };
  if (map.quads) {
    each_quad<THREADS, true>(count, width, [&](int i, int c) {
      const int64_t start = offset(i);
      const bool inside = start >= 0 && c < map.channels;
      put(i, c, inside ? *reinterpret_cast<const Quad<T>*>(map.data + start + c) : Quad<T>{});
    });
  } else {
    each_quad<THREADS, false>(count, width, [&](int i, int c) {
      const int64_t start = offset(i);
      Quad<T> quad{};
      for (int k = 0; k < 4 && start >= 0 && c + k < map.channels; ++k) quad.values[k] = map.data[start + c + k];
      put(i, c, quad);
    });
  }
}

// rows[i][c] = affine(c, (rows[i][c] - mean) / sqrt(variance + eps)) over the channels, in place; what lies behind them
// stays. Four neighbouring lanes to a pixel. All threads of the block take part.
template <int THREADS, class T, class Affine>
__device__ __forceinline__ void layer_norm(T* rows, int stride, int channels, int count, float eps, const Affine& affine) {
  const int start = threadIdx.x % 4;
  for (int first = 0; first < count; first += THREADS / 4) {
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
template <int THREADS, class T, class Offset>
__device__ __forceinline__ void load_normalized(T* rows, int stride, int width, const Map<T>& map, int count, Norm norm,
                                                const Offset& offset) {
  load_pixels<THREADS>(rows, stride, width, map, count, norm == Norm::kTanh, offset);
  if (norm == Norm::kLayerNorm) {
    __syncthreads();
    layer_norm<THREADS>(rows, stride, map.channels, count, kLayerNormEps, [](int, float value) { return value; });
  }
}

// y[first + c] = rows[i][c] for c < channels <= width at every pixel i < count; with the same of `residual` added, where
// there is one. `quads` is about all three. All threads of the block take part.
template <int THREADS, class T, class Offset>
__device__ __forceinline__ void store_pixels(const T* rows, int stride, int width, T* y, const T* residual, bool quads,
                                             int first, int channels, int count, const Offset& offset) {
  if (quads) {
    each_quad<THREADS, true>(count, width, [&](int i, int c) {
      if (c >= channels) return;
      const int64_t place = offset(i) + first + c;
      const auto& quad = *reinterpret_cast<const Quad<T>*>(rows + i * stride + c);
      const auto added = reinterpret_cast<const Quad<T>*>(residual + place);
      *reinterpret_cast<Quad<T>*>(y + place) = residual ? sum_of(quad, *added) : quad;
    });
  } else {
    each_quad<THREADS, false>(count, width, [&](int i, int c) {
      const int64_t place = offset(i) + first;
      for (int k = c; k < c + 4 && k < channels; ++k) {
        const float added = residual ? to_float(residual[place + k]) : 0.0f;
        y[place + k] = rounded<T>(to_float(rows[i * stride + k]) + added);
      }
    });
  }
}

}  // namespace ditn::cuda
