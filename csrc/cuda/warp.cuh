// SPDX-License-Identifier: Apache-2.0
// The lanes of a warp, and which of a product's sums they hold.
#pragma once

#include <cuda_runtime.h>

namespace ditn::cuda {

// sm_70: tensor cores with other fragments than all later ones, no ldmatrix, no tanh.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 750
constexpr bool kVolta = true;
#else
constexpr bool kVolta = false;
#endif

__device__ __forceinline__ int lane() { return threadIdx.x % 32; }
__device__ __forceinline__ int warp() { return threadIdx.x / 32; }

// A lane's bit, as another one.
__device__ __forceinline__ int bit(int from, int to) { return (lane() >> from & 1) << to; }

// Where a lane's sums [n][4] belong: rows row() and row() + 8, columns 8 n + column() and the next. These are the places of
// mma.m16n8k16. Volta's mma.m8n8k4 can be given rows and columns with which two bits of the lane only change places.
__device__ __forceinline__ int row() { return kVolta ? bit(4, 2) + bit(3, 1) + bit(0, 0) : lane() / 4; }
__device__ __forceinline__ int column() { return kVolta ? bit(1, 2) + bit(2, 1) : 2 * (lane() % 4); }

// Over the four lanes that hold a row.
template <class Operation>
__device__ __forceinline__ float over_row(float x, const Operation& operation) {
  x = operation(x, __shfl_xor_sync(0xffffffff, x, kVolta ? 4 : 1));
  return operation(x, __shfl_xor_sync(0xffffffff, x, 2));
}
__device__ __forceinline__ float row_sum(float x) {
  return over_row(x, [](float a, float b) { return a + b; });
}
__device__ __forceinline__ float row_max(float x) {
  return over_row(x, [](float a, float b) { return fmaxf(a, b); });
}

}  // namespace ditn::cuda
