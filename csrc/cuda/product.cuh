// SPDX-License-Identifier: Apache-2.0
// Products of matrices by one warp: sums [16, 8 n] += a [16, depth] b [8 n, depth]^T, in float. Halves are multiplied by
// tensor cores, floats by fused multiply-adds; either way a lane holds the same sums, those of mma.m16n8k16.
#pragma once

#include <instructions.cuh>

#include "launch.cuh"

namespace ditn::cuda {

// A factor is a matrix of (outer, depth): outer is a row of a, or a column of the result for b. Rows and columns of halves
// in shared memory start at multiples of 16 bytes, and are there, finite, up to multiples of 16 of outer and depth.
template <class T>
struct Rows {  // element (outer, depth) is data[outer * stride + depth]
  using Value = T;
  const T* data;
  int stride;
  __device__ T at(int outer, int depth) const { return data[outer * stride + depth]; }
};

template <class T>
struct Columns {  // element (outer, depth) is data[depth * stride + outer]
  using Value = T;
  const T* data;
  int stride;
  __device__ T at(int outer, int depth) const { return data[depth * stride + outer]; }
};

enum Side { kLeft, kRight };

// A weight [inputs, outputs] in global memory, its outputs the outer axis. Halves are packed (pack.cuh): tiles of 16
// outputs by 16 inputs as a warp's Fragment for one side of a product, zeros behind the weight's end. Floats are as they were given, and what
// lies behind the last output is the last again, whose results nobody reads. `layer` is the way to the next layer's weight.
template <class T, Side SIDE = kRight>
struct Weight {
  using Value = T;
  const T* data;
  int stride;  // of packed halves: tiles along the inputs
  int outputs;
  int64_t layer;
  __device__ float at(int outer, int depth) const {
    return data[static_cast<int64_t>(depth) * stride + (outer < outputs ? outer : outputs - 1)];
  }
  __host__ __device__ Weight of_layer(int64_t i) const { return {data + i * layer, stride, outputs, layer}; }
  // What is left behind the first `inputs`, a multiple of 16.
  __device__ Weight from_input(int inputs) const {
    const int64_t skipped = sizeof(T) == sizeof(__half) ? inputs * 16 : static_cast<int64_t>(inputs) * stride;
    return {data + skipped, stride, outputs, layer};
  }
};

__device__ __forceinline__ int lane() { return threadIdx.x % 32; }
__device__ __forceinline__ int warp() { return threadIdx.x / 32; }

// Where a lane's sums [n][4] belong: rows row() and row() + 8, columns 8 n + column() and the next.
__device__ __forceinline__ int row() { return lane() / 4; }
__device__ __forceinline__ int column() { return 2 * (lane() % 4); }

// A tile of 16 outer by 16 depth: four blocks of 8 by 8, of which word i holds (row(), column()) and the next along depth.
// Of a left factor the words go first along outer, as a factor a wants them; of a right one first along depth: words 0 and
// 1 are the factor b of eight columns, 2 and 3 that of the next eight.
struct Fragment {
  unsigned words[4];
};

// Where block i of a fragment lies in its tile.
template <Side SIDE>
__device__ __forceinline__ int outer_of(int i) {
  return SIDE == kLeft ? i % 2 * 8 : i / 2 * 8;
}
template <Side SIDE>
__device__ __forceinline__ int depth_of(int i) {
  return SIDE == kLeft ? i / 2 * 8 : i % 2 * 8;
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 750
template <Side SIDE, class Factor>
__device__ __forceinline__ Fragment load(const Factor& factor, int outer, int depth) {
  Fragment found;
  for (int i = 0; i < 4; ++i) {
    const int o = outer + outer_of<SIDE>(i) + row(), d = depth + depth_of<SIDE>(i) + column();
    const __half2 pair = __halves2half2(factor.at(o, d), factor.at(o, d + 1));
    found.words[i] = reinterpret_cast<const unsigned&>(pair);
  }
  return found;
}
#else
template <Side SIDE>
__device__ __forceinline__ Fragment load(const Rows<__half>& factor, int outer, int depth) {
  Fragment found;
  const int o = outer + outer_of<SIDE>(lane() / 8) + lane() % 8, d = depth + depth_of<SIDE>(lane() / 8);
  ldmatrix_x4(found.words, factor.data + o * factor.stride + d);
  return found;
}

template <Side SIDE>
__device__ __forceinline__ Fragment load(const Columns<__half>& factor, int outer, int depth) {
  Fragment found;
  const int o = outer + outer_of<SIDE>(lane() / 8), d = depth + depth_of<SIDE>(lane() / 8) + lane() % 8;
  ldmatrix_x4_trans(found.words, factor.data + d * factor.stride + o);
  return found;
}
#endif

template <Side SIDE>
__device__ __forceinline__ Fragment load(const Weight<__half, SIDE>& weight, int outer, int depth) {
  const uint4* tiles = reinterpret_cast<const uint4*>(weight.data) + static_cast<int64_t>(outer / 16 * weight.stride * 32 + lane());
  const uint4 words = __ldg(tiles + depth / 16 * 32);
  return {{words.x, words.y, words.z, words.w}};
}

// sum [16, 8] += a b^T for one fragment a and eight columns b, both of depth 16.
__device__ __forceinline__ void multiply(float (&sum)[4], const Fragment& a, unsigned b0, unsigned b1) {
#if __CUDA_ARCH__ >= 800
  mma_m16n8k16(sum, a.words, b0, b1);
#elif __CUDA_ARCH__ >= 750
  mma_m16n8k8(sum, a.words[0], a.words[1], b0);
  mma_m16n8k8(sum, a.words[2], a.words[3], b1);
#else
  // Volta's tensor cores take other fragments, of quarter warps; what moving the words there and back would save over
  // fused multiply-adds is little.
  for (int quarter = 0; quarter < 4; ++quarter) {
    for (int half = 0; half < 2; ++half) {
      const unsigned b = half ? b1 : b0;
      const auto word = [](unsigned value, int from) {
        const unsigned found = __shfl_sync(0xffffffff, value, from);
        return __half22float2(reinterpret_cast<const __half2&>(found));
      };
      const float2 upper = word(a.words[2 * half], lane() / 4 * 4 + quarter);
      const float2 lower = word(a.words[2 * half + 1], lane() / 4 * 4 + quarter);
      const float2 left = word(b, 4 * column() + quarter), right = word(b, 4 * (column() + 1) + quarter);
      sum[0] += upper.x * left.x + upper.y * left.y;
      sum[1] += upper.x * right.x + upper.y * right.y;
      sum[2] += lower.x * left.x + lower.y * left.y;
      sum[3] += lower.x * right.x + lower.y * right.y;
    }
  }
#endif
}

// sums += a b^T for the 16 ROWS rows from a_outer on and the 8 TILES columns from b_outer on.
template <int ROWS, int TILES, class A, class B>
__device__ __forceinline__ void product(float (&sums)[ROWS][TILES][4], const A& a, int a_outer, const B& b, int b_outer,
                                        int depth) {
  if constexpr (sizeof(typename A::Value) == sizeof(__half)) {
    static_assert(TILES % 2 == 0);
    // More, and the compiler loads more weights in advance than there are registers.
#pragma unroll 4
    for (int d = 0; d < depth; d += 16) {
      Fragment left[ROWS];
#pragma unroll
      for (int r = 0; r < ROWS; ++r) left[r] = load<kLeft>(a, a_outer + 16 * r, d);
#pragma unroll
      for (int n = 0; n < TILES; n += 2) {
        const Fragment right = load<kRight>(b, b_outer + 8 * n, d);
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
          multiply(sums[r][n], left[r], right.words[0], right.words[1]);
          multiply(sums[r][n + 1], left[r], right.words[2], right.words[3]);
        }
      }
    }
  } else {
    for (int d = 0; d < depth; ++d) {
      float left[ROWS][2];
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
        for (int i = 0; i < 2; ++i) left[r][i] = a.at(a_outer + 16 * r + 8 * i + row(), d);
      }
#pragma unroll
      for (int n = 0; n < TILES; ++n) {
        const int o = b_outer + 8 * n + column();
        const float right[2] = {b.at(o, d), b.at(o + 1, d)};
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
          for (int i = 0; i < 4; ++i) sums[r][n][i] += left[r][i / 2] * right[i % 2];
        }
      }
    }
  }
}

template <int TILES, class A, class B>
__device__ __forceinline__ void product(float (&sums)[TILES][4], const A& a, int a_outer, const B& b, int b_outer, int depth) {
  product(reinterpret_cast<float(&)[1][TILES][4]>(sums), a, a_outer, b, b_outer, depth);
}

}  // namespace ditn::cuda
