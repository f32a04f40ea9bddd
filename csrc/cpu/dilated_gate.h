// SPDX-License-Identifier: Apache-2.0
// y = x + W_out (g * (W_mix far + b_mix)) + b_out with a, g = W_in norm(x) + b_in and far = dw7x7(dw5x5(a)), dilation 3.
//
// An output pixel sees 11 pixels far. Down a strip of the map, five lines of `a` and nineteen of its 5x5 are kept, as
// planes of one vector per pixel, and neither is ever whole; everything else is done for one line at a time.
#pragma once

#include "depthwise.h"
#include "gemm.h"
#include "strips.h"

namespace ditn::DITN_LEVEL {

template <class P>
class MapGate {
 public:
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

  template <class T>
  void run(const Threads& threads, const Shape& shape, const T* x, T* y, Norm norm) const {
    const Strips strips(shape, threads.count());
    share(threads, strips.count(), [&](Units& units) {
      Lines a(rows_.vecs, 5, kNear + kFar), near(rows_.vecs, 19, kFar);
      Scratch s(rows_);
      const int64_t way = shape.width * shape.channels;
      const auto inside = [&](int64_t row) { return row >= 0 && row < shape.height; };
      for (Strip strip; strips.next(units, strip);) {
        a.start(strip, shape.width);
        near.start(strip, shape.width);
        for (int64_t row = strip.top - kFar; row < strip.bottom + kFar; ++row) {
          // `row` is the next line of the 5x5, which needs two more of `a`.
          for (int64_t next = row == strip.top - kFar ? row - kNear : row + kNear; next <= row + kNear; ++next) {
            if (inside(next)) {
              enter(x + pixel_of(shape, strip.b, next, a.first()) * shape.channels, next, norm, s, a);
            } else {
              a.clear(next);
            }
          }
          if (inside(row)) {
            const T* following = x + pixel_of(shape, strip.b, row + kNear + 1, a.first()) * shape.channels;
            convolve_near(row, a, near, Ahead<T>(following, a.count(), rows_));
          } else {
            near.clear(row);
          }
          if (row < strip.top + kFar) continue;
          const int64_t at = pixel_of(shape, strip.b, row - kFar, strip.left) * shape.channels;
          leave(x + at, way, row - kFar, strip, norm, s, near, y + at);
        }
      }
    });
  }

 private:
  static constexpr int kNear = 2, kFar = 9;  // how far the convolutions reach
  static constexpr int kLine = kStrip + 2 * (kNear + kFar) + kTileRows;

  struct Scratch {
    explicit Scratch(const Rows& rows) : u(kLine * rows.stride), v(kLine * rows.stride), w(kLine * rows.stride) {}
    Buffer u, v, w;
  };

  // a = W_a norm(x) + b_a
  template <class T>
  void enter(const T* x, int64_t row, Norm norm, Scratch& s, Lines& a) const {
    normalized<P>(x, a.count(), rows_, norm, s.u);
    product<P>(rows_of(s.u, rows_.stride), round_up(a.count(), 4), a_.right(), rows_.vecs, a_bias_, false,
               {a.at(0, row, a.first()), kLanes, a.plane()});
    a.trim(row);
  }

  template <class T>
  void convolve_near(int64_t row, Lines& a, Lines& near, Ahead<T> following) const {
    for (int j = 0; j < rows_.vecs; ++j) {
      line<kTileRows, 5, 1>(a, j, row - kNear, near.first() - kNear, dw5_, dw5_bias_, near.count(),
                            near.at(j, row, near.first()), kLanes, [&] { following.ask(2); });
    }
    near.trim(row);
  }

  template <class T>
  void leave(const T* x, int64_t way, int64_t row, const Strip& strip, Norm norm, Scratch& s, Lines& near, T* y) const {
    const int pixels = static_cast<int>(strip.right - strip.left), count = round_up(pixels, 4), stride = rows_.stride;
    Ahead<T> following(x + way, pixels, rows_);
    Ahead<T, true> result(y, pixels, rows_);
    for (int j = 0; j < rows_.vecs; ++j) {
      line<2 * kTileRows, 7, 3>(near, j, row - kFar, strip.left - kFar, dw7_, dw7_bias_, pixels, s.v + j * kLanes, stride, [&] {
        following.ask(4);
        result.ask(4);
      });
    }
    P::pack_along(s.v, pixels, stride, stride);
    product<P>(rows_of(s.v, stride), count, mix_.right(), rows_.vecs, mix_bias_, false, {s.w, stride});
    normalized<P>(x, pixels, rows_, norm, s.u);
    product<P>(rows_of(s.u, stride), count, g_.right(), rows_.vecs, g_bias_, false, {s.v, stride});
    for (int i = 0; i < count * stride; i += kLanes) store(s.v + i, load(s.v + i) * load(s.w + i));
    P::pack_along(s.v, pixels, stride, stride);
    product<P>(rows_of(s.v, stride), count, out_.right(), rows_.vecs, out_bias_, false, {s.w, stride});
    for (int i = 0; i < pixels; ++i) {
      add_out(s.w + i * stride, x + i * rows_.channels, rows_, y + i * rows_.channels);
    }
  }

  // One vector of channels of `count` pixels of a row, rounded up to kPixels, by taps whose first is at (row, column);
  // between() comes before every kPixels.
  template <int kPixels, int kSize, int kDilation, class Between>
  static void line(Lines& from, int j, int64_t row, int64_t column, const float* taps, const float* bias, int count, float* out,
                   int64_t step, const Between& between) {
    const int64_t tap_step = from.planes() * kLanes;
    const float* lines[kSize];
    for (int dy = 0; dy < kSize; ++dy) lines[dy] = from.at(j, row + dy * kDilation, column);
    for (int x = 0; x < count; x += kPixels) {
      between();
      Vec acc[kPixels];
      depthwise<kPixels, kSize, kDilation>(lines, kLanes, taps + j * kLanes, tap_step, load(bias + j * kLanes), acc);
#pragma GCC unroll 16
      for (int i = 0; i < kPixels; ++i) store(out + (x + i) * step, acc[i]);
      for (const float*& p : lines) p += kPixels * kLanes;
    }
  }

  float element(const float* row, int n) const { return n < rows_.channels ? row[n] : 0.0f; }

  Buffer taps(const float* weight, int count) const {
    Buffer whole(static_cast<int64_t>(count) * rows_.stride);
    for (int i = 0; i < count; ++i) copy_in(weight + i * rows_.channels, rows_, whole + i * rows_.stride);
    return whole;
  }

  Rows rows_;
  PackedAs<P> a_, g_, mix_, out_;
  Buffer a_bias_, g_bias_, mix_bias_, out_bias_, dw5_, dw7_, dw5_bias_, dw7_bias_;
};

}  // namespace ditn::DITN_LEVEL
