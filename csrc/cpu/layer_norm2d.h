// SPDX-License-Identifier: Apache-2.0
// y = weight * (x - mean) / sqrt(var + eps) + bias over the channels of every pixel
#pragma once

#include "runs.h"

namespace ditn::DITN_LEVEL {

template <class T>
class LayerNorm2d {
 public:
  LayerNorm2d(int channels, const float* weight, const float* bias, float eps)
      : rows_(channels), scale_(padded(weight, channels)), offset_(padded(bias, channels)), eps_(eps) {}

  void run(Threads threads, Shape shape, const T* x, const T*, T* y) const {
    each_run(threads, shape, [&](Units& units, const auto& runs) {
      Buffer u(rows_.stride);
      for (Run run; runs.next(units, run);) {
        for (int i = 0; i < run.count; ++i) {
          copy_in(x + (run.pixel + i) * shape.channels, rows_, u);
          normalize(u, rows_, Norm::kLayerNorm, u, eps_);
          for (int j = 0; j < rows_.stride; j += kLanes) store(u + j, fma(load(u + j), load(scale_ + j), load(offset_ + j)));
          copy_out(u, rows_, y + (run.pixel + i) * shape.channels);
        }
      }
    });
  }

 private:
  Rows rows_;
  Buffer scale_, offset_;
  float eps_;
};

}  // namespace ditn::DITN_LEVEL
