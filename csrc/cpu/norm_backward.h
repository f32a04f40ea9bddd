// SPDX-License-Identifier: Apache-2.0
// The gradient of a norm's input.
#pragma once

#include "norm.h"

namespace ditn::DITN_LEVEL {

// du, the gradient of u = norm(row), becomes that of row; `scale` is what normalize() returned. Both are zero behind the
// last channel before.
DITN_INLINE void normalize_backward(const float* u, const Rows& rows, Norm norm, float scale, float* du) {
  if (norm == Norm::kTanh) {
    for (int j = 0; j < rows.stride; j += kLanes) {
      const Vec v = load(u + j);
      store(du + j, load(du + j) * (splat(1.0f) - v * v));
    }
  } else if (norm == Norm::kLayerNorm) {
    const float count = static_cast<float>(rows.channels);
    Vec gradient = splat(0.0f), along = gradient;
    for (int j = 0; j < rows.stride; j += kLanes) {
      gradient = gradient + load(du + j);
      along = fma(load(du + j), load(u + j), along);
    }
    const Vec mean = splat(sum(gradient) / count), mean_along = splat(sum(along) / count);
    for (int j = 0; j < rows.stride; j += kLanes) {
      store(du + j, splat(scale) * (load(du + j) - mean - load(u + j) * mean_along));
    }
  }
}

}  // namespace ditn::DITN_LEVEL
