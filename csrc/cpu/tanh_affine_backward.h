// SPDX-License-Identifier: Apache-2.0
// Gradients of y = W tanh(x) + b
#pragma once

#include "gemm.h"
#include "norm_backward.h"
#include "runs.h"
#include "sums.h"

namespace ditn::DITN_LEVEL {

static void tanh_affine_backward(Threads threads, Shape shape, const float* grad, const float* x, const float* weight,
                                 int outputs, float* dx, float* dweight, float* dbias) {
  const Rows in(shape.channels), out(outputs);
  const Packed transposed(outputs, in.vecs,
                          [&](int k, int n) { return n < shape.channels ? weight[n * outputs + k] : 0.0f; });
  const int64_t bias = static_cast<int64_t>(round_up(shape.channels, 4)) * out.stride;
  const Buffer zeros(in.stride > out.stride ? in.stride : out.stride);
  const Runs runs(shape);
  Sums sums(runs.count(), bias + out.stride);
  sums.add(threads, runs.count(), [&](SharedUnits& units) {
    Buffer u(kRun * in.stride), g(kRun * out.stride), du(kRun * in.stride);
    for (Run run; runs.next(units, run);) {
      for (int i = 0; i < run.count; ++i) {
        copy_in(x + (run.pixel + i) * shape.channels, in, u + i * in.stride);
        normalize(u + i * in.stride, in, Norm::kTanh, u + i * in.stride);
        copy_in(grad + (run.pixel + i) * outputs, out, g + i * out.stride);
      }
      product(columns_of(u, in.stride), round_up(shape.channels, 4), {g, run.count, out.stride}, out.vecs, zeros, true,
              {units.sums(), out.stride});
      add_rows(g, run.count, out.stride, out.vecs, units.sums() + bias);
      product(rows_of(g, out.stride), round_up(run.count, 4), transposed.right(), in.vecs, zeros, false,
              {du, in.stride});
      for (int i = 0; i < run.count; ++i) {
        normalize_backward(nullptr, u + i * in.stride, in, Norm::kTanh, du + i * in.stride);
        copy_out(du + i * in.stride, in, dx + (run.pixel + i) * shape.channels);
      }
    }
  });
  const float* total = sums.total(threads);
  write_rows(total, shape.channels, out.stride, outputs, dweight, outputs);
  write_rows(total + bias, 1, 0, outputs, dbias, 0);
}

}  // namespace ditn::DITN_LEVEL
