// SPDX-License-Identifier: Apache-2.0
// y = W tanh(x) + b at every pixel
#pragma once

#include "gemm.h"
#include "runs.h"

namespace ditn::DITN_LEVEL {

template <class T>
static void tanh_affine(Threads threads, Shape shape, const T* x, T* y, const float* weight, const float* bias,
                        int outputs) {
  const Rows in(shape.channels), out(outputs);
  using P = typename Multiplied<T>::As;
  const PackedAs<P> packed(shape.channels, out.vecs, [&](int k, int n) { return n < outputs ? weight[k * outputs + n] : 0.0f; });
  const Buffer offset = padded(bias, outputs);
  each_run(threads, shape, [&](Units& units, const auto& runs) {
    Buffer u(kRun * in.stride), v(kRun * out.stride);
    for (Run run; runs.next(units, run);) {
      for (int i = 0; i < run.count; ++i) {
        copy_in(x + (run.pixel + i) * shape.channels, in, u + i * in.stride);
        normalize(u + i * in.stride, in, Norm::kTanh, u + i * in.stride);
      }
      P::pack_along(u, run.count, in.stride, in.stride);
      product<P>(rows_of(u, in.stride), round_up(run.count, 4), packed.right(), out.vecs, offset, false, {v, out.stride});
      for (int i = 0; i < run.count; ++i) copy_out(v + i * out.stride, out, y + (run.pixel + i) * outputs);
    }
  });
}

}  // namespace ditn::DITN_LEVEL
