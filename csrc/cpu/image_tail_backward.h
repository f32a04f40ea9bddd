// SPDX-License-Identifier: Apache-2.0
// Gradients of y = pixel_shuffle(conv3x3(deep)) with deep = conv3x3(x) + skip
#pragma once

#include "conv3x3_backward.h"

namespace ditn::DITN_LEVEL {

template <class T>
static void image_tail_backward(Threads threads, Shape shape, const T* grad, const T* x, const T* skip, const Tail& w, T* dx,
                                T* dskip, const TailOf<float>& gradient) {
  using P = typename Multiplied<T>::As;
  const int scale = w.upscale, colours = w.outputs / (scale * scale);
  const Rows rows(shape.channels), shuffled(w.outputs);
  const DirectConv3x3<P> body(w.body_weight, w.body_bias, shape.channels, shape.channels);
  const Conv3x3Backward<P> body_back(w.body_weight, shape.channels, shape.channels);
  const Conv3x3Backward<P> up_back(w.up_weight, shape.channels, w.outputs);
  const Shape most = group_of_images(shape);
  BorderedMap map(most, rows, 1), deep(most, rows, 1), g(most, shuffled, 1), ddeep(most, rows, 1);
  Sums body_sums(Runs(most).count(), body_back.sums()), up_sums(Runs(most).count(), up_back.sums());
  each_group(shape, [&](const Shape& group, int64_t first) {
    const int64_t pixels = first * shape.height * shape.width;
    const Runs runs(group);
    map.fill(threads, group, x + pixels * shape.channels);
    each_run(threads, group, [&](Units& units, const Runs&) {
      typename DirectConv3x3<P>::Scratch s(body);
      Buffer before(rows.stride);
      for (Run run; runs.next(units, run);) {
        body.run(map, run, s);
        for (int i = 0; i < run.count; ++i) {
          copy_in(skip + (pixels + run.pixel + i) * shape.channels, rows, before);
          float* pixel = deep.at(run.b, run.row, run.left + i);
          for (int j = 0; j < rows.stride; j += kLanes) {
            store(pixel + j, load(s.out + i * rows.stride + j) + load(before + j));
          }
          float* to = g.at(run.b, run.row, run.left + i);
          for (int dy = 0; dy < scale; ++dy) {
            const int64_t row = ((first + run.b) * shape.height + run.row) * scale + dy;
            const T* from = grad + (row * shape.width + run.left + i) * scale * colours;
            for (int dx = 0; dx < scale; ++dx) {
              for (int c = 0; c < colours; ++c) to[(c * scale + dy) * scale + dx] = widened(from[dx * colours + c]);
            }
          }
        }
      }
    });
    up_sums.add(threads, runs.count(), [&](SharedUnits& units) {
      typename Conv3x3Backward<P>::Scratch s(up_back);
      for (Run run; runs.next(units, run);) {
        up_back.run(deep, g, run, s, units.sums());
        std::memcpy(ddeep.at(run.b, run.row, run.left), s.dx,
                    sizeof(float) * static_cast<size_t>(run.count * rows.stride));
        for (int i = 0; i < run.count; ++i) {
          copy_out(s.dx + i * rows.stride, rows, dskip + (pixels + run.pixel + i) * shape.channels);
        }
      }
    });
    body_sums.add(threads, runs.count(), [&](SharedUnits& units) {
      typename Conv3x3Backward<P>::Scratch s(body_back);
      for (Run run; runs.next(units, run);) {
        body_back.run(map, ddeep, run, s, units.sums());
        for (int i = 0; i < run.count; ++i) {
          copy_out(s.dx + i * rows.stride, rows, dx + (pixels + run.pixel + i) * shape.channels);
        }
      }
    });
  });
  body_back.write(body_sums.total(threads), gradient.body_weight, gradient.body_bias);
  up_back.write(up_sums.total(threads), gradient.up_weight, gradient.up_bias);
}

}  // namespace ditn::DITN_LEVEL
