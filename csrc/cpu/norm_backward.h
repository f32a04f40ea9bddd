// SPDX-License-Identifier: Apache-2.0
// The gradient of a norm's input.
#pragma once

#include "norm.h"

namespace ditn::DITN_LEVEL {

// du, the gradient of u = norm(row), becomes that of row. All are zero behind the last channel.
DITN_INLINE void normalize_backward(const float* row, const float* u, const Rows& rows, Norm norm, float* du,
                                    float eps = 1e-5f) {
  if (norm == Norm::kTanh) {
    for (int j = 0; j < rows.stride; j += kLanes) {
      const Vec v = load(u + j);
      store(du + j, load(du + j) * (splat(1.0f) - v * v));
    }
  } else if (norm == Norm::kLayerNorm) {
    const float count = static_cast<float>(rows.channels);
    Vec x = splat(0.0f), gradient = x, along = x, squares = x;
    for (int j = 0; j < rows.stride; j += kLanes) {
      x = x + load(row + j);
      gradient = gradient + load(du + j);
      along = fma(load(du + j), load(u + j), along);
    }
    const Vec mean = splat(sum(x) / count), mean_gradient = splat(sum(gradient) / count),
              mean_along = splat(sum(along) / count);
    for (int j = 0; j < rows.vecs; ++j) {
      const Vec centred = keep_first(load(row + j * kLanes) - mean, rows.lanes(j));
      squares = fma(centred, centred, squares);
    }
    const Vec scale = splat(1.0f) / sqrt(splat(sum(squares) / count + eps));
    for (int j = 0; j < rows.stride; j += kLanes) {
      store(du + j, scale * (load(du + j) - mean_gradient - load(u + j) * mean_along));
    }
  }
}

}  // namespace ditn::DITN_LEVEL
