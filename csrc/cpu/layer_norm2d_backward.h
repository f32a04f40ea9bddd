// SPDX-License-Identifier: Apache-2.0
// Gradients of y = weight * (x - mean) / sqrt(var + eps) + bias
#pragma once

#include "norm_backward.h"
#include "runs.h"
#include "sums.h"

namespace ditn::DITN_LEVEL {

template <class T>
static void layer_norm2d_backward(Threads threads, Shape shape, const T* grad, const T* x, const float* weight, float eps,
                                  T* dx, float* dweight, float* dbias) {
  const Rows rows(shape.channels);
  const Buffer scale = padded(weight, shape.channels);
  const Runs runs(shape);
  Sums sums(runs.count(), 2 * rows.stride);
  sums.add(threads, runs.count(), [&](SharedUnits& units) {
    Buffer u(rows.stride), du(rows.stride), g(kRun * rows.stride), along(kRun * rows.stride);
    for (Run run; runs.next(units, run);) {
      for (int i = 0; i < run.count; ++i) {
        const int64_t at = (run.pixel + i) * shape.channels;
        float *gradient = g + i * rows.stride, *product = along + i * rows.stride;
        copy_in(x + at, rows, u);
        copy_in(grad + at, rows, gradient);
        const float inverse = normalize(u, rows, Norm::kLayerNorm, u, eps);
        for (int j = 0; j < rows.stride; j += kLanes) {
          store(product + j, load(gradient + j) * load(u + j));
          store(du + j, load(gradient + j) * load(scale + j));
        }
        normalize_backward(u, rows, Norm::kLayerNorm, inverse, du);
        copy_out(du, rows, dx + at);
      }
      add_rows(along, run.count, rows.stride, rows.vecs, units.sums());
      add_rows(g, run.count, rows.stride, rows.vecs, units.sums() + rows.stride);
    }
  });
  const float* total = sums.total(threads);
  write_rows(total, 1, 0, shape.channels, dweight, 0);
  write_rows(total + rows.stride, 1, 0, shape.channels, dbias, 0);
}

}  // namespace ditn::DITN_LEVEL
