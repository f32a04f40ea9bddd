// SPDX-License-Identifier: Apache-2.0
// exp, tanh, erf and gelu of a vector. NaN stays NaN; infinities give the limits, but gelu(-infinity) is NaN, as in PyTorch.
//
// Largest errors, held by tests/kernels/test_native.py over the whole range: exp 3 ulp, tanh 6 ulp, erf 6 ulp.
// The rational functions are this project's own fits (Lawson iteration on the relative error).
#pragma once

#include "vec.h"

namespace ditn::DITN_LEVEL {

// c[0] + x c[1] + x^2 c[2] + ...
template <int kTerms>
DITN_INLINE Vec polynomial(Vec x, const float (&c)[kTerms]) {
  Vec y = splat(c[kTerms - 1]);
#pragma GCC unroll 8
  for (int i = kTerms - 2; i >= 0; --i) y = fma(y, x, splat(c[i]));
  return y;
}

DITN_INLINE Vec clamp(Vec v, float low, float high) { return min(splat(high), max(splat(low), v)); }

// 2^n e^r with |r| <= ln(2) / 2; ln 2 in two parts, so that r keeps all its bits.
DITN_INLINE Vec exp(Vec x) {
  constexpr float kTaylor[] = {1.0f, 1.0f, 0.5f, 1.0f / 6, 4.16649966e-2f, 8.33304506e-3f, 1.39337312e-3f};
  x = clamp(x, -104.0f, 89.0f);  // below: 0, above: infinity
  const Vec n = round(x * splat(1.44269504f));
  Vec r = fma(n, splat(-0.693145752f), x);
  r = fma(n, splat(-1.42860677e-6f), r);
  return times_power_of_two(polynomial(r, kTaylor), n);
}

// x P(x^2) / Q(x^2), which is 1 within half a unit at 9.02. Fit: 2.1e-8.
DITN_INLINE Vec tanh(Vec x) {
  constexpr float kP[] = {1.0f, 0.133796647f, 3.49396957e-3f, 2.05823835e-5f, 1.33175275e-8f};
  constexpr float kQ[] = {1.0f, 0.467129797f, 2.58708280e-2f, 3.28298513e-4f, 7.76139075e-7f};
  x = clamp(x, -9.02f, 9.02f);
  const Vec s = x * x;
  return x * polynomial(s, kP) / polynomial(s, kQ);
}

// x P(x^2) / Q(x^2), which is 1 within half a unit at 3.93. Fit: 1.9e-8.
constexpr float kErfP[] = {1.12837911f, 0.190771714f, 5.27884327e-2f, 3.77902295e-3f, 2.84784648e-4f, 2.04192293e-6f};
constexpr float kErfQ[] = {1.0f, 0.502399743f, 0.114252284f, 1.49962679e-2f, 1.16505066e-3f, 3.80023230e-5f};

DITN_INLINE Vec erf(Vec x) {
  x = clamp(x, -3.93f, 3.93f);
  const Vec s = x * x;
  return x * polynomial(s, kErfP) / polynomial(s, kErfQ);
}

// x Phi(x), Phi the normal distribution: x (1 + erf(x / sqrt(2))) / 2 with both constants put into erf's coefficients.
DITN_INLINE Vec gelu(Vec x) {
  constexpr float kHalf = 0.353553391f;  // 1 / (2 sqrt(2))
  constexpr float kP[] = {kHalf * kErfP[0],     kHalf * kErfP[1] / 2,  kHalf * kErfP[2] / 4,
                          kHalf * kErfP[3] / 8, kHalf * kErfP[4] / 16, kHalf * kErfP[5] / 32};
  constexpr float kQ[] = {kErfQ[0],     kErfQ[1] / 2,  kErfQ[2] / 4,
                          kErfQ[3] / 8, kErfQ[4] / 16, kErfQ[5] / 32};
  const Vec bounded = clamp(x, -5.5578594f, 5.5578594f);
  const Vec s = bounded * bounded;
  // At the lower bound the sum rounds to -6e-8, which a far negative x would multiply. (max() gives its second operand if
  // that is NaN.)
  return x * max(splat(0.0f), bounded * polynomial(s, kP) / polynomial(s, kQ) + splat(0.5f));
}

}  // namespace ditn::DITN_LEVEL
