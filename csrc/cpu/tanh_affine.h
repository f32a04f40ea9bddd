// SPDX-License-Identifier: Apache-2.0
// y = W tanh(x) + b at every pixel
#pragma once

#include "gemm.h"
#include "runs.h"

namespace ditn::DITN_LEVEL {

template <class T>
class TanhAffine {
 public:
  TanhAffine(int channels, const float* weight, const float* bias, int outputs)
      : in_(channels),
        out_(outputs),
        weight_(channels, out_.vecs, [&](int k, int n) { return n < outputs ? weight[k * outputs + n] : 0.0f; }),
        bias_(padded(bias, outputs)) {}

  void run(Threads threads, Shape shape, const T* x, const T*, T* y) const {
    each_run(threads, shape, [&](Units& units, const auto& runs) {
      Buffer u(kRun * in_.stride), v(kRun * out_.stride);
      for (Run run; runs.next(units, run);) {
        for (int i = 0; i < run.count; ++i) {
          copy_in(x + (run.pixel + i) * shape.channels, in_, u + i * in_.stride);
          normalize(u + i * in_.stride, in_, Norm::kTanh, u + i * in_.stride);
        }
        P::pack_along(u, run.count, in_.stride, in_.stride);
        product<P>(rows_of(u, in_.stride), round_up(run.count, 4), weight_.right(), out_.vecs, bias_, false, {v, out_.stride});
        for (int i = 0; i < run.count; ++i) copy_out(v + i * out_.stride, out_, y + (run.pixel + i) * out_.channels);
      }
    });
  }

 private:
  using P = typename Multiplied<T>::As;

  Rows in_, out_;
  PackedAs<P> weight_;
  Buffer bias_;
};

}  // namespace ditn::DITN_LEVEL
