// SPDX-License-Identifier: Apache-2.0
// y = pixel_shuffle(conv3x3(conv3x3(x) + skip)). The second convolution's outputs are put into the order [dy, dx, colour],
// so that the shuffle is where their pieces are stored. What lies between the convolutions is never whole.
#pragma once

#include "conv3x3.h"

namespace ditn::DITN_LEVEL {

template <class T>
class ImageTail {
 public:
  ImageTail(int channels, const Tail& w)
      : scale_(w.upscale),
        colours_(w.outputs / (scale_ * scale_)),
        rows_(channels),
        piece_(scale_ * colours_),
        body_(w.body_weight, w.body_bias, channels, channels, [](int n) { return n; }),
        up_(w.up_weight, w.up_bias, channels, w.outputs, [&](int n) {
          return n % colours_ * scale_ * scale_ + n / colours_;
        }) {}

  // y is [B, H * s, W * s, colours], with colours * s * s outputs of the second convolution.
  void run(Threads threads, Shape shape, const T* x, const T* skip, T* y) const {
    const Strips strips(shape, threads.count());
    share(threads, strips.count(), [&](Units& units) {
      Lines map(rows_.vecs, 4, 2), deep(rows_.vecs, 6, 1);
      Conv3x3::Scratch body_scratch(body_), up_scratch(up_);
      Buffer result(2 * Conv3x3::kLine * (rows_.stride > up_.outputs().stride ? rows_.stride : up_.outputs().stride));

      // Rows `row` and row + 1 of conv3x3(x) + skip.
      const auto deepen = [&](const Strip& strip, int64_t row) {
        body_.run(map, row, deep.first(), deep.count(), body_scratch, result);
        for (int64_t r = row; r < row + 2; ++r) {
          enter(skip, shape, strip, r, deep);
          if (r < 0 || r >= shape.height) continue;
          for (int j = 0; j < rows_.vecs; ++j) {
            float* line = deep.at(j, r, deep.first());
            const float* from = result + (r - row) * Conv3x3::kLine * rows_.stride + j * kLanes;
            for (int i = 0; i < deep.count(); ++i) {
              store(line + i * kLanes, load(line + i * kLanes) + load(from + i * rows_.stride));
            }
          }
        }
      };
      const auto shuffle = [&](const Strip& strip, int64_t row) {
        const int count = static_cast<int>(strip.right - strip.left);
        up_.run(deep, row, strip.left, count, up_scratch, result);
        for (int64_t r = row; r < row + 2 && r < strip.bottom; ++r) {
          for (int i = 0; i < count; ++i) {
            const float* from = result + ((r - row) * Conv3x3::kLine + i) * up_.outputs().stride;
            for (int dy = 0; dy < scale_; ++dy) {
              T* to = y + (((strip.b * shape.height + r) * scale_ + dy) * shape.width + strip.left + i) * scale_ * colours_;
              copy_out(from + dy * piece_.channels, piece_, to);
            }
          }
        }
      };
      for (Strip strip; strips.next(units, strip);) {
        map.start(strip, shape.width);
        deep.start(strip, shape.width);
        for (int64_t row = strip.top - 4; row < strip.bottom + 2; row += 2) {
          for (int64_t next = row + 1; next < row + 3; ++next) enter(x, shape, strip, next, map);
          if (row >= strip.top - 2) deepen(strip, row);
          if (row >= strip.top + 2) shuffle(strip, row - 2);
        }
      }
    });
  }

 private:
  int scale_, colours_;
  Rows rows_, piece_;
  Conv3x3 body_, up_;
};

}  // namespace ditn::DITN_LEVEL
