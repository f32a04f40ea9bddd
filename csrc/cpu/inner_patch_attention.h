// SPDX-License-Identifier: Apache-2.0
// x += W_o (softmax(t qn kn^T) v) + b_o for one patch, whose rows stay in L1 and L2.
//
// The last two products are taken in the other order, v (A^T W_o): the [C, C] product comes first and nothing has to be
// transposed. At 64 pixels and 60 channels that is the same work.
#pragma once

#include "gemm.h"
#include "norm.h"

namespace ditn::DITN_LEVEL {

template <class P>
class PatchAttention {
 public:
  PatchAttention(const Attention& w, int channels, int pixels)
      : rows_(channels),
        pixels_(pixels),
        temperature_(*w.temperature),
        qkv_(channels, 3 * rows_.vecs, [&](int k, int n) { return third(w.qkv_weight + k * 3 * channels, n); }),
        out_(channels, rows_.vecs, [&](int k, int n) { return n < channels ? w.out_weight[k * channels + n] : 0.0f; }),
        qkv_bias_(3 * rows_.stride),
        out_bias_(padded(w.out_bias, channels)),
        behind_(rows_.stride) {
    for (int n = 0; n < 3 * rows_.stride; ++n) qkv_bias_[n] = third(w.qkv_bias, n);
    for (int n = channels; n < rows_.stride; ++n) behind_[n] = -__builtin_inff();
  }

  struct Scratch {
    Scratch(const Rows& rows, int pixels)
        : u(static_cast<int64_t>(pixels) * rows.stride),
          qkv(static_cast<int64_t>(pixels) * 3 * rows.stride),
          scores(static_cast<int64_t>(rows.stride) * rows.stride),
          map(static_cast<int64_t>(rows.stride) * rows.stride),
          lengths(2 * rows.stride),
          zeros(3 * rows.stride) {}
    Buffer u, qkv, scores, map, lengths, zeros;
  };

  // x: [pixels, stride], updated in place.
  void run(float* x, Norm norm, Scratch& s) const {
    const int stride = rows_.stride, channels = rows_.channels, row = 3 * stride, padded_channels = round_up(channels, 4);
    for (int t = 0; t < pixels_; ++t) normalize(x + t * stride, rows_, norm, s.u + t * stride);
    P::pack_along(s.u, pixels_, stride, stride);
    product<P>(rows_of(s.u, stride), pixels_, qkv_.right(), 3 * rows_.vecs, qkv_bias_, false, {s.qkv, row});
    inverse_lengths(s.qkv, s.lengths);
    inverse_lengths(s.qkv + stride, s.lengths + stride);
    P::pack_across(s.qkv, pixels_, row, 2 * stride);
    product<P>(columns_of(s.qkv, P::kPack * row), padded_channels,
               {s.qkv + stride, pixels_ / P::kPack, P::kPack * row}, rows_.vecs, s.zeros, false, {s.scores, stride});
    for (int i = 0; i < channels; ++i) softmax(s.scores + i * stride, temperature_ * s.lengths[i], s.lengths + stride);
    P::pack_across(s.scores, channels, stride, stride);
    product<P>(columns_of(s.scores, P::kPack * stride), padded_channels, out_.right(), rows_.vecs, s.zeros, false,
               {s.map, stride});
    P::pack_across(s.map, channels, stride, stride);
    P::pack_along(s.qkv + 2 * stride, pixels_, row, stride);
    // Not added to x as it goes: 60 roundings at the size of x would cost more digits than one.
    product<P>(rows_of(s.qkv + 2 * stride, row), pixels_,
               {s.map, P::steps(channels), P::kPack * stride}, rows_.vecs, out_bias_, false, {s.u, stride});
    for (int i = 0; i < pixels_ * stride; i += kLanes) store(x + i, load(x + i) + load(s.u + i));
  }

 private:
  // Element n of [q | k | v], each in whole vectors, of one row [3C].
  float third(const float* row, int n) const {
    const int channel = n % rows_.stride;
    return channel < rows_.channels ? row[n / rows_.stride * rows_.channels + channel] : 0.0f;
  }

  // 1 / max(|t|, 1e-12) of each channel over the pixels. Four sums, since one would wait for itself.
  void inverse_lengths(const float* t, float* out) const {
    for (int j = 0; j < rows_.vecs; ++j) {
      Vec squares[] = {splat(0.0f), splat(0.0f), splat(0.0f), splat(0.0f)};
      for (int p = 0; p < pixels_; p += 4) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          const Vec v = load(t + (p + i) * 3 * rows_.stride + j * kLanes);
          squares[i] = fma(v, v, squares[i]);
        }
      }
      const Vec total = (squares[0] + squares[1]) + (squares[2] + squares[3]);
      store(out + j * kLanes, splat(1.0f) / max(splat(1e-12f), sqrt(total)));
    }
  }

  // softmax(scale * row * columns) over the channels, in place; zero behind them.
  void softmax(float* row, float scale, const float* columns) const {
    Vec largest_of_lane = splat(-__builtin_inff());
    for (int j = 0; j < rows_.vecs; ++j) {
      const Vec v = load(row + j * kLanes) * splat(scale) * load(columns + j * kLanes);
      store(row + j * kLanes, v);
      largest_of_lane = max(v + load(behind_ + j * kLanes), largest_of_lane);
    }
    const Vec largest = splat(maximum(largest_of_lane));
    Vec total = splat(0.0f);
    for (int j = 0; j < rows_.vecs; ++j) {
      const Vec e = keep_first(exp(load(row + j * kLanes) - largest), rows_.lanes(j));
      store(row + j * kLanes, e);
      total = total + e;
    }
    const Vec share = splat(1.0f / sum(total));
    for (int j = 0; j < rows_.vecs; ++j) store(row + j * kLanes, load(row + j * kLanes) * share);
  }

  Rows rows_;
  int pixels_;
  float temperature_;
  PackedAs<P> qkv_, out_;
  Buffer qkv_bias_, out_bias_;
  Buffer behind_;  // [stride]: 0 for a channel, -infinity behind the last, so that no padding is the maximum
};

}  // namespace ditn::DITN_LEVEL
