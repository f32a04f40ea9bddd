// SPDX-License-Identifier: Apache-2.0
// Products of matrices by one warp: sums [16, 8 n] += a [16, depth] b [8 n, depth]^T, in float. Halves are multiplied by
// tensor cores, floats by fused multiply-adds; either way a lane holds the same sums (warp.cuh).
#pragma once

#include <instructions.cuh>

#include "launch.cuh"
#include "warp.cuh"

namespace ditn::cuda {

// A factor is a matrix of (outer, depth): outer is a row of a, or a column of the result for b. Rows and columns of halves
// in shared memory start at multiples of 16 bytes, and are there, finite, up to multiples of 16 of outer and depth.
template <class T>
struct Rows {  // element (outer, depth) is data[outer * stride + depth]
  using Value = T;
  const T* data;
  int stride;
  __device__ const T* line(int outer) const { return data + outer * stride; }
  __device__ T at(int outer, int depth) const { return line(outer)[depth]; }
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
// outputs by 16 inputs as a warp's Fragment for one side of a product, zeros behind the weight's end. Floats are as they were
// given, and what lies behind the last output is the last again, whose results nobody reads. `layer` is the way to the next
// layer's weight.
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

// A tile of 16 outer by 16 depth: four blocks of 8 by 8, of which word i holds (row(), column()) and the next along depth.
// Of a left factor the words go first along outer, as a factor a wants them; of a right one first along depth: words 0 and
// 1 are the factor b of eight columns, 2 and 3 that of the next eight. On Volta a lane has all of one outer's depth, which
// another lane has as well.
struct alignas(16) Fragment {
  unsigned words[kVolta ? 8 : 4];
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

// Which outer of its tile a lane has on Volta: of those that are multiplied in its quarter of the warp, the one that the
// instruction takes from it (rows of a and columns of b are lanes' bits 4, 1, 0), so that the sums are where warp.cuh says.
template <Side SIDE>
__device__ __forceinline__ int volta_outer() {
  return SIDE == kLeft ? bit(1, 3) + bit(4, 2) + bit(3, 1) + bit(0, 0) : bit(4, 3) + bit(1, 2) + bit(2, 1) + bit(0, 0);
}

// Where value i of a lane's eight of a packed tile belongs: to its Fragment or, on Volta, where tiles are matrices
// (outer, depth), to half an outer.
template <Side SIDE>
__device__ __forceinline__ int packed_outer(int i) {
  return kVolta ? lane() / 2 : outer_of<SIDE>(i / 2) + row();
}
template <Side SIDE>
__device__ __forceinline__ int packed_depth(int i) {
  return kVolta ? lane() % 2 * 8 + i : depth_of<SIDE>(i / 2) + column() + i % 2;
}

// Of a factor whose lines are along depth.
template <Side SIDE, class Factor>
__device__ __forceinline__ Fragment load(const Factor& factor, int outer, int depth) {
  Fragment found;
  if constexpr (kVolta) {
    const auto* line = reinterpret_cast<const uint4*>(factor.line(outer + volta_outer<SIDE>()) + depth);
    reinterpret_cast<uint4(&)[2]>(found)[0] = line[0];
    reinterpret_cast<uint4(&)[2]>(found)[1] = line[1];
  } else {
    const int o = outer + outer_of<SIDE>(lane() / 8) + lane() % 8, d = depth + depth_of<SIDE>(lane() / 8);
    ldmatrix_x4(found.words, factor.line(o) + d);
  }
  return found;
}

template <Side SIDE, class T>
__device__ __forceinline__ Fragment load(const Columns<T>& factor, int outer, int depth) {
  Fragment found;
  if constexpr (kVolta) {
    const int o = outer + volta_outer<SIDE>();
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const __half2 pair = __halves2half2(factor.at(o, depth + 2 * i), factor.at(o, depth + 2 * i + 1));
      found.words[i] = reinterpret_cast<const unsigned&>(pair);
    }
  } else {
    const int o = outer + outer_of<SIDE>(lane() / 8), d = depth + depth_of<SIDE>(lane() / 8) + lane() % 8;
    ldmatrix_x4_trans(found.words, factor.data + d * factor.stride + o);
  }
  return found;
}

template <Side SIDE, class T>
__device__ __forceinline__ Fragment load(const Weight<T, SIDE>& weight, int outer, int depth) {
  constexpr int kWords = sizeof(Fragment) / sizeof(uint4);
  const int first = kVolta ? volta_outer<SIDE>() * kWords : lane();
  const uint4* tiles = reinterpret_cast<const uint4*>(weight.data) + static_cast<int64_t>(outer / 16 * weight.stride * 32 + first);
  Fragment found;
#pragma unroll
  for (int i = 0; i < kWords; ++i) reinterpret_cast<uint4(&)[kWords]>(found)[i] = __ldg(tiles + depth / 16 * 32 + i);
  return found;
}

// sums [16, 16] += a b^T, both of depth 16.
__device__ __forceinline__ void multiply(float (&sums)[2][4], const Fragment& a, const Fragment& b) {
#if __CUDA_ARCH__ >= 800
  mma_m16n8k16(sums[0], a.words, b.words[0], b.words[1]);
  mma_m16n8k16(sums[1], a.words, b.words[2], b.words[3]);
#elif __CUDA_ARCH__ >= 750
  mma_m16n8k8(sums[0], a.words[0], a.words[1], b.words[0]);
  mma_m16n8k8(sums[0], a.words[2], a.words[3], b.words[1]);
  mma_m16n8k8(sums[1], a.words[0], a.words[1], b.words[2]);
  mma_m16n8k8(sums[1], a.words[2], a.words[3], b.words[3]);
#else
  for (int i = 0; i < 8; i += 2) {
    mma_m8n8k4(reinterpret_cast<float(&)[8]>(sums), a.words[i], a.words[i + 1], b.words[i], b.words[i + 1]);
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
        for (int r = 0; r < ROWS; ++r) multiply(reinterpret_cast<float(&)[2][4]>(sums[r][n]), left[r], right);
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
