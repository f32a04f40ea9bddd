// SPDX-License-Identifier: Apache-2.0
// y = conv3x3(image) + bias
#pragma once

#include "conv3x3.h"

namespace ditn::DITN_LEVEL {

template <class T>
class ImageHead {
 public:
  ImageHead(int channels, const float* weight, const float* bias, int outputs)
      : in_(channels), conv_(weight, bias, channels, outputs, [](int n) { return n; }) {}

  // shape is the image's; y has `outputs` channels.
  void run(Threads threads, Shape shape, const T* image, const T*, T* y) const {
    const Rows& out = conv_.outputs();
    const Strips strips(shape, threads.count());
    share(threads, strips.count(), [&](Units& units) {
      Lines map(in_.vecs, 4, 1);
      Conv3x3::Scratch s(conv_);
      Buffer result(2 * Conv3x3::kLine * out.stride);
      for (Strip strip; strips.next(units, strip);) {
        map.start(strip, shape.width);
        for (int64_t row = strip.top - 2; row < strip.bottom; row += 2) {
          for (int64_t next = row + 1; next < row + 3; ++next) enter(image, shape, strip, next, map);
          if (row < strip.top) continue;
          const int count = static_cast<int>(strip.right - strip.left);
          conv_.run(map, row, strip.left, count, s, result);
          for (int64_t r = row; r < row + 2 && r < strip.bottom; ++r) {
            const float* from = result + (r - row) * Conv3x3::kLine * out.stride;
            T* to = y + pixel_of(shape, strip.b, r, strip.left) * out.channels;
            for (int i = 0; i < count; ++i) copy_out(from + i * out.stride, out, to + i * static_cast<int64_t>(out.channels));
          }
        }
      }
    });
  }

 private:
  Rows in_;
  Conv3x3 conv_;
};

}  // namespace ditn::DITN_LEVEL
