// SPDX-License-Identifier: Apache-2.0
// Gradients of y = conv3x3(image) + bias
#pragma once

#include "conv3x3_backward.h"

namespace ditn::DITN_LEVEL {

static void image_head_backward(Threads threads, Shape shape, const float* grad, const float* image,
                                const float* weight, int outputs, float* dimage, float* dweight, float* dbias) {
  const Conv3x3Backward conv(weight, shape.channels, outputs);
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
      Buffer tap(kRun * rows.stride), out(kRun * rows.stride);
      for (Run run; runs.next(units, run);) {
        conv.add_up(map, g, run, units.sums());
        conv.run(g, run, tap, out);
        for (int i = 0; i < run.count; ++i) {
          copy_out(out + i * rows.stride, rows, dimage + (pixels + run.pixel + i) * shape.channels);
        }
      }
    });
  });
  conv.write(sums.total(threads), dweight, dbias);
}

}  // namespace ditn::DITN_LEVEL
