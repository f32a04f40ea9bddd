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
  Pair<T> pairs[2];
};

// Its bits, lest the compiler take several instructions for them.
__device__ __forceinline__ uint2 word_of(const Quad<__half>& quad) {
  const auto bits = [](const __half2& pair) { return reinterpret_cast<const unsigned&>(pair); };
  return make_uint2(bits(quad.pairs[0]), bits(quad.pairs[1]));
}
__device__ __forceinline__ float4 word_of(const Quad<float>& quad) {
  return make_float4(quad.pairs[0].x, quad.pairs[0].y, quad.pairs[1].x, quad.pairs[1].y);
}

template <class T>
__device__ __forceinline__ void store_quad(T* target, const Quad<T>& quad) {
  *reinterpret_cast<decltype(word_of(quad))*>(target) = word_of(quad);
}

// Into global memory.
template <class T>
__device__ __forceinline__ void write_quad(T* target, const Quad<T>& quad) {
  __stwb(reinterpret_cast<decltype(word_of(quad))*>(target), word_of(quad));
}

template <class T>
__device__ __forceinline__ Quad<T> load_quad(const T* source) {
  return *reinterpret_cast<const Quad<T>*>(source);
}

// From global memory that the kernel does not write, so that loads need not wait for stores.
template <class T>
__device__ __forceinline__ Quad<T> fetch_quad(const T* source) {
  using Word = decltype(word_of(Quad<T>{}));
  const Word word = __ldg(reinterpret_cast<const Word*>(source));
  return reinterpret_cast<const Quad<T>&>(word);
}

// From sm_80 on quads can be copied to shared memory without passing through registers. What was started is there after
// finish_copies and a barrier.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
constexpr bool kCopies = true;
#else
constexpr bool kCopies = false;
#endif

template <class T>
__device__ __forceinline__ void copy_quad(T* target, const T* source, bool exists) {
  if constexpr (kCopies) start_copy<sizeof(Quad<T>)>(target, source, exists);
}

__device__ __forceinline__ void finish_copies(bool started) {
  if constexpr (kCopies) {
    if (started) wait_for_copies();
  }
}

// A map whose pixels start at multiples of a Quad's size, or do not (`quads`).
template <class T>
struct Map {
  const T* data;
  int channels;
  bool quads;
};

template <class T>
bool in_quads(const T* data, int channels) {
  return channels % 4 == 0 && reinterpret_cast<uintptr_t>(data) % (4 * sizeof(T)) == 0;
}

template <class T>
__device__ __forceinline__ Quad<T> tanh_of(const Quad<T>& x) {
  return {{tanh_of(x.pairs[0]), tanh_of(x.pairs[1])}};
}

template <class T>
__device__ __forceinline__ Quad<T> sum_of(const Quad<T>& a, const Quad<T>& b) {
  return {{sum_of(a.pairs[0], b.pairs[0]), sum_of(a.pairs[1], b.pairs[1])}};
}

// Calls visit(i, c) for every pixel i < count and every multiple c < width of four. The fast way has no loop where count and
// width are known.
template <int THREADS, bool FAST, class Visit>
__device__ __forceinline__ void each_quad(int count, int width, const Visit& visit) {
  const int pixel = threadIdx.x % THREADS / 16, channel = threadIdx.x % 16 * 4;  // which lets the compiler see the bound
#pragma unroll(FAST ? 8 : 1)
  for (int i = 0; i < count; i += THREADS / 16) {
#pragma unroll(FAST ? 2 : 1)
    for (int c = 0; c < width; c += 64) {
      if (i + pixel < count && c + channel < width) visit(i + pixel, c + channel);
    }
  }
}

// Whether there is a pixel at such a place in a map. Unsigned places are those of pixels that there always are.
__device__ __forceinline__ bool exists(int64_t place) { return place >= 0; }
__device__ __forceinline__ bool exists(uint64_t) { return true; }

// rows[i][0, width) = the channels of pixel i, then zeros, for i < count; tanh of them if `tanh`. offset(i) is where the
// pixel starts in the map, or negative for a pixel of zeros. All threads of the block take part, of which there are THREADS.
template <int THREADS, class T, class Offset>
__device__ __forceinline__ void load_pixels(T* rows, int stride, int width, const Map<T>& map, int count, bool tanh,
                                            const Offset& offset) {
  const auto put = [&](int i, int c, const Quad<T>& quad) {
    store_quad(rows + i * stride + c, tanh ? tanh_of(quad) : quad);
  };
  if (kCopies && map.quads && !tanh) {
    each_quad<THREADS, true>(count, width, [&](int i, int c) {
      const auto start = offset(i);
      copy_quad(rows + i * stride + c, map.data + start + c, exists(start) && c < map.channels);
    });
    finish_copies(true);
  } else if (map.quads) {
    each_quad<THREADS, true>(count, width, [&](int i, int c) {
      const auto start = offset(i);
      const bool inside = exists(start) && c < map.channels;
      put(i, c, inside ? fetch_quad(map.data + start + c) : Quad<T>{});
    });
  } else {
    each_quad<THREADS, false>(count, width, [&](int i, int c) {
      const auto start = offset(i);
      Quad<T> quad{};
      T* values = reinterpret_cast<T*>(&quad);
      for (int k = 0; k < 4 && exists(start) && c + k < map.channels; ++k) values[k] = map.data[start + c + k];
      put(i, c, quad);
    });
  }
}

// rows[i][c] = affine(c, (rows[i][c] - mean) / sqrt(variance + eps)) over the channels, in place; what lies behind them
// stays. Four lanes to a pixel, as to a row of a product. All threads of the block take part, in groups of THREADS with rows
// of their own.
template <int THREADS, class T, class Affine>
__device__ __forceinline__ void layer_norm(T* rows, int stride, int channels, int count, float eps, const Affine& affine) {
  const int start = column() / 2;
  for (int first = 0; first < count; first += THREADS / 4) {
    const int i = first + 8 * (warp() % (THREADS / 32)) + row();
    const int end = i < count ? channels : 0;  // lanes without a pixel go along, for the sums
    T* row = rows + i * stride;
    float sum = 0, squares = 0;
    for (int c = start; c < end; c += 4) sum += to_float(row[c]);
    const float mean = row_sum(sum) / channels;
    for (int c = start; c < end; c += 4) squares += (to_float(row[c]) - mean) * (to_float(row[c]) - mean);
    const float scale = rsqrtf(row_sum(squares) / channels + eps);
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

// y[first + c] = rows[i][c] for c < channels <= width at every pixel i < count; with the same of `residual` added, a map
// or nullptr. `quads` is about all three. A pixel whose offset is negative does not
// exist. All threads of the block take part.
template <int THREADS, class T, class Residual, class Offset>
__device__ __forceinline__ void store_pixels(const T* rows, int stride, int width, T* y, Residual residual, bool quads,
                                             int first, int channels, int count, const Offset& offset) {
  constexpr bool kAdds = !std::is_same_v<Residual, std::nullptr_t>;
  if (quads) {
    each_quad<THREADS, true>(count, width, [&](int i, int c) {
      const auto pixel = offset(i), place = pixel + first + c;
      if (!exists(pixel) || c >= channels) return;
      Quad<T> quad = load_quad(rows + i * stride + c);
      if constexpr (kAdds) quad = sum_of(quad, fetch_quad(residual + place));
      write_quad(y + place, quad);
    });
  } else {
    each_quad<THREADS, false>(count, width, [&](int i, int c) {
      const auto pixel = offset(i), place = pixel + first;
      for (int k = c; exists(pixel) && k < c + 4 && k < channels; ++k) {
        float sum = to_float(rows[i * stride + k]);
        if constexpr (kAdds) sum += to_float(residual[place + k]);
        y[place + k] = rounded<T>(sum);
      }
    });
  }
}

}  // namespace ditn::cuda
