// SPDX-License-Identifier: Apache-2.0
// Maps with a border of zeros, so that convolutions need no case for the edge.
#pragma once

#include "runs.h"

namespace ditn::DITN_LEVEL {

// Pixels as rows of whole vectors; more columns behind it, since pixels are taken kTileRows at a time.
class BorderedMap {
 public:
  BorderedMap(const Shape& shape, const Rows& rows, int border)
      : rows_(rows), border_(border), height_(shape.height + 2 * border), width_(shape.width + 2 * border + kTileRows),
        data_(shape.batch * height_ * width_ * rows.stride) {}
  // The pixel at (y, x) of the map; the border has negative coordinates.
  float* at(int64_t b, int64_t y, int64_t x) {
    return data_ + ((b * height_ + y + border_) * width_ + x + border_) * rows_.stride;
  }
  // A dense map of the same shape goes inside.
  template <class T>
  void fill(const Threads& threads, const Shape& shape, const T* x) {
    each_run(threads, shape, [&](Units& units, const Runs& runs) {
      for (Run run; runs.next(units, run);) {
        for (int i = 0; i < run.count; ++i) {
          copy_in(x + (run.pixel + i) * shape.channels, rows_, at(run.b, run.row, run.left + i));
        }
      }
    });
  }
  int64_t row() const { return width_ * rows_.stride; }
  const Rows& rows() const { return rows_; }

 private:
  Rows rows_;
  int64_t border_, height_, width_;
  Buffer data_;
};

// The most images of a shape, but at least one if there is any, whose maps stay in L3 together: 4096 pixels are 1 MB a
// map.
static Shape group_of_images(const Shape& shape) {
  const int64_t pixels = shape.height * shape.width, fitting = pixels ? 4096 / pixels : 0;
  const int64_t images = fitting < 1 ? 1 : fitting;
  return {images < shape.batch ? images : shape.batch, shape.height, shape.width, shape.channels};
}

// work(images, first): all images of a shape, a group at a time.
template <class Work>
static void each_group(const Shape& shape, const Work& work) {
  Shape group = group_of_images(shape);
  for (int64_t first = 0; first < shape.batch; first += group.batch) {
    if (group.batch > shape.batch - first) group.batch = shape.batch - first;
    work(group, first);
  }
}

}  // namespace ditn::DITN_LEVEL
