// SPDX-License-Identifier: Apache-2.0
// Runs of pixels of a row, to share out.
#pragma once

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

}  // namespace ditn::DITN_LEVEL
