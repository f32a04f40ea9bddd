// SPDX-License-Identifier: Apache-2.0
// W_out (gelu(d1) * d2) + b_out with d = dw3x3(W_in u + b_in) + b_dw, for one window: a patch, or a tile of the map.
//
// The hidden map exists for a slice of channels at a time, in planes of one vector per pixel with a border of one pixel:
// 4 planes of 18 x 32 pixels are 147 kB, which stay in L2 while the 3x3 taps read them.
#pragma once

#include "gemm.h"
#include "norm.h"

namespace ditn::DITN_LEVEL {

// A window of height x width pixels and the planes around it: `pitch` columns, height + 2 rows.
struct Window {
  int height, width, pitch;
  int pixels() const { return height * width; }
  int64_t plane() const { return static_cast<int64_t>(height + 2) * pitch * kLanes; }
};

template <class P>
class WindowFfn {
 public:
  static constexpr int kSlice = 32 / kLanes;  // vectors of each half that are taken at a time

  WindowFfn(const Ffn& w, int channels)
      : rows_(channels),
        slices_((vecs_for(w.expanded) + kSlice - 1) / kSlice),
        parts_(slices_, [&](int i) { return new Part(w, rows_, i); }),
        out_bias_(padded(w.out_bias, channels)) {}

  struct Scratch {
    Scratch(const Rows& rows, const Window& most)
        : u(static_cast<int64_t>(most.height + 2) * most.pitch * rows.stride),
          hidden(2 * kSlice * most.plane()),
          gated(static_cast<int64_t>(round_up(most.pixels(), 4)) * kSlice * kLanes),
          y(static_cast<int64_t>(round_up(most.pixels(), 4)) * rows.stride),
          zeros(rows.stride) {}
    Buffer u, hidden, gated, y, zeros;
  };

  // s.u holds the normalised pixels of a patch in words along the channels, [pixels, stride]. The border of s.hidden is zero and stays so.
  // Afterwards s.y holds the result, [pixels, stride].
  void run_patch(const Window& window, Scratch& s) const {
    for (int i = 0; i < slices_; ++i) {
      float* inside = s.hidden + (window.pitch + 1) * kLanes;
      product<P>(rows_of(s.u, rows_.stride), window.pixels(), parts_[i].in.right(), 2 * parts_[i].vecs, parts_[i].in_bias,
              false, {inside, kLanes, window.plane(), window.width, static_cast<int64_t>(window.pitch) * kLanes});
      finish(i, window, s);
    }
  }

  // s.u holds the pixels of the window and its border likewise, [height + 2, pitch, stride]; outside(row, column) tells of
  // a border pixel whether it lies outside the map, where the hidden map is zero.
  template <class Outside>
  void run_tile(const Window& window, const Outside& outside, Scratch& s) const {
    const int all = (window.height + 2) * window.pitch;
    for (int i = 0; i < slices_; ++i) {
      const int planes = 2 * parts_[i].vecs;
      product<P>(rows_of(s.u, rows_.stride), all, parts_[i].in.right(), planes, parts_[i].in_bias, false,
              {s.hidden, kLanes, window.plane()});
      for (int r = 0; r < window.height + 2; ++r) {
        for (int c = 0; c < window.width + 2; ++c) {
          const bool border = r == 0 || c == 0 || r == window.height + 1 || c == window.width + 1;
          if (!border || !outside(r, c)) continue;
          for (int j = 0; j < planes; ++j) store(s.hidden + j * window.plane() + (r * window.pitch + c) * kLanes, splat(0.0f));
        }
      }
      finish(i, window, s);
    }
  }

 private:
  // The weights of one slice: `vecs` vectors of the first half, then as many of the second.
  struct Part {
    Part(const Ffn& w, const Rows& rows, int slice)
        : first(slice * kSlice),
          vecs(vecs_for(w.expanded) - first < kSlice ? vecs_for(w.expanded) - first : kSlice),
          in(rows.channels, 2 * vecs, [&](int k, int n) { return both(w.in_weight + static_cast<int64_t>(k) * 2 * w.expanded, n, w.expanded); }),
          in_bias(2 * vecs * kLanes),
          dw(9 * 2 * vecs * kLanes),
          dw_bias(2 * vecs * kLanes),
          out(vecs * kLanes, rows.vecs, [&](int k, int n) {
            const int e = first * kLanes + k;
            return e < w.expanded && n < rows.channels ? w.out_weight[static_cast<int64_t>(e) * rows.channels + n] : 0.0f;
          }) {
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
    PackedAs<P> out;
  };

  // The taps, the gate and the slice's share of the last product.
  void finish(int slice, const Window& window, Scratch& s) const {
    const Part& part = parts_[slice];
    const int row = part.vecs * kLanes;
    for (int j = 0; j < part.vecs; ++j) {
      const float* planes[2] = {s.hidden + j * window.plane(), s.hidden + (part.vecs + j) * window.plane()};
      gate(window, planes, part.dw + j * 9 * kLanes, part.dw + (part.vecs + j) * 9 * kLanes,
           load(part.dw_bias + j * kLanes), load(part.dw_bias + (part.vecs + j) * kLanes), s.gated + j * kLanes, row);
    }
    P::pack_along(s.gated, window.pixels(), row, row);
    product<P>(rows_of(s.gated, row), round_up(window.pixels(), 4), part.out.right(), rows_.vecs,
            slice ? static_cast<const float*>(s.zeros) : static_cast<const float*>(out_bias_), slice > 0, {s.y, rows_.stride});
  }

  static void gate(const Window& window, const float* const planes[2], const float* first_taps, const float* second_taps,
                   Vec first_bias, Vec second_bias, float* out, int64_t out_row) {
    const int64_t pitch = static_cast<int64_t>(window.pitch) * kLanes;
    Vec w1[9], w2[9];
#pragma GCC unroll 9
    for (int tap = 0; tap < 9; ++tap) {
      w1[tap] = load(first_taps + tap * kLanes);
      w2[tap] = load(second_taps + tap * kLanes);
    }
    for (int r = 0; r < window.height; ++r) {
      const float *a = planes[0] + r * pitch, *b = planes[1] + r * pitch;
      for (int c = 0; c < window.width; ++c, a += kLanes, b += kLanes, out += out_row) {
        Vec d1 = first_bias, d2 = second_bias;
#pragma GCC unroll 9
        for (int tap = 0; tap < 9; ++tap) {
          const int64_t at = tap / 3 * pitch + tap % 3 * kLanes;
          d1 = fma(w1[tap], load(a + at), d1);
          d2 = fma(w2[tap], load(b + at), d2);
        }
        store(out, gelu(d1) * d2);
      }
    }
  }

  Rows rows_;
  int slices_;
  Several<Part> parts_;
  Buffer out_bias_;
};

}  // namespace ditn::DITN_LEVEL
