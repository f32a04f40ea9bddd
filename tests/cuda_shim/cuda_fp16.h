// SPDX-License-Identifier: Apache-2.0
// What the kernels use of CUDA's halves, on the host: every operation rounds once, to the nearest value, ties to even.
#pragma once

#include "cuda_runtime.h"

struct __half {
  _Float16 value;
  __half() = default;
  __half(float x) : value(static_cast<_Float16>(x)) {}
};

struct alignas(4) __half2 {
  __half x, y;
};

inline float __half2float(__half a) { return static_cast<float>(a.value); }
inline __half __float2half_rn(float a) { return __half(a); }
inline __half2 __halves2half2(__half a, __half b) { return {a, b}; }
inline __half2 __half2half2(__half a) { return {a, a}; }
inline __half2 __floats2half2_rn(float a, float b) { return {__half(a), __half(b)}; }
inline __half2 __float2half2_rn(float a) { return {__half(a), __half(a)}; }
inline float2 __half22float2(__half2 a) { return {__half2float(a.x), __half2float(a.y)}; }
inline __half __low2half(__half2 a) { return a.x; }
inline __half __high2half(__half2 a) { return a.y; }

// In double, where sums and products of two halves are exact, and a fused sum is but for a rounding far below a half's.
template <class Operation>
__half2 shim_pairwise(__half2 a, __half2 b, Operation operation) {
  const auto wide = [](__half v) { return static_cast<double>(v.value); };
  __half2 result;
  result.x.value = static_cast<_Float16>(operation(wide(a.x), wide(b.x)));
  result.y.value = static_cast<_Float16>(operation(wide(a.y), wide(b.y)));
  return result;
}

inline __half2 __hadd2(__half2 a, __half2 b) { return shim_pairwise(a, b, [](double x, double y) { return x + y; }); }
inline __half2 __hmul2(__half2 a, __half2 b) { return shim_pairwise(a, b, [](double x, double y) { return x * y; }); }
inline __half2 __hfma2(__half2 a, __half2 b, __half2 c) {
  __half2 result;
  const auto fused = [](__half x, __half y, __half z) { return static_cast<double>(x.value) * y.value + z.value; };
  result.x.value = static_cast<_Float16>(fused(a.x, b.x, c.x));
  result.y.value = static_cast<_Float16>(fused(a.y, b.y, c.y));
  return result;
}
