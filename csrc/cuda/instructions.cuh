// SPDX-License-Identifier: Apache-2.0
// The instructions that C++ has no name for; the PTX ISA describes them. Included with angle brackets, because the tests
// run the kernels without a GPU and have a file of this name that spells out what each of these does.
#pragma once

#include <cuda_fp16.h>

namespace ditn::cuda {

// The value, which the compiler does not know to be one that it had before. So it reads it where it is used, instead of
// keeping it, and what follows from it, in registers.
__device__ __forceinline__ int read_again(int value) {
  asm volatile("" : "+r"(value));
  return value;
}
template <class T>
__device__ __forceinline__ T* read_again(T* place) {
  asm volatile("" : "+l"(place));
  return place;
}

// Four 8x8 matrices of halves from shared memory. Lane l gives the address of row l % 8 of matrix l / 8 and gets, in
// word i, the elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4 of matrix i. Aligned to 16 bytes.
__device__ __forceinline__ void ldmatrix_x4(unsigned (&words)[4], const __half* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))
               : "memory");
}

// The same of the transposed matrices: the elements 2 (l % 4) and 2 (l % 4) + 1 of column l / 4.
__device__ __forceinline__ void ldmatrix_x4_trans(unsigned (&words)[4], const __half* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))
               : "memory");
}

// Starts to copy BYTES, 4, 8 or 16, from global to shared memory, both aligned to that; or to write zeros, where nothing
// `exists` and `source` may be anything. From sm_80 on.
template <int BYTES>
__device__ __forceinline__ void start_copy(void* target, const void* source, bool exists) {
  asm volatile("{ .reg .pred none; setp.eq.u32 none, %2, 0; cp.async.ca.shared.global [%0], [%1], %3, none; }"
               :
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(target))), "l"(source), "r"(static_cast<unsigned>(exists)),
                 "n"(BYTES)
               : "memory");
}

// Waits for the copies that this thread started. Other threads see them after the next barrier.
__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_all;" : : : "memory"); }

// sums [8, 8] += a [8, 4] b [4, 8], halves with float sums, in each quarter of the warp: lanes 4 q to 4 q + 3 and the same
// plus 16. Lane l has row l % 4 of a and column l % 4 of b, plus 4 from lane 16 on. For sm_70; later chips emulate it.
__device__ __forceinline__ void mma_m8n8k4(float (&sums)[8], unsigned a0, unsigned a1, unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3, %4, %5, %6, %7}, {%8, %9}, {%10, %11}, {%0, %1, %2, %3, %4, %5, %6, %7};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]), "+f"(sums[4]), "+f"(sums[5]), "+f"(sums[6]), "+f"(sums[7])
      : "r"(a0), "r"(a1), "r"(b0), "r"(b1));
}

// sum [16, 8] += a [16, 8] b [8, 8], halves with float sums. From sm_75 on. The old sums are operands of their own, since they
// are often the same for several products, or zero.
__device__ __forceinline__ void mma_m16n8k8(float (&sum)[4], unsigned a0, unsigned a1, unsigned b) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %8, %9, %10};"
      : "=f"(sum[0]), "=f"(sum[1]), "=f"(sum[2]), "=f"(sum[3])
      : "r"(a0), "r"(a1), "r"(b), "f"(sum[0]), "f"(sum[1]), "f"(sum[2]), "f"(sum[3]));
}

// sum [16, 8] += a [16, 16] b [16, 8], halves with float sums. From sm_80 on.
__device__ __forceinline__ void mma_m16n8k16(float (&sum)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
      : "=f"(sum[0]), "=f"(sum[1]), "=f"(sum[2]), "=f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(sum[0]), "f"(sum[1]), "f"(sum[2]), "f"(sum[3]));
}

// The same with sums of halves: word 0 has row l / 4 of lane l, columns 2 (l % 4) and the next, and word 1 the row 8 below.
__device__ __forceinline__ void mma_m16n8k8(unsigned (&sum)[2], unsigned a0, unsigned a1, unsigned b) {
  asm("mma.sync.aligned.m16n8k8.row.col.f16.f16.f16.f16 {%0, %1}, {%2, %3}, {%4}, {%5, %6};"
      : "=r"(sum[0]), "=r"(sum[1])
      : "r"(a0), "r"(a1), "r"(b), "r"(sum[0]), "r"(sum[1]));
}

__device__ __forceinline__ void mma_m16n8k16(unsigned (&sum)[2], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%0, %1}, {%2, %3, %4, %5}, {%6, %7}, {%8, %9};"
      : "=r"(sum[0]), "=r"(sum[1])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(sum[0]), "r"(sum[1]));
}

// 2^x with a relative error of 2^-22; what would be subnormal is 0.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// tanh with a relative error of 2^-11. From sm_75 on.
__device__ __forceinline__ float tanh_approx(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ __half2 tanh_approx(__half2 x) {
  __half2 y;
  asm("tanh.approx.f16x2 %0, %1;"
      : "=r"(reinterpret_cast<unsigned&>(y))
      : "r"(reinterpret_cast<const unsigned&>(x)));
  return y;
}

}  // namespace ditn::cuda
