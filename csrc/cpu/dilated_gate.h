// SPDX-License-Identifier: Apache-2.0
// y = x + W_out (g * (W_mix far + b_mix)) + b_out with a, g = W_in norm(x) + b_in and far = dw7x7(dw5x5(a)), dilation 3.
//
// An output pixel sees 11 pixels far, so tiles would compute most of `a` several times. Instead `a` and its 5x5 go
// through memory once, in maps with a border of zeros as wide as the next convolution reaches; everything else is done
// for 64 pixels at a time.
#pragma once

#include "gemm.h"
#include "norm.h"

namespace ditn::DITN_LEVEL {

// A map of whole vectors with a border of zeros; four more columns, since rows are taken four pixels at a time.
class BorderedMap {
 public:
  BorderedMap(const Shape& shape, const Rows& rows, int border)
      : stride_(rows.stride), border_(border), height_(shape.height + 2 * border), width_(shape.width + 2 * border + 4),
        data_(shape.batch * height_ * width_ * stride_) {}
  // The pixel at (y, x) of the map; the border has negative coordinates.
  float* at(int64_t b, int64_t y, int64_t x) {
    return data_ + ((b * height_ + y + border_) * width_ + x + border_) * stride_;
  }
  int64_t row() const { return width_ * stride_; }

 private:
  int64_t stride_, border_, height_, width_;
  Buffer data_;
};

// kSize x kSize taps on `count` pixels of a row, at corner and right of it; weights [taps, stride]. Four pixels share
// each weight that is loaded: 5 loads for 4 FMAs instead of 8.
template <int kSize, int kDilation>
DITN_INLINE void depthwise_row(const float* corner, int64_t row, const Rows& rows, const float* weights, const float* bias,
                               int count, float* out) {
  const int stride = rows.stride;
  for (int x = 0; x < count; x += 4) {
    for (int j = 0; j < rows.vecs; ++j) {
      const float* from = corner + x * stride + j * kLanes;
      const float* w = weights + j * kLanes;
      Vec acc[4] = {load(bias + j * kLanes), load(bias + j * kLanes), load(bias + j * kLanes), load(bias + j * kLanes)};
      for (int dy = 0; dy < kSize; ++dy) {
#pragma GCC unroll 7
        for (int dx = 0; dx < kSize; ++dx, w += stride) {
          const Vec tap = load(w);
          const float* p = from + dy * kDilation * row + dx * kDilation * stride;
#pragma GCC unroll 4
          for (int i = 0; i < 4; ++i) acc[i] = fma(tap, load(p + i * stride), acc[i]);
        }
      }
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) store(out + (x + i) * stride + j * kLanes, acc[i]);
    }
  }
}

class MapGate {
 public:
  static constexpr int kRun = 64;  // pixels of a row that are taken at a time

  MapGate(const Gate& w, int channels)
      : rows_(channels),
        a_(channels, rows_.vecs, [&](int k, int n) { return element(w.in_weight + k * 2 * channels, n); }),
        g_(channels, rows_.vecs, [&](int k, int n) { return element(w.in_weight + k * 2 * channels + channels, n); }),
        mix_(channels, rows_.vecs, [&](int k, int n) { return element(w.mix_weight + k * channels, n); }),
        out_(channels, rows_.vecs, [&](int k, int n) { return element(w.out_weight + k * channels, n); }),
        a_bias_(padded(w.in_bias, channels)),
        g_bias_(padded(w.in_bias + channels, channels)),
        mix_bias_(padded(w.mix_bias, channels)),
        out_bias_(padded(w.out_bias, channels)),
        dw5_(taps(w.dw5_weight, 25)),
        dw7_(taps(w.dw7_weight, 49)),
        dw5_bias_(padded(w.dw5_bias, channels)),
        dw7_bias_(padded(w.dw7_bias, channels)) {}

  // The maps between the steps. Their borders are zero and stay so: one pair serves every layer.
  struct Maps {
    Maps(const Shape& shape, const Rows& rows) : a(shape, rows, 2), near(shape, rows, 9) {}
    BorderedMap a, near;
  };

  void run(const Threads& threads, const Shape& shape, const float* x, float* y, Norm norm, Maps& maps) const {
    BorderedMap &a = maps.a, &near = maps.near;
    each_run(threads, shape, [&](int64_t b, int64_t row, int64_t left, int count, Scratch& s) {
      normalized(x + ((b * shape.height + row) * shape.width + left) * rows_.channels, count, norm, s.u);
      product(rows_of(s.u, rows_.stride), round_up(count, 4), a_.right(), rows_.vecs, a_bias_, false, {s.v, rows_.stride});
      std::memcpy(a.at(b, row, left), s.v, sizeof(float) * static_cast<size_t>(count * rows_.stride));
    });
    each_run(threads, shape, [&](int64_t b, int64_t row, int64_t left, int count, Scratch& s) {
      depthwise_row<5, 1>(a.at(b, row - 2, left - 2), a.row(), rows_, dw5_, dw5_bias_, count, s.v);
      std::memcpy(near.at(b, row, left), s.v, sizeof(float) * static_cast<size_t>(count * rows_.stride));
    });
    each_run(threads, shape, [&](int64_t b, int64_t row, int64_t left, int count, Scratch& s) {
      const int padded_count = round_up(count, 4);
      const int64_t first = ((b * shape.height + row) * shape.width + left) * rows_.channels;
      depthwise_row<7, 3>(near.at(b, row - 9, left - 9), near.row(), rows_, dw7_, dw7_bias_, count, s.v);
      product(rows_of(s.v, rows_.stride), padded_count, mix_.right(), rows_.vecs, mix_bias_, false, {s.w, rows_.stride});
      normalized(x + first, count, norm, s.u);
      product(rows_of(s.u, rows_.stride), padded_count, g_.right(), rows_.vecs, g_bias_, false, {s.v, rows_.stride});
      for (int i = 0; i < padded_count * rows_.stride; i += kLanes) store(s.v + i, load(s.v + i) * load(s.w + i));
      product(rows_of(s.v, rows_.stride), padded_count, out_.right(), rows_.vecs, out_bias_, false, {s.w, rows_.stride});
      for (int i = 0; i < count; ++i) {
        const int64_t pixel = first + i * rows_.channels;
        add_out(s.w + i * rows_.stride, x + pixel, rows_, y + pixel);
      }
    });
  }

 private:
  struct Scratch {
    explicit Scratch(const Rows& rows) : u(kRun * rows.stride), v(kRun * rows.stride), w(kRun * rows.stride) {}
    Buffer u, v, w;
  };

  // work(batch, row, left, count, scratch) for every run of at most kRun pixels; down a strip of the map before the
  // next, so that the 19 rows that the 7x7 spans are 400 kB and stay in L2.
  template <class Work>
  void each_run(const Threads& threads, const Shape& shape, const Work& work) const {
    const int64_t strips = (shape.width + kRun - 1) / kRun;
    share(threads, shape.batch * strips * shape.height, [&](Units& units) {
      Scratch scratch(rows_);
      for (int64_t unit; units.next(unit);) {
        const int64_t row = unit % shape.height, strip = unit / shape.height % strips, left = strip * kRun;
        const int64_t rest = shape.width - left;
        work(unit / (shape.height * strips), row, left, static_cast<int>(rest < kRun ? rest : kRun), scratch);
      }
    });
  }

  void normalized(const float* pixels, int count, Norm norm, float* u) const {
    for (int i = 0; i < count; ++i) {
      copy_in(pixels + i * rows_.channels, rows_, u + i * rows_.stride);
      normalize(u + i * rows_.stride, rows_, norm, u + i * rows_.stride);
    }
  }

  float element(const float* row, int n) const { return n < rows_.channels ? row[n] : 0.0f; }

  Buffer taps(const float* weight, int count) const {
    Buffer whole(static_cast<int64_t>(count) * rows_.stride);
    for (int i = 0; i < count; ++i) copy_in(weight + i * rows_.channels, rows_, whole + i * rows_.stride);
    return whole;
  }

  Rows rows_;
  Packed a_, g_, mix_, out_;
  Buffer a_bias_, g_bias_, mix_bias_, out_bias_, dw5_, dw7_, dw5_bias_, dw7_bias_;
};

}  // namespace ditn::DITN_LEVEL
