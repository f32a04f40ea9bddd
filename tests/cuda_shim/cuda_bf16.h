// SPDX-License-Identifier: Apache-2.0
// What the kernels use of CUDA's bfloat16, on the host: the upper 16 bits of a float. Every operation rounds once, to the
// nearest value, ties to even.
#pragma once

#include <cstdint>
#include <cstring>

#include "cuda_runtime.h"

struct __nv_bfloat16 {
  uint16_t bits;
  __nv_bfloat16() = default;
  __nv_bfloat16(float x) {
    uint32_t wide;
    std::memcpy(&wide, &x, sizeof wide);
    bits = static_cast<uint16_t>(x == x ? (wide + 0x7fff + (wide >> 16 & 1)) >> 16 : 0x7fff);
  }
};

struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};

inline float __bfloat162float(__nv_bfloat16 a) { return __uint_as_float(static_cast<unsigned>(a.bits) << 16); }
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 a, __nv_bfloat16 b) { return {a, b}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float a, float b) { return {a, b}; }
inline __nv_bfloat162 __float2bfloat162_rn(float a) { return {a, a}; }
inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 a) { return a.x; }
inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 a) { return a.y; }

// Of a double to a float that a second rounding, to bfloat16, takes for the double: where it is no float, to an odd one.
inline float shim_to_odd(double exact) {
  const float near = static_cast<float>(exact);
  if (near == exact || near != near) return near;
  uint32_t bits;
  std::memcpy(&bits, &near, sizeof bits);
  if (bits & 1) return near;
  return __uint_as_float(std::fabs(near) > std::fabs(exact) ? bits - 1 : bits + 1);
}

inline __nv_bfloat162 shim_bfloats(double first, double second) { return {shim_to_odd(first), shim_to_odd(second)}; }
inline double shim_wide(__nv_bfloat16 a) { return __bfloat162float(a); }

inline __nv_bfloat162 __hadd2(__nv_bfloat162 a, __nv_bfloat162 b) {
  return shim_bfloats(shim_wide(a.x) + shim_wide(b.x), shim_wide(a.y) + shim_wide(b.y));
}
inline __nv_bfloat162 __hmul2(__nv_bfloat162 a, __nv_bfloat162 b) {
  return shim_bfloats(shim_wide(a.x) * shim_wide(b.x), shim_wide(a.y) * shim_wide(b.y));
}
inline __nv_bfloat162 __hfma2(__nv_bfloat162 a, __nv_bfloat162 b, __nv_bfloat162 c) {
  return shim_bfloats(shim_wide(a.x) * shim_wide(b.x) + shim_wide(c.x), shim_wide(a.y) * shim_wide(b.y) + shim_wide(c.y));
}
