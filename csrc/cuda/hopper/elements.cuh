// SPDX-License-Identifier: Apache-2.0
// The two types T that these kernels compute in, __half and __nv_bfloat16, as far as they differ: pairs of neighbouring values
// in words of 32 bits, and the sums of products with bands.
#pragma once

#include <hopper/instructions.cuh>

#include "../math.cuh"

namespace ditn::cuda {

__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

namespace hopper {

template <class T>
struct Words;

template <>
struct Words<__half> {
  static constexpr unsigned kOne = 0x3c00;

  __device__ static unsigned bits(__half2 pair) { return reinterpret_cast<const unsigned&>(pair); }
  __device__ static __half2 pair(unsigned bits) { return reinterpret_cast<const __half2&>(bits); }
  __device__ static unsigned of(__half first, __half second) { return bits(__halves2half2(first, second)); }
  __device__ static __half first(unsigned word) { return __low2half(pair(word)); }
  __device__ static __half second(unsigned word) { return __high2half(pair(word)); }

  __device__ static unsigned rounded(float first, float second) { return bits(__floats2half2_rn(first, second)); }
  __device__ static float2 widened(unsigned word) { return __half22float2(pair(word)); }
  __device__ static unsigned sum(unsigned a, unsigned b) { return bits(__hadd2(pair(a), pair(b))); }
  __device__ static unsigned product(unsigned a, unsigned b) { return bits(__hmul2(pair(a), pair(b))); }
  __device__ static unsigned tanh(unsigned x) { return bits(tanh_approx(pair(x))); }
  __device__ static unsigned twice_gelu(unsigned x) { return bits(cuda::twice_gelu(pair(x))); }
};

template <>
struct Words<__nv_bfloat16> {
  static constexpr unsigned kOne = 0x3f80;

  __device__ static unsigned bits(__nv_bfloat162 pair) { return reinterpret_cast<const unsigned&>(pair); }
  __device__ static __nv_bfloat162 pair(unsigned bits) { return reinterpret_cast<const __nv_bfloat162&>(bits); }
  __device__ static unsigned of(__nv_bfloat16 first, __nv_bfloat16 second) { return bits(__halves2bfloat162(first, second)); }
  __device__ static __nv_bfloat16 first(unsigned word) { return __low2bfloat16(pair(word)); }
  __device__ static __nv_bfloat16 second(unsigned word) { return __high2bfloat16(pair(word)); }

  __device__ static unsigned rounded(float first, float second) { return bits(__floats2bfloat162_rn(first, second)); }
  // Their bits are the upper ones of floats. (As a pair the compiler would keep the two in registers of their own.)
  __device__ static float2 widened(unsigned word) {
    return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000));
  }
  __device__ static unsigned sum(unsigned a, unsigned b) { return bits(__hadd2(pair(a), pair(b))); }
  __device__ static unsigned product(unsigned a, unsigned b) { return bits(__hmul2(pair(a), pair(b))); }
  __device__ static unsigned tanh(unsigned x) { return bits(tanh_approx(pair(x))); }
  // As ../math.cuh has it for halves.
  __device__ static unsigned twice_gelu(unsigned word) {
    const auto both = [](float value) { return __float2bfloat162_rn(value); };
    const __nv_bfloat162 x = pair(word);
    const __nv_bfloat162 slope = __hfma2(__hmul2(x, x), both(0.035677408136300125f), both(0.7978845608028654f));
    return bits(__hfma2(x, tanh_approx(__hmul2(x, slope)), x));
  }
};

// Sums [16, 8] of products with bands, see ../bands.cuh. `a`, `b`: laid out as for mma.m16n8k16 or m16n8k8. Rounded they are two
// words, this lane's of row row() and of the row 8 below.
template <class T>
class BandSums;

// Halves, which tensor cores round at most after every four products.
template <>
class BandSums<__half> {
 public:
  BandSums() = default;
  // They start with a word each.
  __device__ BandSums(unsigned upper, unsigned lower) : words_{upper, lower} {}
  __device__ void add(const unsigned (&a)[4], unsigned b0, unsigned b1) { mma_m16n8k16(words_, a, b0, b1); }
  __device__ void add(unsigned a0, unsigned a1, unsigned b) { mma_m16n8k8(words_, a0, a1, b); }
  __device__ void round(unsigned (&words)[2]) const { words[0] = words_[0], words[1] = words_[1]; }

 private:
  unsigned words_[2];
};

// Floats: there are no sums of bfloat16.
template <>
class BandSums<__nv_bfloat16> {
 public:
  BandSums() = default;
  __device__ BandSums(unsigned upper, unsigned lower) {
    const float2 wide[2] = {Words<__nv_bfloat16>::widened(upper), Words<__nv_bfloat16>::widened(lower)};
#pragma unroll
    for (int i = 0; i < 4; ++i) sums_[i] = i % 2 ? wide[i / 2].y : wide[i / 2].x;
  }
  __device__ void add(const unsigned (&a)[4], unsigned b0, unsigned b1) { mma_m16n8k16_of_bfloats(sums_, a, b0, b1); }
  __device__ void add(unsigned a0, unsigned a1, unsigned b) { mma_m16n8k8_of_bfloats(sums_, a0, a1, b); }
  __device__ void round(unsigned (&words)[2]) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) words[i] = Words<__nv_bfloat16>::rounded(sums_[2 * i], sums_[2 * i + 1]);
  }

 private:
  float sums_[4];
};

}  // namespace hopper

}  // namespace ditn::cuda
