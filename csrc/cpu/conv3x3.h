// SPDX-License-Identifier: Apache-2.0
// 3x3 convolution of a bordered map, one run of pixels at a time: nine products, one per tap.
#pragma once

#include "bordered_map.h"
#include "gemm.h"

namespace ditn::DITN_LEVEL {

class Conv3x3 {
 public:
  // weight [3, 3, inputs, outputs]
  Conv3x3(const float* weight, const float* bias, int inputs, int outputs)
      : inputs_(inputs), outputs_(outputs), taps_(9, [&](int tap) {
          const float* w = weight + static_cast<int64_t>(tap) * inputs * outputs;
          return new Packed(inputs, outputs_.vecs, [&](int k, int n) { return n < outputs ? w[k * outputs + n] : 0.0f; });
        }),
        bias_(padded(bias, outputs)), zeros_(outputs_.stride) {}

  const Rows& outputs() const { return outputs_; }

  // `count` pixels from (row, left) of batch b -> out [count rounded up to 4, outputs' stride]; tap is as large. Each
  // tap has a sum of its own: one chain of 9 * inputs roundings would lose a digit against blocked libraries.
  void run(BorderedMap& map, const Run& run, float* tap, float* out) const {
    const int rows = round_up(run.count, 4);
    for (int i = 0; i < 9; ++i) {
      const float* from = map.at(run.b, run.row + i / 3 - 1, run.left + i % 3 - 1);
      product(rows_of(from, inputs_.stride), rows, taps_[i].right(), outputs_.vecs,
              i ? static_cast<const float*>(zeros_) : static_cast<const float*>(bias_), false,
              {i ? tap : out, outputs_.stride});
      for (int at = 0; i && at < rows * outputs_.stride; at += kLanes) store(out + at, load(out + at) + load(tap + at));
    }
  }

 private:
  Rows inputs_, outputs_;
  Several<Packed> taps_;
  Buffer bias_, zeros_;
};

}  // namespace ditn::DITN_LEVEL
