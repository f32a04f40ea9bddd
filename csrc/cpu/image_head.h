// SPDX-License-Identifier: Apache-2.0
// y = conv3x3(image) + bias
#pragma once

#include "conv3x3.h"

namespace ditn::DITN_LEVEL {

// shape is the image's; y has `outputs` channels.
template <class T>
static void image_head(Threads threads, Shape shape, const T* image, T* y, const float* weight, const float* bias,
                       int outputs) {
  const Conv3x3 conv(weight, bias, shape.channels, outputs, [](int n) { return n; });
  const Rows in(shape.channels), out(outputs);
  const Strips strips(shape, threads.count());
  share(threads, strips.count(), [&](Units& units) {
    Lines map(in.vecs, 4, 1);
    Conv3x3::Scratch s(conv);
    Buffer result(2 * conv.kLine * out.stride);
    for (Strip strip; strips.next(units, strip);) {
      map.start(strip, shape.width);
      for (int64_t row = strip.top - 2; row < strip.bottom; row += 2) {
        for (int64_t next = row + 1; next < row + 3; ++next) enter(image, shape, strip, next, map);
        if (row < strip.top) continue;
        const int count = static_cast<int>(strip.right - strip.left);
        conv.run(map, row, strip.left, count, s, result);
        for (int64_t r = row; r < row + 2 && r < strip.bottom; ++r) {
          const float* from = result + (r - row) * conv.kLine * out.stride;
          T* to = y + pixel_of(shape, strip.b, r, strip.left) * outputs;
          for (int i = 0; i < count; ++i) copy_out(from + i * out.stride, out, to + i * static_cast<int64_t>(outputs));
        }
      }
    }
  });
}

}  // namespace ditn::DITN_LEVEL
