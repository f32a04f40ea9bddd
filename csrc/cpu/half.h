// SPDX-License-Identifier: Apache-2.0
// bfloat16 and float16 in memory: widened to float on load, rounded to the nearest (ties to even) on store.
#pragma once

#include <cstring>

#include "kernels.h"
#include "vec.h"

namespace ditn::DITN_LEVEL {

// Half: kLanes values of 16 bits.
#if defined(__AVX512F__)

using Half = __m256i;

DITN_INLINE Half load_half(const uint16_t* p, int n) { return _mm256_maskz_loadu_epi16(first(n), p); }
DITN_INLINE void store_half(uint16_t* p, Half v, int n) { _mm256_mask_storeu_epi16(p, first(n), v); }
DITN_INLINE Vec from_float16(Half v) { return _mm512_cvtph_ps(v); }
DITN_INLINE Half to_float16(Vec v) { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
DITN_INLINE Vec from_bfloat16(Half v) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16)); }
#if defined(__AVX512BF16__)
DITN_INLINE Half to_bfloat16(Vec v) { return reinterpret_cast<Half>(_mm512_cvtneps_pbh(v)); }
#else
DITN_INLINE Half to_bfloat16(Vec v) {
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(-1)), 16));
}
#endif

#elif defined(__AVX2__)

using Half = __m128i;

DITN_INLINE Half load_half(const uint16_t* p, int n) {
  uint16_t values[kLanes] = {};
  std::memcpy(values, p, static_cast<size_t>(n) * sizeof(uint16_t));
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(values));
}
DITN_INLINE void store_half(uint16_t* p, Half v, int n) { std::memcpy(p, &v, static_cast<size_t>(n) * sizeof(uint16_t)); }
DITN_INLINE Vec from_float16(Half v) { return _mm256_cvtph_ps(v); }
DITN_INLINE Half to_float16(Vec v) { return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
DITN_INLINE Vec from_bfloat16(Half v) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16)); }
DITN_INLINE Half to_bfloat16(Vec v) {
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  const __m256i high = _mm256_srli_epi32(_mm256_or_si256(rounded, nan), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
}

#elif defined(__aarch64__)

using Half = uint16x4_t;

DITN_INLINE Half load_half(const uint16_t* p, int n) {
  Half v = vdup_n_u16(0);
  for (int i = 0; i < n; ++i) v[i] = p[i];
  return v;
}
DITN_INLINE void store_half(uint16_t* p, Half v, int n) {
  for (int i = 0; i < n; ++i) p[i] = v[i];
}
DITN_INLINE Vec from_float16(Half v) { return vcvt_f32_f16(vreinterpret_f16_u16(v)); }
DITN_INLINE Half to_float16(Vec v) { return vreinterpret_u16_f16(vcvt_f16_f32(v)); }
DITN_INLINE Vec from_bfloat16(Half v) { return vreinterpretq_f32_u32(vshll_n_u16(v, 16)); }
DITN_INLINE Half to_bfloat16(Vec v) {
  const uint32x4_t bits = vreinterpretq_u32_f32(v);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
  return vshrn_n_u32(vorrq_u32(rounded, vmvnq_u32(vceqq_f32(v, v))), 16);
}

#endif

DITN_INLINE float widened(float value) { return value; }
DITN_INLINE float widened(bfloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof(wide));
  return wide;
}

DITN_INLINE Vec load_first(const bfloat16* p, int n) { return from_bfloat16(load_half(&p->bits, n)); }
DITN_INLINE Vec load_first(const float16* p, int n) { return from_float16(load_half(&p->bits, n)); }
DITN_INLINE void store_first(bfloat16* p, Vec v, int n) { store_half(&p->bits, to_bfloat16(v), n); }
DITN_INLINE void store_first(float16* p, Vec v, int n) { store_half(&p->bits, to_float16(v), n); }

}  // namespace ditn::DITN_LEVEL
