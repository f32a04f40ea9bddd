// SPDX-License-Identifier: Apache-2.0
// 3x3 convolution of a bordered map, one run of pixels at a time: nine products, one per tap.
#pragma once

#include "bordered_map.h"
#include "gemm.h"

namespace ditn::DITN_LEVEL {

template <class P>
class Conv3x3 {
 public:
  // weight [3, 3, inputs, outputs]; output n is the weight's order(n)
  template <class Order>
  Conv3x3(const float* weight, const float* bias, int inputs, int outputs, const Order& order)
      : inputs_(inputs), outputs_(outputs), taps_(9, [&](int tap) {
          const float* w = weight + static_cast<int64_t>(tap) * inputs * outputs;
          return new PackedAs<P>(inputs, outputs_.vecs, [&](int k, int n) { return n < outputs ? w[k * outputs + order(n)] : 0.0f; });
        }),
        bias_(outputs_.stride), zeros_(outputs_.stride) {
    for (int n = 0; n < outputs; ++n) bias_[n] = bias[order(n)];
  }

  const Rows& outputs() const { return outputs_; }

  // `count` pixels from (row, left) of batch b, in words along the channels -> out [count rounded up to 4, outputs' stride]; tap is as large. Each
  // tap has a sum of its own: one chain of 9 * inputs roundings would lose a digit against blocked libraries.
  void run(BorderedMap& map, const Run& run, float* tap, float* out) const {
    const int rows = round_up(run.count, 4);
    for (int i = 0; i < 9; ++i) {
      const float* from = map.at(run.b, run.row + i / 3 - 1, run.left + i % 3 - 1);
      product<P>(rows_of(from, inputs_.stride), rows, taps_[i].right(), outputs_.vecs,
              i ? static_cast<const float*>(zeros_) : static_cast<const float*>(bias_), false,
              {i ? tap : out, outputs_.stride});
      for (int at = 0; i && at < rows * outputs_.stride; at += kLanes) store(out + at, load(out + at) + load(tap + at));
    }
  }

 private:
  Rows inputs_, outputs_;
  Several<PackedAs<P>> taps_;
  Buffer bias_, zeros_;
};

}  // namespace ditn::DITN_LEVEL
