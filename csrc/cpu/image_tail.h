// SPDX-License-Identifier: Apache-2.0
// y = pixel_shuffle(conv3x3(conv3x3(x) + skip)). The second convolution's outputs are put into the order [dy, dx, colour],
// so that the shuffle is where their pieces are stored.
#pragma once

#include "conv3x3.h"

namespace ditn::DITN_LEVEL {

// y is [B, H * s, W * s, colours], with colours * s * s outputs of the second convolution.
template <class T>
static void image_tail(Threads threads, Shape shape, const T* x, const T* skip, T* y, const Tail& w) {
  using P = typename Multiplied<T>::As;
  const int scale = w.upscale, colours = w.outputs / (scale * scale);
  const Rows rows(shape.channels), line(scale * colours);
  const Conv3x3<P> body(w.body_weight, w.body_bias, shape.channels, shape.channels, [](int n) { return n; });
  const Conv3x3<P> up(w.up_weight, w.up_bias, shape.channels, w.outputs, [&](int n) {
    return n % colours * scale * scale + n / colours;
  });
  BorderedMap map(shape, rows, 1), deep(shape, rows, 1);
  fill<P>(threads, shape, x, map);
  each_run(threads, shape, [&](Units& units, const auto& runs) {
    Buffer tap(kRun * rows.stride), out(kRun * rows.stride), before(rows.stride);
    for (Run run; runs.next(units, run);) {
      body.run(map, run, tap, out);
      for (int i = 0; i < run.count; ++i) {
        copy_in(skip + (run.pixel + i) * shape.channels, rows, before);
        float* pixel = deep.at(run.b, run.row, run.left + i);
        for (int j = 0; j < rows.stride; j += kLanes) store(pixel + j, load(out + i * rows.stride + j) + load(before + j));
        P::pack_along(pixel, 1, 0, rows.stride);
      }
    }
  });
  each_run(threads, shape, [&](Units& units, const auto& runs) {
    Buffer tap(kRun * up.outputs().stride), out(kRun * up.outputs().stride);
    for (Run run; runs.next(units, run);) {
      up.run(deep, run, tap, out);
      for (int i = 0; i < run.count; ++i) {
        const float* from = out + i * up.outputs().stride;
        for (int dy = 0; dy < scale; ++dy) {
          T* to = y + (((run.b * shape.height + run.row) * scale + dy) * shape.width + run.left + i) * scale * colours;
          copy_out(from + dy * line.channels, line, to);
        }
      }
    }
  });
}

}  // namespace ditn::DITN_LEVEL
