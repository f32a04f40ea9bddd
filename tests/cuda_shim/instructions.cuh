// SPDX-License-Identifier: Apache-2.0
// The instructions of csrc/cuda/instructions.cuh on the host, from the fragment tables of the PTX ISA: which lane holds
// which element of a matrix is said here once more, and not taken from how the kernels use it.
#pragma once

#include <cstdint>
#include <type_traits>
#include <vector>

#include "cuda_bf16.h"
#include "cuda_fp16.h"

namespace ditn::cuda {

namespace fragments {

// The value whose bits these are, of __half or __nv_bfloat16.
template <class T>
float value_of(uint16_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof value);
  if constexpr (std::is_same_v<T, __half>) {
    return __half2float(value);
  } else {
    return __bfloat162float(value);
  }
}
template <class T>
float value_of(unsigned word, int i) {
  return value_of<T>(static_cast<uint16_t>(i ? word >> 16 : word & 0xffff));
}
inline float half_of(unsigned word, int i) { return value_of<__half>(word, i); }

// "Matrix fragments for mma.m16n8k8 / m16n8k16", .f16 A (row), B (col) and .f32 C. groupID is lane / 4, threadID_in_group
// lane % 4. What follows is the inverse of its tables: the lane and the element of its registers that hold an element.
struct Place {
  int lane, i;
};

// Element a_i of a lane is A[row][col]: row = groupID, plus 8 for i = 2, 3, 6, 7; col = 2 threadID_in_group + (i & 1), plus 8
// for i >= 4.
inline Place of_a(int row, int col) { return {row % 8 * 4 + col % 8 / 2, (col % 2) + (row >= 8 ? 2 : 0) + (col >= 8 ? 4 : 0)}; }

// Element b_i of a lane is B[row][col]: row = 2 threadID_in_group + (i & 1), plus 8 for i >= 2; col = groupID.
inline Place of_b(int row, int col) { return {col * 4 + row % 8 / 2, (row % 2) + (row >= 8 ? 2 : 0)}; }

struct Elements {
  float a[8], b[4];
};

// A chip adds 4, 8 or 16 products before it rounds a sum of halves: here the fewest.
inline void round_sum(float& sum, int k, const _Float16&) {
  if (k % 4 == 3) sum = static_cast<_Float16>(sum);
}
inline void round_sum(float&, int, const float&) {}

// c_i of a lane is C[row][col]: row = groupID, plus 8 for i >= 2; col = 2 threadID_in_group + (i & 1). .f16 C is the same, in
// pairs.
template <int DEPTH, class T = __half, class Sum>
void multiply(const char* instruction, Sum (&sum)[4], const unsigned (&a)[DEPTH / 4], const unsigned (&b)[DEPTH / 8]) {
  Elements mine{};
  for (int i = 0; i < DEPTH / 2; ++i) mine.a[i] = value_of<T>(a[i / 2], i % 2);
  for (int i = 0; i < DEPTH / 4; ++i) mine.b[i] = value_of<T>(b[i / 2], i % 2);
  const shim::Operands& all = shim::exchange(instruction, mine);
  const auto of_lane = [&](int lane) { return reinterpret_cast<const Elements*>(all[lane]); };
  for (int i = 0; i < 4; ++i) {
    const int row = shim::lane() / 4 + (i >= 2 ? 8 : 0), col = shim::lane() % 4 * 2 + i % 2;
    float total = sum[i];
    for (int k = 0; k < DEPTH; ++k) {
      const Place left = of_a(row, k), right = of_b(k, col);
      total += of_lane(left.lane)->a[left.i] * of_lane(right.lane)->b[right.i];
      round_sum(total, k, sum[i]);
    }
    sum[i] = static_cast<Sum>(total);
  }
}

// "Matrix fragments for mma.m8n8k4 with .f16": computation q is that of lanes 4 q to 4 q + 3 and 4 q + 16 to 4 q + 19. a_i of a
// lane is A[row][i] (row-major) and b_i is B[i][row] (column-major), where row = lane % 4, plus 4 from lane 16 on. c_i is
// C[X][col], X plus 4 from lane 16 on, with X = (lane & 1) + (i & 2) and col = (i & 4) + (lane & 2) + (i & 1).
inline void multiply_quarters(float (&sums)[8], const unsigned (&a)[2], const unsigned (&b)[2]) {
  struct Given {
    float a[4], b[4];
  } mine;
  for (int i = 0; i < 4; ++i) {
    mine.a[i] = half_of(a[i / 2], i % 2);
    mine.b[i] = half_of(b[i / 2], i % 2);
  }
  const shim::Operands& all = shim::exchange("mma.m8n8k4", mine);
  const int lane = shim::lane(), computation = lane / 4 % 4;
  const auto holder = [&](int line) { return shim::of_lane<Given>(all, 4 * computation + line % 4 + (line >= 4 ? 16 : 0)); };
  for (int i = 0; i < 8; ++i) {
    const int row = (lane & 1) + (i & 2) + (lane >= 16 ? 4 : 0), col = (i & 4) + (lane & 2) + (i & 1);
    const Given left = holder(row), right = holder(col);
    for (int k = 0; k < 4; ++k) sums[i] += left.a[k] * right.b[k];
  }
}

// "ldmatrix": the rows of matrix i are given by lanes 8 i to 8 i + 7; without .trans lane l receives, of matrix i, row l / 4,
// columns 2 (l % 4) and the next; with it, those of the transposed matrix.
inline void load_matrices(unsigned (&words)[4], const __half* row, bool transposed) {
  if (reinterpret_cast<uintptr_t>(row) % 16) shim::fail("ldmatrix: a row is not aligned to 16 bytes");
  struct Row {
    uint16_t elements[8];
  };
  Row mine;
  std::memcpy(&mine, row, sizeof mine);
  const shim::Operands& all = shim::exchange(transposed ? "ldmatrix.trans" : "ldmatrix", mine);
  for (int i = 0; i < 4; ++i) {
    unsigned halves[2];
    for (int h = 0; h < 2; ++h) {
      const int major = shim::lane() / 4, minor = shim::lane() % 4 * 2 + h;
      const int r = transposed ? minor : major, c = transposed ? major : minor;
      halves[h] = shim::of_lane<Row>(all, 8 * i + r).elements[c];
    }
    words[i] = halves[0] | halves[1] << 16;
  }
}

}  // namespace fragments

// Copies that every thread has started. What they are to write is not there before they are waited for.
struct Copy {
  void* target;
  const void* source;  // null: zeros
  int bytes;
};
inline std::vector<Copy> started[1024];

template <int BYTES>
void start_copy(void* target, const void* source, bool exists) {
  const auto misaligned = [](const void* place) { return reinterpret_cast<uintptr_t>(place) % BYTES != 0; };
  if (misaligned(target) || (exists && misaligned(source))) shim::fail("cp.async: a place is not aligned to what is copied");
  started[threadIdx.x].push_back({target, exists ? source : nullptr, BYTES});
}

inline int read_again(int value) { return value; }
template <class T>
T* read_again(T* place) {
  return place;
}

inline void wait_for_copies() {
  for (const Copy& copy : started[threadIdx.x]) {
    if (copy.source) {
      std::memcpy(copy.target, copy.source, copy.bytes);
    } else {
      std::memset(copy.target, 0, copy.bytes);
    }
  }
  started[threadIdx.x].clear();
}

inline void ldmatrix_x4(unsigned (&words)[4], const __half* row) { fragments::load_matrices(words, row, false); }
inline void ldmatrix_x4_trans(unsigned (&words)[4], const __half* row) { fragments::load_matrices(words, row, true); }

inline void mma_m8n8k4(float (&sums)[8], unsigned a0, unsigned a1, unsigned b0, unsigned b1) {
  fragments::multiply_quarters(sums, {a0, a1}, {b0, b1});
}

inline void mma_m16n8k8(float (&sum)[4], unsigned a0, unsigned a1, unsigned b) {
  fragments::multiply<8>("mma.m16n8k8", sum, {a0, a1}, {b});
}

inline void mma_m16n8k16(float (&sum)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  fragments::multiply<16>("mma.m16n8k16", sum, a, {b0, b1});
}

inline void mma_m16n8k8(unsigned (&sum)[2], unsigned a0, unsigned a1, unsigned b) {
  fragments::multiply<8>("mma.m16n8k8.f16", reinterpret_cast<_Float16(&)[4]>(sum), {a0, a1}, {b});
}

inline void mma_m16n8k16(unsigned (&sum)[2], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  fragments::multiply<16>("mma.m16n8k16.f16", reinterpret_cast<_Float16(&)[4]>(sum), a, {b0, b1});
}

inline float exp2_approx(float x) {
  const float y = std::exp2(x);
  return y < 0x1p-126f ? 0 : y;
}

// As wrong as the chip's instructions may be: 2^-11, one way or the other.
inline float tanh_approx(float x) {
  const float y = std::tanh(x);
  return y * (1.0f + (static_cast<int>(x * 4096) % 2 ? 0x1p-11f : -0x1p-11f));
}
inline __half2 tanh_approx(__half2 x) {
  return __floats2half2_rn(std::tanh(__half2float(x.x)), std::tanh(__half2float(x.y)));
}

}  // namespace ditn::cuda
