// SPDX-License-Identifier: Apache-2.0
// Gradients of y = W tanh(x) + b
#pragma once

#include "gemm.h"
#include "norm_backward.h"
#include "runs.h"
#include "sums.h"

namespace ditn::DITN_LEVEL {

template <class T>
static void tanh_affine_backward(Threads threads, Shape shape, const T* grad, const T* x, const float* weight, int outputs,
                                 T* dx, float* dweight, float* dbias) {
  using P = typename Multiplied<T>::As;
  const Rows in(shape.channels), out(outputs);
  const PackedAs<P> transposed(outputs, in.vecs,
                               [&](int k, int n) { return n < shape.channels ? weight[n * outputs + k] : 0.0f; });
  const int64_t bias = static_cast<int64_t>(round_up(shape.channels, 4)) * out.stride;
  const Buffer zeros(in.stride > out.stride ? in.stride : out.stride);
  const Runs runs(shape);
  Sums sums(runs.count(), bias + out.stride);
  sums.add(threads, runs.count(), [&](SharedUnits& units) {
    Buffer u(kRun * in.stride), g(kRun * out.stride), du(kRun * in.stride);
    Buffer left(words<P>(kRun * (in.stride + out.stride))), right(words<P>(kRun * out.stride));
    for (Run run; runs.next(units, run);) {
      for (int i = 0; i < run.count; ++i) {
        copy_in(x + (run.pixel + i) * shape.channels, in, u + i * in.stride);
        normalize(u + i * in.stride, in, Norm::kTanh, u + i * in.stride);
        copy_in(grad + (run.pixel + i) * outputs, out, g + i * out.stride);
      }
      product<P>(across<P>(u, run.count, in.stride, in.stride, left), round_up(shape.channels, 4),
                 down<P>(g, run.count, out.stride, out.stride, right), out.vecs, zeros, true, {units.sums(), out.stride});
      add_rows(g, run.count, out.stride, out.vecs, units.sums() + bias);
      product<P>(along<P>(g, run.count, out.stride, out.stride, left), round_up(run.count, 4), transposed.right(), in.vecs,
                 zeros, false, {du, in.stride});
      for (int i = 0; i < run.count; ++i) {
        normalize_backward(u + i * in.stride, in, Norm::kTanh, 1.0f, du + i * in.stride);
        copy_out(du + i * in.stride, in, dx + (run.pixel + i) * shape.channels);
      }
    }
  });
  const float* total = sums.total(threads);
  write_rows(total, shape.channels, out.stride, outputs, dweight, outputs);
  write_rows(total + bias, 1, 0, outputs, dbias, 0);
}

}  // namespace ditn::DITN_LEVEL
