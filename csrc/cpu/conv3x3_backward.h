// SPDX-License-Identifier: Apache-2.0
// Gradients of a 3x3 convolution of a bordered map, one run of pixels at a time, from the gradient of its result in
// another one: nine products for the weights, and for the input the convolution with the weights turned around. That
// one is direct, not Winograd's: the bordered maps are there for the weights in any case.
#pragma once

#include "bordered_map.h"
#include "gemm.h"
#include "sums.h"

namespace ditn::DITN_LEVEL {

class DirectConv3x3 {
 public:
  // weight [3, 3, inputs, outputs]
  DirectConv3x3(const float* weight, const float* bias, int inputs, int outputs)
      : inputs_(inputs), outputs_(outputs),
        taps_(9,
              [&](int tap) {
                const float* w = weight + static_cast<int64_t>(tap) * inputs * outputs;
                return new Packed(inputs, outputs_.vecs,
                                  [&](int k, int n) { return n < outputs ? w[k * outputs + n] : 0.0f; });
              }),
        bias_(padded(bias, outputs)), zeros_(outputs_.stride) {}

  // A run -> out [kRun, outputs' stride]; tap is as large. Each tap has a sum of its own: one chain of 9 * inputs
  // roundings would lose a digit against blocked libraries.
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

class Conv3x3Backward {
 public:
  // weight [3, 3, inputs, outputs]
  Conv3x3Backward(const float* weight, int inputs, int outputs)
      : inputs_(inputs), outputs_(outputs), zeros_(outputs_.stride > inputs_.stride ? outputs_.stride : inputs_.stride),
        turned_(turned(weight, inputs, outputs), zeros_, outputs, inputs),
        tap_(static_cast<int64_t>(round_up(inputs, 4)) * outputs_.stride) {}

  const Rows& inputs() const { return inputs_; }
  int64_t sums() const { return 9 * tap_ + outputs_.stride; }

  // sums += the run's share of the gradients of weight and bias
  void add_up(BorderedMap& x, BorderedMap& grad, const Run& run, float* sums) const {
    const float* g = grad.at(run.b, run.row, run.left);
    for (int i = 0; i < 9; ++i) {
      product(columns_of(x.at(run.b, run.row + i / 3 - 1, run.left + i % 3 - 1), inputs_.stride),
              round_up(inputs_.channels, 4), {g, run.count, outputs_.stride}, outputs_.vecs, zeros_, true,
              {sums + i * tap_, outputs_.stride});
    }
    add_rows(g, run.count, outputs_.stride, outputs_.vecs, sums + 9 * tap_);
  }

  // The gradient of x; tap and dx are [kRun, inputs' stride].
  void run(BorderedMap& grad, const Run& run, float* tap, float* dx) const { turned_.run(grad, run, tap, dx); }

  void write(const float* sums, float* dweight, float* dbias) const {
    const int64_t floats = static_cast<int64_t>(inputs_.channels) * outputs_.channels;
    for (int i = 0; i < 9; ++i) {
      write_rows(sums + i * tap_, inputs_.channels, outputs_.stride, outputs_.channels, dweight + i * floats,
                 outputs_.channels);
    }
    write_rows(sums + 9 * tap_, 1, 0, outputs_.channels, dbias, 0);
  }

 private:
  // [3, 3, outputs, inputs], tap (y, x) where (2 - y, 2 - x) was
  static Buffer turned(const float* weight, int inputs, int outputs) {
    const int64_t floats = static_cast<int64_t>(inputs) * outputs;
    Buffer whole(9 * floats);
    for (int tap = 0; tap < 9; ++tap) {
      for (int k = 0; k < inputs; ++k) {
        for (int n = 0; n < outputs; ++n) {
          whole[tap * floats + n * inputs + k] = weight[(8 - tap) * floats + k * outputs + n];
        }
      }
    }
    return whole;
  }

  Rows inputs_, outputs_;
  Buffer zeros_;
  DirectConv3x3 turned_;
  int64_t tap_;
};

}  // namespace ditn::DITN_LEVEL
