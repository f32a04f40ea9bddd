// SPDX-License-Identifier: Apache-2.0
// y = x + W_out (gelu(d1) * d2) + b_out with d = dw3x3(W_in norm(x) + b_in) + b_dw, inside patches or on the whole map.
//
// The hidden map is never whole: a patch has a slice of its channels at a time, in L1; a map has three lines of it, in L2.
// Either way it lies in planes of one vector per pixel, where the taps find their neighbours, with zeros around.
#pragma once

#include "depthwise.h"
#include "gemm.h"
#include "strips.h"

namespace ditn::DITN_LEVEL {

template <class P>
class GatedFfn {
 public:
  GatedFfn(const Ffn& w, int channels)
      : rows_(channels),
        gated_(vecs_for(w.expanded) * kLanes),
        parts_((vecs_for(w.expanded) + kSlice - 1) / kSlice, [&](int i) { return new Part(w, rows_, i * kSlice); }),
        out_(w.expanded, rows_.vecs, [&](int k, int n) {
          return n < channels ? w.out_weight[static_cast<int64_t>(k) * channels + n] : 0.0f;
        }),
        out_bias_(padded(w.out_bias, channels)) {}

  // A patch of size x size pixels: planes with a border of one pixel, which stays zero.
  struct Patch {
    Patch(const Rows& rows, int expanded, int size)
        : size(size), pitch(size + 2), plane(static_cast<int64_t>(pitch) * pitch * kLanes), hidden(2 * kSlice * plane),
          u(static_cast<int64_t>(size) * size * rows.stride),
          gated(static_cast<int64_t>(size) * size * vecs_for(expanded) * kLanes) {}
    int size, pitch;
    int64_t plane;
    Buffer hidden, u, gated;
  };

  // x: [pixels, stride], updated in place.
  void run_patch(float* x, Norm norm, Patch& s) const {
    const int pixels = s.size * s.size, stride = rows_.stride, row = s.pitch * kLanes;
    for (int i = 0; i < pixels; ++i) normalize(x + i * stride, rows_, norm, s.u + i * stride);
    P::pack_along(s.u, pixels, stride, stride);
    for (int i = 0; i < parts_.count(); ++i) {
      const Part& part = parts_[i];
      product<P>(rows_of(s.u, stride), pixels, part.in.right(), 2 * part.vecs, part.in_bias, false,
                 {s.hidden + row + kLanes, kLanes, s.plane, s.size, row});
      for (int j = 0; j < part.vecs; ++j) {
        for (int r = 0; r < s.size; ++r) {
          const float* first = s.hidden + j * s.plane + r * row;
          const float* second = first + part.vecs * s.plane;
          gate(part, j, {first, first + row, first + 2 * row}, {second, second + row, second + 2 * row}, s.size,
               s.gated + r * s.size * gated_);
        }
      }
    }
    P::pack_along(s.gated, pixels, gated_, gated_);
    product<P>(rows_of(s.gated, gated_), pixels, out_.right(), rows_.vecs, out_bias_, false, {s.u, stride});
    for (int i = 0; i < pixels * stride; i += kLanes) store(x + i, load(x + i) + load(s.u + i));
  }

  template <class T>
  void run_map(const Threads& threads, const Shape& shape, const T* x, T* y, Norm norm) const {
    const Strips strips(shape, threads.count());
    share(threads, strips.count(), [&](Units& units) {
      Lines hidden(2 * gated_ / kLanes, 3, 1);
      Buffer u(kLine * rows_.stride), gated(kLine * gated_);
      for (Strip strip; strips.next(units, strip);) {
        hidden.start(strip, shape.width);
        for (int64_t row = strip.top - 1; row <= strip.bottom; ++row) {
          if (row < 0 || row >= shape.height) {
            hidden.clear(row);
          } else {
            normalized<P>(x + pixel_of(shape, strip.b, row, hidden.first()) * shape.channels, hidden.count(), rows_, norm, u);
            expand(u, row, hidden);
          }
          if (row <= strip.top) continue;
          const int count = static_cast<int>(strip.right - strip.left);
          for (int i = 0; i < parts_.count(); ++i) gate(parts_[i], row - 1, strip.left, count, hidden, gated);
          P::pack_along(gated, count, gated_, gated_);
          product<P>(rows_of(gated, gated_), round_up(count, 4), out_.right(), rows_.vecs, out_bias_, false, {u, rows_.stride});
          const int64_t at = pixel_of(shape, strip.b, row - 1, strip.left) * shape.channels;
          for (int i = 0; i < count; ++i) {
            add_out(u + i * rows_.stride, x + at + i * rows_.channels, rows_, y + at + i * rows_.channels);
          }
        }
      }
    });
  }

 private:
  static constexpr int kSlice = 32 / kLanes;  // vectors of each half that are taken at a time
  static constexpr int kPixels = 4;           // the taps of both halves: 8 sums and 3 taps, for 16 registers
  static constexpr int kLine = kStrip + 2 + kPixels;

  // The weights of one slice: `vecs` vectors of the first half, then as many of the second.
  struct Part {
    Part(const Ffn& w, const Rows& rows, int begin)
        : first(begin),
          vecs(vecs_for(w.expanded) - first < kSlice ? vecs_for(w.expanded) - first : kSlice),
          in(rows.channels, 2 * vecs,
             [&](int k, int n) { return both(w.in_weight + static_cast<int64_t>(k) * 2 * w.expanded, n, w.expanded); }),
          in_bias(2 * vecs * kLanes),
          dw(9 * 2 * vecs * kLanes),
          dw_bias(2 * vecs * kLanes) {
      for (int n = 0; n < 2 * vecs * kLanes; ++n) {
        in_bias[n] = both(w.in_bias, n, w.expanded);
        dw_bias[n] = both(w.dw_bias, n, w.expanded);
        for (int tap = 0; tap < 9; ++tap) {
          dw[(n / kLanes * 9 + tap) * kLanes + n % kLanes] = both(w.dw_weight + tap * 2 * w.expanded, n, w.expanded);
        }
      }
    }
    // Element n of this slice of a row [2E].
    float both(const float* row, int n, int expanded) const {
      const int half = n / (vecs * kLanes), e = first * kLanes + n % (vecs * kLanes);
      return e < expanded ? row[half * expanded + e] : 0.0f;
    }

    int first, vecs;
    PackedAs<P> in;
    Buffer in_bias, dw, dw_bias;  // dw: [2 * vecs, 9, kLanes]
  };

  // The hidden line of a row from its normalised pixels. Slices lie one behind the other.
  void expand(const float* u, int64_t row, Lines& hidden) const {
    for (int i = 0; i < parts_.count(); ++i) {
      const Part& part = parts_[i];
      product<P>(rows_of(u, rows_.stride), round_up(hidden.count(), 4), part.in.right(), 2 * part.vecs, part.in_bias, false,
                 {hidden.at(2 * part.first, row, hidden.first()), kLanes, hidden.plane()});
    }
    hidden.trim(row);
  }

  // A slice of one row of a map.
  void gate(const Part& part, int64_t row, int64_t left, int count, Lines& hidden, float* gated) const {
    for (int j = 0; j < part.vecs; ++j) {
      const float *first[3], *second[3];
      for (int dy = 0; dy < 3; ++dy) {
        first[dy] = hidden.at(2 * part.first + j, row - 1 + dy, left - 1);
        second[dy] = first[dy] + part.vecs * hidden.plane();
      }
      gate(part, j, first, second, count, gated);
    }
  }

  // gelu(d1) * d2 for one vector of channels of `count` pixels of a row, rounded up to kPixels.
  void gate(const Part& part, int j, const float* const (&first)[3], const float* const (&second)[3], int count,
            float* gated) const {
    const float *taps1 = part.dw + j * 9 * kLanes, *taps2 = taps1 + part.vecs * 9 * kLanes;
    const Vec bias1 = load(part.dw_bias + j * kLanes), bias2 = load(part.dw_bias + (part.vecs + j) * kLanes);
    float* out = gated + (part.first + j) * kLanes;
    for (int x = 0; x < count; x += kPixels) {
      const int64_t at = x * kLanes;
      const float *lines1[] = {first[0] + at, first[1] + at, first[2] + at};
      const float *lines2[] = {second[0] + at, second[1] + at, second[2] + at};
      Vec d1[kPixels], d2[kPixels];
      depthwise<kPixels, 3, 1>(lines1, kLanes, taps1, kLanes, bias1, d1);
      depthwise<kPixels, 3, 1>(lines2, kLanes, taps2, kLanes, bias2, d2);
#pragma GCC unroll 4
      for (int i = 0; i < kPixels; ++i) store(out + (x + i) * static_cast<int64_t>(gated_), gelu(d1[i]) * d2[i]);
    }
  }

  Rows rows_;
  int gated_;  // floats of a pixel behind the gate
  Several<Part> parts_;
  PackedAs<P> out_;
  Buffer out_bias_;
};

}  // namespace ditn::DITN_LEVEL
