// SPDX-License-Identifier: Apache-2.0
// y = weight * (x - mean) / sqrt(var + eps) + bias over the channels of every pixel
#pragma once

#include "runs.h"

namespace ditn::DITN_LEVEL {

template <class T>
static void layer_norm2d(Threads threads, Shape shape, const T* x, T* y, const float* weight, const float* bias,
                         float eps) {
  const Rows rows(shape.channels);
  const Buffer scale = padded(weight, shape.channels), offset = padded(bias, shape.channels);
  each_run(threads, shape, [&](Units& units, const auto& runs) {
    Buffer u(rows.stride);
    for (Run run; runs.next(units, run);) {
      for (int i = 0; i < run.count; ++i) {
        copy_in(x + (run.pixel + i) * shape.channels, rows, u);
        normalize(u, rows, Norm::kLayerNorm, u, eps);
        for (int j = 0; j < rows.stride; j += kLanes) store(u + j, fma(load(u + j), load(scale + j), load(offset + j)));
        copy_out(u, rows, y + (run.pixel + i) * shape.channels);
      }
    }
  });
}

}  // namespace ditn::DITN_LEVEL
