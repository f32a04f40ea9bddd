// SPDX-License-Identifier: Apache-2.0
// Gradients of y = pixel_shuffle(conv3x3(deep)) with deep = conv3x3(x) + skip
#pragma once

#include "conv3x3_backward.h"

namespace ditn::DITN_LEVEL {

static void image_tail_backward(Threads threads, Shape shape, const float* grad, const float* x, const float* skip,
                                const Tail& w, float* dx, float* dskip, const TailOf<float>& gradient) {
  const int scale = w.upscale, colours = w.outputs / (scale * scale);
  const Rows rows(shape.channels), shuffled(w.outputs);
  const DirectConv3x3 body(w.body_weight, w.body_bias, shape.channels, shape.channels);
  const Conv3x3Backward body_back(w.body_weight, shape.channels, shape.channels);
  const Conv3x3Backward up_back(w.up_weight, shape.channels, w.outputs);
  const Shape most = group_of_images(shape);
  BorderedMap map(most, rows, 1), deep(most, rows, 1), g(most, shuffled, 1), ddeep(most, rows, 1);
  Sums body_sums(Runs(most).count(), body_back.sums()), up_sums(Runs(most).count(), up_back.sums());
  each_group(shape, [&](const Shape& group, int64_t first) {
    const int64_t pixels = first * shape.height * shape.width;
    const Runs runs(group);
    map.fill(threads, group, x + pixels * shape.channels);
    each_run(threads, group, [&](Units& units, const Runs&) {
      Buffer tap(kRun * rows.stride), out(kRun * rows.stride), before(rows.stride);
      for (Run run; runs.next(units, run);) {
        body.run(map, run, tap, out);
        for (int i = 0; i < run.count; ++i) {
          copy_in(skip + (pixels + run.pixel + i) * shape.channels, rows, before);
          float* pixel = deep.at(run.b, run.row, run.left + i);
          for (int j = 0; j < rows.stride; j += kLanes) {
            store(pixel + j, load(out + i * rows.stride + j) + load(before + j));
          }
          float* to = g.at(run.b, run.row, run.left + i);
          for (int dy = 0; dy < scale; ++dy) {
            const int64_t row = ((first + run.b) * shape.height + run.row) * scale + dy;
            const float* from = grad + (row * shape.width + run.left + i) * scale * colours;
            for (int dx = 0; dx < scale; ++dx) {
              for (int c = 0; c < colours; ++c) to[(c * scale + dy) * scale + dx] = from[dx * colours + c];
            }
          }
        }
      }
    });
    up_sums.add(threads, runs.count(), [&](SharedUnits& units) {
      Buffer tap(kRun * rows.stride), out(kRun * rows.stride);
      for (Run run; runs.next(units, run);) {
        up_back.add_up(deep, g, run, units.sums());
        up_back.run(g, run, tap, out);
        std::memcpy(ddeep.at(run.b, run.row, run.left), out,
                    sizeof(float) * static_cast<size_t>(run.count * rows.stride));
        for (int i = 0; i < run.count; ++i) {
          copy_out(out + i * rows.stride, rows, dskip + (pixels + run.pixel + i) * shape.channels);
        }
      }
    });
    body_sums.add(threads, runs.count(), [&](SharedUnits& units) {
      Buffer tap(kRun * rows.stride), out(kRun * rows.stride);
      for (Run run; runs.next(units, run);) {
        body_back.add_up(map, ddeep, run, units.sums());
        body_back.run(ddeep, run, tap, out);
        for (int i = 0; i < run.count; ++i) {
          copy_out(out + i * rows.stride, rows, dx + (pixels + run.pixel + i) * shape.channels);
        }
      }
    });
  });
  body_back.write(body_sums.total(threads), gradient.body_weight, gradient.body_bias);
  up_back.write(up_sums.total(threads), gradient.up_weight, gradient.up_bias);
}

}  // namespace ditn::DITN_LEVEL
