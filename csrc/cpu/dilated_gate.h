// SPDX-License-Identifier: Apache-2.0
// y = x + W_out (g * (W_mix far + b_mix)) + b_out with a, g = W_in norm(x) + b_in and far = dw7x7(dw5x5(a)), dilation 3.
//
// An output pixel sees 11 pixels far, so tiles would compute most of `a` several times. Instead `a` and its 5x5 go
// through memory once, in maps with a border of zeros as wide as the next convolution reaches; everything else is done
// for 64 pixels at a time.
#pragma once

#include "bordered_map.h"
#include "gemm.h"

namespace ditn::DITN_LEVEL {

// kSize x kSize taps on `count` pixels of a row, at corner and right of it; weights [taps, stride]. kTileRows pixels are
// summed at once and each pixel read is used for all of them: 33 loads for the 56 FMAs of a row of the 7x7, not 63.
template <int kSize, int kDilation>
DITN_INLINE void depthwise_row(const float* corner, int64_t row, const Rows& rows, const float* weights, const float* bias,
                               int count, float* out) {
  constexpr int kRead = kTileRows + (kSize - 1) * kDilation;
  const int stride = rows.stride;
  for (int x = 0; x < count; x += kTileRows) {
    for (int j = 0; j < rows.vecs; ++j) {
      const float* from = corner + x * stride + j * kLanes;
      const float* w = weights + j * kLanes;
      Vec acc[kTileRows];
#pragma GCC unroll 8
      for (int i = 0; i < kTileRows; ++i) acc[i] = load(bias + j * kLanes);
      for (int dy = 0; dy < kSize; ++dy, from += kDilation * row, w += kSize * stride) {
        Vec tap[kSize];
#pragma GCC unroll 7
        for (int dx = 0; dx < kSize; ++dx) tap[dx] = load(w + dx * stride);
#pragma GCC unroll 26
        for (int read = 0; read < kRead; ++read) {
          const Vec pixel = load(from + read * stride);
#pragma GCC unroll 7
          for (int dx = 0; dx < kSize; ++dx) {
            const int i = read - dx * kDilation;
            if (i >= 0 && i < kTileRows) acc[i] = fma(tap[dx], pixel, acc[i]);
          }
        }
      }
#pragma GCC unroll 8
      for (int i = 0; i < kTileRows; ++i) store(out + (x + i) * stride + j * kLanes, acc[i]);
    }
  }
}

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

  // The maps between the steps. Their borders are zero and stay so: one pair serves every layer.
  struct Maps {
    Maps(const Shape& shape, const Rows& rows) : a(shape, rows, 2), near(shape, rows, 9) {}
    BorderedMap a, near;
  };

  template <class T>
  void run(const Threads& threads, const Shape& shape, const T* x, T* y, Norm norm, Maps& maps) const {
    BorderedMap &a = maps.a, &near = maps.near;
    each_run(threads, shape, [&](Units& units, const Runs& runs) {
      Scratch s(rows_);
      for (Run run; runs.next(units, run);) {
        normalized(x + run.pixel * rows_.channels, run.count, norm, s.u);
        product<P>(rows_of(s.u, rows_.stride), round_up(run.count, 4), a_.right(), rows_.vecs, a_bias_, false,
                {s.v, rows_.stride});
        put(s.v, run, a);
      }
    });
    each_run(threads, shape, [&](Units& units, const Runs& runs) {
      Scratch s(rows_);
      for (Run run; runs.next(units, run);) {
        depthwise_row<5, 1>(a.at(run.b, run.row - 2, run.left - 2), a.row(), rows_, dw5_, dw5_bias_, run.count, s.v);
        put(s.v, run, near);
      }
    });
    each_run(threads, shape, [&](Units& units, const Runs& runs) {
      Scratch s(rows_);
      for (Run run; runs.next(units, run);) {
        const int count = round_up(run.count, 4);
        const T* pixels = x + run.pixel * rows_.channels;
        const float* corner = near.at(run.b, run.row - 9, run.left - 9);
        depthwise_row<7, 3>(corner, near.row(), rows_, dw7_, dw7_bias_, run.count, s.v);
        P::pack_along(s.v, run.count, rows_.stride, rows_.stride);
        product<P>(rows_of(s.v, rows_.stride), count, mix_.right(), rows_.vecs, mix_bias_, false, {s.w, rows_.stride});
        normalized(pixels, run.count, norm, s.u);
        product<P>(rows_of(s.u, rows_.stride), count, g_.right(), rows_.vecs, g_bias_, false, {s.v, rows_.stride});
        for (int i = 0; i < count * rows_.stride; i += kLanes) store(s.v + i, load(s.v + i) * load(s.w + i));
        P::pack_along(s.v, run.count, rows_.stride, rows_.stride);
        product<P>(rows_of(s.v, rows_.stride), count, out_.right(), rows_.vecs, out_bias_, false, {s.w, rows_.stride});
        for (int i = 0; i < run.count; ++i) {
          const int64_t at = i * static_cast<int64_t>(rows_.channels);
          add_out(s.w + i * rows_.stride, pixels + at, rows_, y + run.pixel * rows_.channels + at);
        }
      }
    });
  }

 private:
  struct Scratch {
    explicit Scratch(const Rows& rows) : u(kRun * rows.stride), v(kRun * rows.stride), w(kRun * rows.stride) {}
    Buffer u, v, w;
  };

  void put(const float* row, const Run& run, BorderedMap& map) const {
    std::memcpy(map.at(run.b, run.row, run.left), row, sizeof(float) * static_cast<size_t>(run.count * rows_.stride));
  }

  template <class T>
  void normalized(const T* pixels, int count, Norm norm, float* u) const {
    for (int i = 0; i < count; ++i) {
      copy_in(pixels + i * rows_.channels, rows_, u + i * rows_.stride);
      normalize(u + i * rows_.stride, rows_, norm, u + i * rows_.stride);
    }
    P::pack_along(u, count, rows_.stride, rows_.stride);
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
