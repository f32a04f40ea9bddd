// SPDX-License-Identifier: Apache-2.0
// Gradients of a 3x3 convolution of a bordered map, one run of pixels at a time, from the gradient of its result in
// another one: nine products for the weights, and for the input the convolution with the weights turned around. That
// one is direct, not Winograd's: the bordered maps are there for the weights in any case.
#pragma once

#include "bordered_map.h"
#include "gemm.h"
#include "sums.h"

namespace ditn::DITN_LEVEL {

template <class P>
class DirectConv3x3 {
 public:
  // weight [3, 3, inputs, outputs]
  DirectConv3x3(const float* weight, const float* bias, int inputs, int outputs)
      : inputs_(inputs), outputs_(outputs),
        taps_(9,
              [&](int tap) {
                const float* w = weight + static_cast<int64_t>(tap) * inputs * outputs;
                return new PackedAs<P>(inputs, outputs_.vecs,
                                       [&](int k, int n) { return n < outputs ? w[k * outputs + n] : 0.0f; });
              }),
        bias_(padded(bias, outputs)), zeros_(outputs_.stride) {}

  struct Scratch {
    explicit Scratch(const DirectConv3x3& conv)
        : tap(kRun * conv.outputs_.stride), out(kRun * conv.outputs_.stride), left(words<P>(kRun * conv.inputs_.stride)) {}
    Buffer tap, out;  // [kRun, outputs' stride]
    Buffer left;
  };

  // A run -> s.out. Each tap has a sum of its own: one chain of 9 * inputs roundings would lose a digit against blocked
  // libraries.
  void run(BorderedMap& map, const Run& run, Scratch& s) const {
    const int rows = round_up(run.count, 4);
    for (int i = 0; i < 9; ++i) {
      const float* from = map.at(run.b, run.row + i / 3 - 1, run.left + i % 3 - 1);
      product<P>(along<P>(from, run.count, inputs_.stride, inputs_.stride, s.left), rows, taps_[i].right(), outputs_.vecs,
                 i ? static_cast<const float*>(zeros_) : static_cast<const float*>(bias_), false,
                 {i ? s.tap : s.out, outputs_.stride});
      for (int at = 0; i && at < rows * outputs_.stride; at += kLanes) {
        store(s.out + at, load(s.out + at) + load(s.tap + at));
      }
    }
  }

 private:
  Rows inputs_, outputs_;
  Several<PackedAs<P>> taps_;
  Buffer bias_, zeros_;
};

template <class P>
class Conv3x3Backward {
 public:
  // weight [3, 3, inputs, outputs]
  Conv3x3Backward(const float* weight, int inputs, int outputs)
      : inputs_(inputs), outputs_(outputs), zeros_(outputs_.stride > inputs_.stride ? outputs_.stride : inputs_.stride),
        turned_(turned(weight, inputs, outputs), zeros_, outputs, inputs),
        tap_(static_cast<int64_t>(round_up(inputs, 4)) * outputs_.stride) {}

  const Rows& inputs() const { return inputs_; }
  int64_t sums() const { return 9 * tap_ + outputs_.stride; }

  struct Scratch {
    explicit Scratch(const Conv3x3Backward& conv)
        : turned(conv.turned_), dx(turned.out), left(words<P>(kRun * conv.inputs_.stride)),
          right(words<P>(kRun * conv.outputs_.stride)) {}
    typename DirectConv3x3<P>::Scratch turned;
    float* dx;  // [kRun, inputs' stride]
    Buffer left, right;
  };

  // The gradient of x into s.dx, and sums += the run's share of the gradients of weight and bias
  void run(BorderedMap& x, BorderedMap& grad, const Run& run, Scratch& s, float* sums) const {
    const float* g = grad.at(run.b, run.row, run.left);
    const Right right = down<P>(g, run.count, outputs_.stride, outputs_.stride, s.right);
    for (int i = 0; i < 9; ++i) {
      const float* from = x.at(run.b, run.row + i / 3 - 1, run.left + i % 3 - 1);
      product<P>(across<P>(from, run.count, inputs_.stride, inputs_.stride, s.left), round_up(inputs_.channels, 4), right,
                 outputs_.vecs, zeros_, true, {sums + i * tap_, outputs_.stride});
    }
    add_rows(g, run.count, outputs_.stride, outputs_.vecs, sums + 9 * tap_);
    turned_.run(grad, run, s.turned);
  }

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
  DirectConv3x3<P> turned_;
  int64_t tap_;
};

}  // namespace ditn::DITN_LEVEL
