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
      product<P>(rows_of(s.u, stride), pixels, part.in.right(), part.planes(), part.in_bias, false,
                 {s.hidden + row + kLanes, kLanes, s.plane, s.size, row});
      for (int r = 0; r < s.size; ++r) {
        gate(part, [&](int plane) {
          const float* top = s.hidden + plane * s.plane + r * row;
          return Around{{top, top + row, top + 2 * row}};
        }, s.size, s.gated + r * s.size * gated_, [] {});
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
      Lines hidden(planes(), 3, 1);
      Buffer u(kLine * rows_.stride), gated(kLine * gated_);
      for (Strip strip; strips.next(units, strip);) {
        hidden.start(strip, shape.width);
        for (int64_t row = strip.top - 1; row <= strip.bottom; ++row) {
          if (row < 0 || row >= shape.height) {
            hidden.clear(row);
          } else {
            const T* pixels = x + pixel_of(shape, strip.b, row, hidden.first()) * shape.channels;
            normalized<P>(pixels, hidden.count(), rows_, norm, u);
            expand(u, row, hidden);
          }
          if (row <= strip.top) continue;
          const int count = static_cast<int>(strip.right - strip.left);
          const int64_t at = pixel_of(shape, strip.b, row - 1, strip.left) * shape.channels;
          Ahead<T> following(x + pixel_of(shape, strip.b, row + 1, hidden.first()) * shape.channels, hidden.count(), rows_);
          Ahead<T, true> result(y + at, count, rows_);
          for (int i = 0; i < parts_.count(); ++i) {
            gate(parts_[i], [&](int plane) {
              const int whole = 2 * parts_[i].first + plane;  // its number among the planes of all slices
              return Around{{hidden.at(whole, row - 2, strip.left - 1), hidden.at(whole, row - 1, strip.left - 1),
                             hidden.at(whole, row, strip.left - 1)}};
            }, count, gated, [&] {
              following.ask(2);
              result.ask(2);
            });
          }
          P::pack_along(gated, count, gated_, gated_);
          product<P>(rows_of(gated, gated_), round_up(count, 4), out_.right(), rows_.vecs, out_bias_, false, {u, rows_.stride});
          for (int i = 0; i < count; ++i) {
            add_out(u + i * rows_.stride, x + at + i * rows_.channels, rows_, y + at + i * rows_.channels);
          }
        }
      }
    });
  }

 private:
  static constexpr int kSlice = 32 / kLanes;  // vectors of each half that are taken at a time
  static constexpr int kLine = kStrip + 2 + kTileRows;

  // The weights of one slice: planes of `pairs` vectors of the first half, as many of the second, and, where what is left
  // fills half a vector at most, one `mixed` plane with both halves' rest.
  struct Part {
    Part(const Ffn& w, const Rows& rows, int begin)
        : expanded(w.expanded),
          first(begin),
          mixed(w.expanded / kLanes - first < kSlice && w.expanded % kLanes > 0 && w.expanded % kLanes <= kLanes / 2),
          pairs(static_cast<int>(smaller(kSlice, (mixed ? w.expanded / kLanes : vecs_for(w.expanded)) - first))),
          in(rows.channels, planes(),
             [&](int k, int n) { return both(w.in_weight + static_cast<int64_t>(k) * 2 * expanded, n); }),
          in_bias(planes() * kLanes),
          dw(9 * planes() * kLanes),
          dw_bias(planes() * kLanes) {
      for (int n = 0; n < planes() * kLanes; ++n) {
        in_bias[n] = both(w.in_bias, n);
        dw_bias[n] = both(w.dw_bias, n);
        for (int tap = 0; tap < 9; ++tap) {
          dw[(n / kLanes * 9 + tap) * kLanes + n % kLanes] = both(w.dw_weight + tap * 2 * expanded, n);
        }
      }
    }
    int planes() const { return 2 * pairs + mixed; }
    // Element n of this slice of a row [2E].
    float both(const float* row, int n) const {
      const bool rest = n >= 2 * pairs * kLanes;
      const int size = rest ? kLanes / 2 : pairs * kLanes, at = rest ? n - 2 * pairs * kLanes : n;
      const int e = (first + (rest ? pairs : 0)) * kLanes + at % size;
      return e < expanded ? row[at / size * expanded + e] : 0.0f;
    }

    int expanded, first, mixed, pairs;
    PackedAs<P> in;
    Buffer in_bias, dw, dw_bias;  // dw: [planes, 9, kLanes]
  };

  int planes() const {
    const Part& last = parts_[parts_.count() - 1];
    return 2 * last.first + last.planes();
  }

  // The hidden line of a row from its normalised pixels. Slices lie one behind the other.
  void expand(const float* u, int64_t row, Lines& hidden) const {
    for (int i = 0; i < parts_.count(); ++i) {
      const Part& part = parts_[i];
      product<P>(rows_of(u, rows_.stride), round_up(hidden.count(), 4), part.in.right(), part.planes(), part.in_bias, false,
                 {hidden.at(2 * part.first, row, hidden.first()), kLanes, hidden.plane()});
    }
    hidden.trim(row);
  }

  // Three lines of a plane, from the column left of the first result.
  struct Around {
    const float* lines[3];
  };

  // gelu(d1) * d2 for a slice of `count` pixels of a row, rounded up to four; around(plane) is where they are. between()
  // comes before every few pixels.
  template <class Where, class Between>
  void gate(const Part& part, const Where& around, int count, float* gated, const Between& between) const {
    if (count % kTileRows) return gate_by<4>(part, around, count, gated, between);
    gate_by<kTileRows>(part, around, count, gated, between);
  }

  template <int kPixels, class Where, class Between>
  void gate_by(const Part& part, const Where& around, int count, float* gated, const Between& between) const {
    float* out = gated + part.first * kLanes;
    for (int j = 0; j < part.pairs; ++j, out += kLanes) {
      const Around here = around(j), there = around(part.pairs + j);
      for (int x = 0; x < count; x += kPixels) {
        between();
        Vec d1[kPixels], d2[kPixels];
        convolve(part, j, here, x, d1);
        convolve(part, part.pairs + j, there, x, d2);
#pragma GCC unroll 8
        for (int i = 0; i < kPixels; ++i) store(out + (x + i) * static_cast<int64_t>(gated_), gelu(d1[i]) * d2[i]);
      }
    }
    if (part.mixed) {
      const Around here = around(2 * part.pairs);
      for (int x = 0; x < count; x += kPixels) {
        between();
        Vec d[kPixels];
        convolve(part, 2 * part.pairs, here, x, d);
#pragma GCC unroll 8
        for (int i = 0; i < kPixels; ++i) store(out + (x + i) * static_cast<int64_t>(gated_), gelu(d[i]) * swap_halves(d[i]));
      }
    }
  }

  template <int kPixels>
  DITN_INLINE void convolve(const Part& part, int plane, const Around& around, int x, Vec (&d)[kPixels]) {
    const int64_t at = x * kLanes;
    const float* lines[] = {around.lines[0] + at, around.lines[1] + at, around.lines[2] + at};
    depthwise<kPixels, 3, 1>(lines, kLanes, part.dw + plane * 9 * kLanes, kLanes, load(part.dw_bias + plane * kLanes), d);
  }

  Rows rows_;
  int gated_;  // floats of a pixel behind the gate
  Several<Part> parts_;
  PackedAs<P> out_;
  Buffer out_bias_;
};

}  // namespace ditn::DITN_LEVEL
