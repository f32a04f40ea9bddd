// SPDX-License-Identifier: Apache-2.0
// Functions of single values.
#pragma once

#include <instructions.cuh>

#include <type_traits>

#include "warp.cuh"

namespace ditn::cuda {

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }

// To the nearest value of T, ties to even.
template <class T>
__device__ __forceinline__ T rounded(float x) {
  if constexpr (sizeof(T) == sizeof(__half)) {
    return __float2half_rn(x);
  } else {
    return x;
  }
}

// Two neighbouring values, which are added and multiplied at once where they are halves.
template <class T>
using Pair = std::conditional_t<sizeof(T) == sizeof(__half), __half2, float2>;

template <class T>
__device__ __forceinline__ Pair<T> pair_of(float first, float second) {
  if constexpr (sizeof(T) == sizeof(__half)) {
    return __floats2half2_rn(first, second);
  } else {
    return make_float2(first, second);
  }
}

__device__ __forceinline__ __half2 pair_of(__half first, __half second) { return __halves2half2(first, second); }
__device__ __forceinline__ float2 pair_of(float first, float second) { return make_float2(first, second); }

// x, or zeros. (The compiler would choose each half by itself.)
__device__ __forceinline__ __half2 pair_if(bool kept, __half2 x) {
  const unsigned bits = kept ? reinterpret_cast<const unsigned&>(x) : 0;
  return reinterpret_cast<const __half2&>(bits);
}
__device__ __forceinline__ float2 pair_if(bool kept, float2 x) { return kept ? x : make_float2(0.0f, 0.0f); }

// At an even place.
template <class T>
__device__ __forceinline__ Pair<T> load_pair(const T* source) {
  return *reinterpret_cast<const Pair<T>*>(source);
}
template <class T>
__device__ __forceinline__ void store_pair(T* target, Pair<T> pair) {
  *reinterpret_cast<Pair<T>*>(target) = pair;
}
template <class T>
__device__ __forceinline__ void store_pair(T* target, float first, float second) {
  store_pair(target, pair_of<T>(first, second));
}

__device__ __forceinline__ __half2 multiply_add(__half2 a, __half2 b, __half2 c) { return __hfma2(a, b, c); }
__device__ __forceinline__ float2 multiply_add(float2 a, float2 b, float2 c) {
  return make_float2(fmaf(a.x, b.x, c.x), fmaf(a.y, b.y, c.y));
}

__device__ __forceinline__ __half2 sum_of(__half2 a, __half2 b) { return __hadd2(a, b); }
__device__ __forceinline__ float2 sum_of(float2 a, float2 b) { return make_float2(a.x + b.x, a.y + b.y); }

__device__ __forceinline__ __half2 multiply(__half2 a, __half2 b) { return __hmul2(a, b); }
__device__ __forceinline__ float2 multiply(float2 a, float2 b) { return make_float2(a.x * b.x, a.y * b.y); }

__device__ __forceinline__ float2 widened(__half2 x) { return __half22float2(x); }
__device__ __forceinline__ float2 widened(float2 x) { return x; }

// tanh as exact as T needs it: of halves by the chip's instruction, whose relative error is 2^-11, or on Volta by those that
// it has, without the branches of tanhf, with an error of 2^-22.
__device__ __forceinline__ float2 tanh_of(float2 x) { return make_float2(tanhf(x.x), tanhf(x.y)); }
__device__ __forceinline__ __half2 tanh_of(__half2 x) {
  if constexpr (!kVolta) return tanh_approx(x);
  const auto single = [](float value) {
    return 1.0f - __fdividef(2.0f, 1.0f + exp2_approx(2.8853900817779268f * value));  // 2 log2(e)
  };
  const float2 wide = __half22float2(x);
  return __floats2half2_rn(single(wide.x), single(wide.y));
}

// 2^x, as exact as T needs it.
template <class T>
__device__ __forceinline__ float power_of_two(float x) {
  return sizeof(T) == sizeof(__half) ? exp2_approx(x) : exp2f(x);
}

// x Phi(x), as exact as T needs it. For halves erf(x / sqrt 2) = tanh(0.79788 x + 0.035677 x^3), wrong by 3e-4 at most
// (Hendrycks and Gimpel 2016, arXiv 1606.08415): less than half a unit in the last place. What they round on the way is
// a few units more.
__device__ __forceinline__ float2 gelu(float2 x) {
  constexpr float kHalfRoot = 0.7071067811865476f;
  return make_float2(0.5f * x.x * (1.0f + erff(x.x * kHalfRoot)), 0.5f * x.y * (1.0f + erff(x.y * kHalfRoot)));
}
__device__ __forceinline__ __half2 erf_in_gelu(__half2 x) {
  const auto both = [](float value) { return __float2half2_rn(value); };
  const __half2 slope = __hfma2(__hmul2(x, x), both(0.035677408136300125f), both(0.7978845608028654f));
  return tanh_of(__hmul2(x, slope));
}
__device__ __forceinline__ __half2 gelu(__half2 x) {
  const __half2 half = __hmul2(x, __float2half2_rn(0.5f));
  return __hfma2(half, erf_in_gelu(x), half);
}
__device__ __forceinline__ __half2 twice_gelu(__half2 x) { return __hfma2(x, erf_in_gelu(x), x); }

constexpr float kNormalizeEps = 1e-12f;

// One divided by the length of a row, from a lane's part of its squares.
__device__ __forceinline__ float inverse_length(float squares) {
  return fminf(rsqrtf(row_sum(squares)), 1.0f / kNormalizeEps);
}

// Divides by a multiplication, exactly as long as the number times the divisor is below 2^20.
struct Divisor {
  int value;
  unsigned reciprocal;
  __host__ __device__ explicit Divisor(int value) : value(value), reciprocal(((1u << 20) + value - 1) / value) {}
  __device__ int divide(int number) const { return static_cast<int>(number * reciprocal >> 20); }
};

}  // namespace ditn::cuda
