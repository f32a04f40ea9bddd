// SPDX-License-Identifier: Apache-2.0
// Maps with a border of zeros, so that convolutions need no case for the edge; and runs of pixels to share out.
#pragma once

#include "arithmetic.h"
#include "norm.h"

namespace ditn::DITN_LEVEL {

constexpr int kRun = 64;  // pixels of a row that are taken at a time

struct Run {
  int64_t b, row, left;
  int64_t pixel;  // number of the first one in a dense map
  int count;
};

// Down a strip of the map before the next, so that the rows that a convolution spans stay in L2: the 19 rows of the
// dilated 7x7 are 400 kB.
class Runs {
 public:
  explicit Runs(const Shape& shape) : shape_(shape), strips_((shape.width + kRun - 1) / kRun) {}
  int64_t count() const { return shape_.batch * strips_ * shape_.height; }
  template <class Source>  // of unit numbers
  bool next(Source& units, Run& run) const {
    int64_t unit;
    if (!units.next(unit)) return false;
    run.b = unit / (shape_.height * strips_);
    run.row = unit % shape_.height;
    run.left = unit / shape_.height % strips_ * kRun;
    run.pixel = (run.b * shape_.height + run.row) * shape_.width + run.left;
    run.count = static_cast<int>(shape_.width - run.left < kRun ? shape_.width - run.left : kRun);
    return true;
  }

 private:
  Shape shape_;
  int64_t strips_;
};

// worker(units, runs): allocates its scratch, then takes runs.
template <class Worker>
static void each_run(const Threads& threads, const Shape& shape, const Worker& worker) {
  const Runs runs(shape);
  share(threads, runs.count(), [&](Units& units) { worker(units, runs); });
}

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
  int64_t row() const { return width_ * rows_.stride; }
  const Rows& rows() const { return rows_; }

 private:
  Rows rows_;
  int64_t border_, height_, width_;
  Buffer data_;
};

// A dense map into the inside of a bordered one, as words along the channels.
template <class P, class T>
static void fill(const Threads& threads, const Shape& shape, const T* x, BorderedMap& map) {
  each_run(threads, shape, [&](Units& units, const Runs& runs) {
    for (Run run; runs.next(units, run);) {
      for (int i = 0; i < run.count; ++i) {
        float* row = map.at(run.b, run.row, run.left + i);
        copy_in(x + (run.pixel + i) * shape.channels, map.rows(), row);
        P::pack_along(row, 1, 0, map.rows().stride);
      }
    }
  });
}

// The most images of a shape, but at least one if there is any, whose maps stay in L3 together: 8192 pixels are 2 MB a map.
static Shape group_of_images(const Shape& shape) {
  const int64_t pixels = shape.height * shape.width, fitting = pixels ? 8192 / pixels : 0;
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
