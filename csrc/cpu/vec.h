// SPDX-License-Identifier: Apache-2.0
// One vector of floats, as wide as the instruction set this file is compiled for.
//
// Every kernel is compiled once per level (setup.py passes DITN_LEVEL and the -m flags) into its own namespace,
// so that the linker cannot merge a function compiled for a newer chip with one compiled for an older. For the
// same reason kernels use no inline function or template of the C++ library.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define DITN_INLINE static inline __attribute__((always_inline))

namespace ditn::DITN_LEVEL {

// + - * / work on vectors directly (an extension of GCC and Clang).
// max and min return the second operand where either is NaN: written max(bound, v), a clamp passes NaN on.
#if defined(__AVX512F__)

using Vec = __m512;
constexpr int kLanes = 16;
constexpr int kTileRows = 8;  // 8 x 3 accumulators, 3 weights and 1 broadcast: 28 of 32 registers

DITN_INLINE __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1); }
DITN_INLINE Vec load(const float* p) { return _mm512_loadu_ps(p); }
DITN_INLINE void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
DITN_INLINE Vec load_first(const float* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
DITN_INLINE void store_first(float* p, Vec v, int n) { _mm512_mask_storeu_ps(p, first(n), v); }
DITN_INLINE Vec keep_first(Vec v, int n) { return _mm512_maskz_mov_ps(first(n), v); }
DITN_INLINE Vec splat(float s) { return _mm512_set1_ps(s); }
DITN_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
DITN_INLINE Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
DITN_INLINE Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
DITN_INLINE Vec sqrt(Vec v) { return _mm512_sqrt_ps(v); }
DITN_INLINE Vec round(Vec v) { return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
DITN_INLINE Vec times_power_of_two(Vec v, Vec exponent) { return _mm512_scalef_ps(v, exponent); }
DITN_INLINE Vec swap_halves(Vec v) { return _mm512_shuffle_f32x4(v, v, 0x4e); }
DITN_INLINE float first_lane(Vec v) { return _mm512_cvtss_f32(v); }
DITN_INLINE float sum(Vec v) { return _mm512_reduce_add_ps(v); }
DITN_INLINE float maximum(Vec v) { return _mm512_reduce_max_ps(v); }

#elif defined(__AVX2__)

using Vec = __m256;
constexpr int kLanes = 8;
constexpr int kTileRows = 4;  // 4 x 3 accumulators, 3 weights and 1 broadcast: all 16 registers

DITN_INLINE __m256i first(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
DITN_INLINE Vec load(const float* p) { return _mm256_loadu_ps(p); }
DITN_INLINE void store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
DITN_INLINE Vec load_first(const float* p, int n) { return _mm256_maskload_ps(p, first(n)); }
DITN_INLINE void store_first(float* p, Vec v, int n) { _mm256_maskstore_ps(p, first(n), v); }
DITN_INLINE Vec keep_first(Vec v, int n) { return _mm256_and_ps(v, _mm256_castsi256_ps(first(n))); }
DITN_INLINE Vec splat(float s) { return _mm256_set1_ps(s); }
DITN_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
DITN_INLINE Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
DITN_INLINE Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
DITN_INLINE Vec sqrt(Vec v) { return _mm256_sqrt_ps(v); }
DITN_INLINE Vec round(Vec v) { return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// In two factors, because 2^exponent alone overflows or vanishes before v * 2^exponent does.
DITN_INLINE Vec times_power_of_two(Vec v, Vec exponent) {
  const __m256i whole = _mm256_cvtps_epi32(exponent);
  const __m256i half = _mm256_srai_epi32(whole, 1);
  const __m256i rest = _mm256_sub_epi32(whole, half);
  const __m256i bias = _mm256_set1_epi32(127);
  const __m256i a = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
  const __m256i b = _mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23);
  return v * _mm256_castsi256_ps(a) * _mm256_castsi256_ps(b);
}
DITN_INLINE Vec swap_halves(Vec v) { return _mm256_permute2f128_ps(v, v, 1); }
DITN_INLINE float first_lane(Vec v) { return _mm256_cvtss_f32(v); }
DITN_INLINE float sum(Vec v) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}
DITN_INLINE float maximum(Vec v) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_shuffle_ps(m, m, 1)));
}

#elif defined(__aarch64__)

using Vec = float32x4_t;
constexpr int kLanes = 4;
constexpr int kTileRows = 8;

DITN_INLINE Vec load(const float* p) { return vld1q_f32(p); }
DITN_INLINE void store(float* p, Vec v) { vst1q_f32(p, v); }
DITN_INLINE Vec load_first(const float* p, int n) {
  Vec v = vdupq_n_f32(0);
  for (int i = 0; i < n; ++i) v[i] = p[i];
  return v;
}
DITN_INLINE void store_first(float* p, Vec v, int n) {
  for (int i = 0; i < n; ++i) p[i] = v[i];
}
DITN_INLINE Vec keep_first(Vec v, int n) {
  for (int i = n; i < kLanes; ++i) v[i] = 0;
  return v;
}
DITN_INLINE Vec splat(float s) { return vdupq_n_f32(s); }
DITN_INLINE Vec fma(Vec a, Vec b, Vec c) { return vfmaq_f32(c, a, b); }
DITN_INLINE Vec max(Vec a, Vec b) { return vmaxq_f32(a, b); }
DITN_INLINE Vec min(Vec a, Vec b) { return vminq_f32(a, b); }
DITN_INLINE Vec sqrt(Vec v) { return vsqrtq_f32(v); }
DITN_INLINE Vec round(Vec v) { return vrndnq_f32(v); }
DITN_INLINE Vec times_power_of_two(Vec v, Vec exponent) {
  const int32x4_t whole = vcvtq_s32_f32(exponent);
  const int32x4_t half = vshrq_n_s32(whole, 1);
  const int32x4_t rest = vsubq_s32(whole, half);
  const int32x4_t bias = vdupq_n_s32(127);
  const Vec a = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(half, bias), 23));
  const Vec b = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(rest, bias), 23));
  return v * a * b;
}
DITN_INLINE Vec swap_halves(Vec v) { return vextq_f32(v, v, 2); }
DITN_INLINE float first_lane(Vec v) { return vgetq_lane_f32(v, 0); }
DITN_INLINE float sum(Vec v) { return vaddvq_f32(v); }
DITN_INLINE float maximum(Vec v) { return vmaxvq_f32(v); }

#else
#error "csrc/cpu needs AVX2, AVX-512 or NEON"
#endif

constexpr int round_up(int n, int step) { return (n + step - 1) / step * step; }
constexpr int vecs_for(int channels) { return (channels + kLanes - 1) / kLanes; }

}  // namespace ditn::DITN_LEVEL
