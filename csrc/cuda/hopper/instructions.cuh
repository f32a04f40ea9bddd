// SPDX-License-Identifier: Apache-2.0
// The instructions of sm_90a that the Hopper kernels use; the PTX ISA describes them. Places in shared memory are its
// 32-bit addresses. Included with angle brackets, since the tests have a file of this name that spells out what each does.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace ditn::cuda {

__device__ __forceinline__ unsigned shared_address(const void* place) {
  return static_cast<unsigned>(__cvta_generic_to_shared(place));
}

// 64 rows of 64 halves for wgmma, at a multiple of 1024 bytes. Rows of 128 bytes follow each other; of a row the pieces of
// 16 bytes are exchanged: piece p lies at p ^ (row % 8) ("128-byte swizzle"). The descriptor's fields are in units of 16
// bytes: the address, and from bit 32 on the way from eight rows to the next.
__device__ __forceinline__ uint64_t tile_descriptor(unsigned address) {
  return static_cast<uint64_t>(address >> 4) | static_cast<uint64_t>(1) << 16 | static_cast<uint64_t>(1024 >> 4) << 32 |
         static_cast<uint64_t>(1) << 62;
}

// A matrix whose columns of eight halves, pieces of 16 bytes, lie in planes of their own: eight rows one behind the other, the
// next eight at `next_rows` bytes, and the next eight columns at `next_plane` bytes ("no swizzle", K-major). So another row is
// another address, any multiple of 16 bytes.
__device__ __forceinline__ uint64_t planes_descriptor(unsigned address, unsigned next_plane, unsigned next_rows) {
  return static_cast<uint64_t>(address >> 4) | static_cast<uint64_t>(next_plane >> 4) << 16 |
         static_cast<uint64_t>(next_rows >> 4) << 32;
}

// Before the first product, and whenever registers that products use were written by other instructions.
__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" : : : "memory"); }

// After products that are to be computed while the warp does something else, and before it waits for them.
__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" : : : "memory"); }
// For those that were committed before the last ones. Even if they have been waited for, the compiler has to be told so again
// where their sums are used, if that is in the next round of a loop.
__device__ __forceinline__ void wait_for_earlier_products() { asm volatile("wgmma.wait_group.sync.aligned 1;" : : : "memory"); }
__device__ __forceinline__ void wait_for_products() { asm volatile("wgmma.wait_group.sync.aligned 0;" : : : "memory"); }

// Waits for the products that this warp has started.
__device__ __forceinline__ void finish_products() {
  commit_products();
  wait_for_products();
}

#define DITN_8_IN_PTX "%0, %1, %2, %3, %4, %5, %6, %7"
#define DITN_16_IN_PTX DITN_8_IN_PTX ", %8, %9, %10, %11, %12, %13, %14, %15"
#define DITN_24_IN_PTX DITN_16_IN_PTX ", %16, %17, %18, %19, %20, %21, %22, %23"
#define DITN_32_IN_PTX DITN_24_IN_PTX ", %24, %25, %26, %27, %28, %29, %30, %31"
#define DITN_48_IN_PTX \
  DITN_32_IN_PTX ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define DITN_SUM(i) "+f"(sums[i])
#define DITN_4_SUMS(i) DITN_SUM(i), DITN_SUM(i + 1), DITN_SUM(i + 2), DITN_SUM(i + 3)
#define DITN_8_SUMS DITN_4_SUMS(0), DITN_4_SUMS(4)
#define DITN_16_SUMS DITN_8_SUMS, DITN_4_SUMS(8), DITN_4_SUMS(12)
#define DITN_24_SUMS DITN_16_SUMS, DITN_4_SUMS(16), DITN_4_SUMS(20)
#define DITN_32_SUMS DITN_24_SUMS, DITN_4_SUMS(24), DITN_4_SUMS(28)
#define DITN_48_SUMS DITN_32_SUMS, DITN_4_SUMS(32), DITN_4_SUMS(36), DITN_4_SUMS(40), DITN_4_SUMS(44)

// sums [64, n] = a [64, 16] b [n, 16]^T, plus the old sums if `kept`, by a warpgroup; of halves or of bfloat16 (T) with float
// sums. Warp w has the rows 16 w on, in each of them what mma.m16n8k16 gives a lane: sums[4 i ...] are columns 8 i on. b: a
// tile's rows, 16 of their columns; their number n is twice that of a thread's sums. a: registers, laid out as for
// mma.m16n8k16, whose rows are those of the warp's sums. With `TRANSPOSED` b is 16 rows of a tile, and n of their columns.
#define DITN_WGMMA(TYPE, SUMS, ROWS, A, B, KEPT, TRANSPOSED)                                                            \
  asm volatile("{ .reg .pred kept; setp.ne.b32 kept, " KEPT ", 0;\n"                                                     \
               "wgmma.mma_async.sync.aligned.m64n" ROWS "k16.f32." TYPE "." TYPE " {" DITN_##SUMS##_IN_PTX "}, {" A "}, " B  \
               ", kept, 1, 1, " TRANSPOSED "; }"                                                                         \
               : DITN_##SUMS##_SUMS                                                                                      \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<unsigned>(kept)))
#define DITN_MULTIPLY(NAME, SUMS, ROWS, A, B, KEPT, TRANSPOSED)                                                           \
  template <class T>                                                                                                    \
  __device__ __forceinline__ void NAME(float (&sums)[SUMS], const unsigned (&a)[4], uint64_t b, bool kept) {             \
    if constexpr (std::is_same_v<T, __half>) {                                                                          \
      DITN_WGMMA("f16", SUMS, ROWS, A, B, KEPT, TRANSPOSED);                                                             \
    } else {                                                                                                            \
      DITN_WGMMA("bf16", SUMS, ROWS, A, B, KEPT, TRANSPOSED);                                                            \
    }                                                                                                                   \
  }

DITN_MULTIPLY(multiply_tile, 32, "64", "%32, %33, %34, %35", "%36", "%37", "0")
DITN_MULTIPLY(multiply_columns, 16, "32", "%16, %17, %18, %19", "%20", "%21", "1")
DITN_MULTIPLY(multiply_columns, 32, "64", "%32, %33, %34, %35", "%36", "%37", "1")

#undef DITN_MULTIPLY
#undef DITN_WGMMA

// The same with a from a tile: 16 columns of its rows or, if COLUMNS, the transpose of 16 of its rows.
#define DITN_WGMMA(TYPE, SUMS, ROWS, A, B, KEPT, TRANSPOSED)                                                            \
  asm volatile("{ .reg .pred kept; setp.ne.b32 kept, " KEPT ", 0;\n"                                                     \
               "wgmma.mma_async.sync.aligned.m64n" ROWS "k16.f32." TYPE "." TYPE " {" DITN_##SUMS##_IN_PTX "}, " A ", " B    \
               ", kept, 1, 1, " TRANSPOSED ", 0; }"                                                                      \
               : DITN_##SUMS##_SUMS                                                                                      \
               : "l"(a), "l"(b), "r"(static_cast<unsigned>(kept)), "n"(static_cast<int>(COLUMNS)))
#define DITN_MULTIPLY_TILE(SUMS, ROWS, A, B, KEPT, TRANSPOSED)                                                            \
  template <class T, bool COLUMNS>                                                                                      \
  __device__ __forceinline__ void multiply_tile(float (&sums)[SUMS], uint64_t a, uint64_t b, bool kept) {                \
    if constexpr (std::is_same_v<T, __half>) {                                                                          \
      DITN_WGMMA("f16", SUMS, ROWS, A, B, KEPT, TRANSPOSED);                                                             \
    } else {                                                                                                            \
      DITN_WGMMA("bf16", SUMS, ROWS, A, B, KEPT, TRANSPOSED);                                                            \
    }                                                                                                                   \
  }

DITN_MULTIPLY_TILE(8, "16", "%8", "%9", "%10", "%11")
DITN_MULTIPLY_TILE(16, "32", "%16", "%17", "%18", "%19")
DITN_MULTIPLY_TILE(24, "48", "%24", "%25", "%26", "%27")
DITN_MULTIPLY_TILE(32, "64", "%32", "%33", "%34", "%35")
DITN_MULTIPLY_TILE(48, "96", "%48", "%49", "%50", "%51")

#undef DITN_MULTIPLY_TILE
#undef DITN_WGMMA
#undef DITN_48_SUMS
#undef DITN_32_SUMS
#undef DITN_24_SUMS
#undef DITN_16_SUMS
#undef DITN_8_SUMS
#undef DITN_4_SUMS
#undef DITN_SUM
#undef DITN_48_IN_PTX
#undef DITN_32_IN_PTX
#undef DITN_24_IN_PTX
#undef DITN_16_IN_PTX
#undef DITN_8_IN_PTX

// sum [16, 8] += a [16, 16] b [16, 8], or a [16, 8] b [8, 8], of bfloat16 with float sums.
__device__ __forceinline__ void mma_m16n8k16_of_bfloats(float (&sum)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
      : "=f"(sum[0]), "=f"(sum[1]), "=f"(sum[2]), "=f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(sum[0]), "f"(sum[1]), "f"(sum[2]), "f"(sum[3]));
}
__device__ __forceinline__ void mma_m16n8k8_of_bfloats(float (&sum)[4], unsigned a0, unsigned a1, unsigned b) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %8, %9, %10};"
      : "=f"(sum[0]), "=f"(sum[1]), "=f"(sum[2]), "=f"(sum[3])
      : "r"(a0), "r"(a1), "r"(b), "f"(sum[0]), "f"(sum[1]), "f"(sum[2]), "f"(sum[3]));
}

// tanh with an error of 2^-8.
__device__ __forceinline__ __nv_bfloat162 tanh_approx(__nv_bfloat162 x) {
  __nv_bfloat162 y;
  asm("tanh.approx.bf16x2 %0, %1;"
      : "=r"(reinterpret_cast<unsigned&>(y))
      : "r"(reinterpret_cast<const unsigned&>(x)));
  return y;
}

// ldmatrix and stmatrix: lane l gives the address of row l % 8 of matrix l / 8; see ../instructions.cuh.
__device__ __forceinline__ void load_matrices(unsigned (&words)[4], unsigned row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(row)
               : "memory");
}
__device__ __forceinline__ void store_matrices(unsigned row, const unsigned (&words)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};"
               :
               : "r"(row), "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3])
               : "memory");
}
// Of the transposed matrices: what a lane has are elements of the column that is its number divided by four.
__device__ __forceinline__ void store_matrices_trans(unsigned row, const unsigned (&words)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};"
               :
               : "r"(row), "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3])
               : "memory");
}

__device__ __forceinline__ uint4 load_piece(unsigned place) {
  uint4 piece;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(piece.x), "=r"(piece.y), "=r"(piece.z), "=r"(piece.w)
               : "r"(place)
               : "memory");
  return piece;
}
__device__ __forceinline__ uint2 load_half_piece(unsigned place) {
  uint2 words;
  asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(words.x), "=r"(words.y) : "r"(place) : "memory");
  return words;
}
__device__ __forceinline__ void clear_piece(unsigned place) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" : : "r"(place), "r"(0) : "memory");
}
__device__ __forceinline__ void store_piece(unsigned place, const uint4& piece) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};"
               :
               : "r"(place), "r"(piece.x), "r"(piece.y), "r"(piece.z), "r"(piece.w)
               : "memory");
}
__device__ __forceinline__ void store_half_piece(unsigned place, const uint2& words) {
  asm volatile("st.shared.v2.b32 [%0], {%1, %2};" : : "r"(place), "r"(words.x), "r"(words.y) : "memory");
}
__device__ __forceinline__ void store_word(unsigned place, unsigned word) {
  asm volatile("st.shared.b32 [%0], %1;" : : "r"(place), "r"(word) : "memory");
}

// Starts to copy 4, 8 or 16 bytes from global to shared memory, or to write zeros, where nothing `exists`; as start_copy. Only
// where it is `wanted`, without a branch, as with the two below.
template <int BYTES>
__device__ __forceinline__ void start_async_copy(unsigned target, const void* source, bool exists, bool wanted = true) {
#define DITN_START(COPY)                                                                                              \
  asm volatile("{ .reg .pred none, wanted; setp.eq.u32 none, %2, 0; setp.ne.u32 wanted, %3, 0;\n"                     \
               "@wanted " COPY " [%0], [%1], %4, none; }"                                                             \
               :                                                                                                      \
               : "r"(target), "l"(source), "r"(static_cast<unsigned>(exists)), "r"(static_cast<unsigned>(wanted)),    \
                 "n"(BYTES)                                                                                           \
               : "memory")
  if constexpr (BYTES == 16) {
    DITN_START("cp.async.cg.shared.global");
  } else {
    DITN_START("cp.async.ca.shared.global");
  }
#undef DITN_START
}
// Waits for those that this thread has started, which are then as if it had stored what they copied.
__device__ __forceinline__ void wait_for_async_copies() { asm volatile("cp.async.wait_all;" : : : "memory"); }

// Eight bytes of global memory that the kernel does not write, or zeros; and into global memory, where they are wanted.
__device__ __forceinline__ uint2 fetch_words(const void* source, bool wanted) {
  uint2 words;
  asm volatile("{ .reg .pred wanted; setp.ne.u32 wanted, %3, 0; mov.b32 %0, 0; mov.b32 %1, 0;\n"
               "@wanted ld.global.nc.v2.u32 {%0, %1}, [%2]; }"
               : "=&r"(words.x), "=&r"(words.y)
               : "l"(source), "r"(static_cast<unsigned>(wanted)));
  return words;
}
__device__ __forceinline__ void write_words(void* target, const uint2& words, bool wanted) {
  asm volatile("{ .reg .pred wanted; setp.ne.u32 wanted, %3, 0; @wanted st.global.v2.u32 [%0], {%1, %2}; }"
               :
               : "l"(target), "r"(words.x), "r"(words.y), "r"(static_cast<unsigned>(wanted))
               : "memory");
}

// What this thread has stored in shared memory becomes visible to wgmma, once the threads have met.
__device__ __forceinline__ void publish() { asm volatile("fence.proxy.async.shared::cta;" : : : "memory"); }

// Waits until `threads` of the block are at this barrier; 0 is that of __syncthreads.
__device__ __forceinline__ void meet(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" : : "r"(barrier), "r"(threads) : "memory");
}

// Whether all others of `count` arrivals at a counter, which was zero at first, were before this one. What the others did
// before theirs is then done.
__device__ __forceinline__ bool arrives_last(unsigned counter, unsigned count) {
  unsigned before;
  asm volatile("atom.acq_rel.cta.shared::cta.inc.u32 %0, [%1], %2;" : "=r"(before) : "r"(counter), "r"(count - 1) : "memory");
  return before == count - 1;
}

// An mbarrier, 8 bytes, on which one copy at a time is waited for. A block's threads have to meet between this and its use.
__device__ __forceinline__ void prepare_arrival(unsigned arrival) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" : : "r"(arrival) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" : : : "memory");
}
// Starts to copy from global to shared memory, both and `bytes` multiples of 16, when nobody reads or writes there any more.
__device__ __forceinline__ void start_bulk_copy(unsigned target, const void* source, unsigned bytes, unsigned arrival) {
  publish();  // what was read there before goes before
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" : : "r"(arrival), "r"(bytes) : "memory");
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
               :
               : "r"(target), "l"(source), "r"(bytes), "r"(arrival)
               : "memory");
}
// The same of two runs of so many bytes, which come to lie one behind the other.
__device__ __forceinline__ void start_two_bulk_copies(unsigned target, const void* first, const void* second, unsigned bytes,
                                                      unsigned arrival) {
  publish();
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" : : "r"(arrival), "r"(2 * bytes) : "memory");
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%2], %4, [%5];\n"
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%1], [%3], %4, [%5];"
      :
      : "r"(target), "r"(target + bytes), "l"(first), "l"(second), "r"(bytes), "r"(arrival)
      : "memory");
}
// Waits for what was started on it as the `number`-th, counted from 0; the one before must have been waited for.
__device__ __forceinline__ void wait_for_arrival(unsigned arrival, unsigned number) {
  unsigned arrived = 0;
  while (!arrived) {
    asm volatile(
        "{ .reg .pred arrived; mbarrier.try_wait.parity.shared::cta.b64 arrived, [%1], %2; selp.b32 %0, 1, 0, arrived; }"
        : "=r"(arrived)
        : "r"(arrival), "r"(number % 2)
        : "memory");
  }
}

}  // namespace ditn::cuda
