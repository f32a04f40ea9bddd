// SPDX-License-Identifier: Apache-2.0
// y = conv3x3(image) + bias
#pragma once

#include "conv3x3.h"

namespace ditn::DITN_LEVEL {

// shape is the image's; y has `outputs` channels.
template <class T>
static void image_head(Threads threads, Shape shape, const T* image, T* y, const float* weight, const float* bias,
                       int outputs) {
  using P = typename Multiplied<T>::As;
  const Conv3x3<P> conv(weight, bias, shape.channels, outputs, [](int n) { return n; });
  BorderedMap map(shape, Rows(shape.channels), 1);
  fill<P>(threads, shape, image, map);
  each_run(threads, shape, [&](Units& units, const auto& runs) {
    Buffer tap(kRun * conv.outputs().stride), out(kRun * conv.outputs().stride);
    for (Run run; runs.next(units, run);) {
      conv.run(map, run, tap, out);
      for (int i = 0; i < run.count; ++i) {
        copy_out(out + i * conv.outputs().stride, conv.outputs(), y + (run.pixel + i) * outputs);
      }
    }
  });
}

}  // namespace ditn::DITN_LEVEL
