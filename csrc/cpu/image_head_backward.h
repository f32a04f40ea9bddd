// SPDX-License-Identifier: Apache-2.0
// Gradients of y = conv3x3(image) + bias
#pragma once

#include "conv3x3_backward.h"

namespace ditn::DITN_LEVEL {

template <class T>
static void image_head_backward(Threads threads, Shape shape, const T* grad, const T* image, const float* weight,
                                int outputs, T* dimage, float* dweight, float* dbias) {
  using Gradients = Conv3x3Backward<typename Multiplied<T>::As>;
  const Gradients conv(weight, shape.channels, outputs);
  const Shape most = group_of_images(shape);
  BorderedMap map(most, Rows(shape.channels), 1), g(most, Rows(outputs), 1);
  Sums sums(Runs(most).count(), conv.sums());
  each_group(shape, [&](Shape group, int64_t first) {
    const int64_t pixels = first * shape.height * shape.width;
    const Runs runs(group);
    map.fill(threads, group, image + pixels * shape.channels);
    g.fill(threads, {group.batch, group.height, group.width, outputs}, grad + pixels * outputs);
    sums.add(threads, runs.count(), [&](SharedUnits& units) {
      const Rows& rows = conv.inputs();
      typename Gradients::Scratch s(conv);
      for (Run run; runs.next(units, run);) {
        conv.run(map, g, run, s, units.sums());
        for (int i = 0; i < run.count; ++i) {
          copy_out(s.dx + i * rows.stride, rows, dimage + (pixels + run.pixel + i) * shape.channels);
        }
      }
    });
  });
  conv.write(sums.total(threads), dweight, dbias);
}

}  // namespace ditn::DITN_LEVEL
