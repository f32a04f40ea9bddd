// SPDX-License-Identifier: Apache-2.0
// Gradients of x + W_out (gelu(d1) * d2) + b_out with d = dw3x3(W_in u + b_in) + b_dw, for one tile: a patch, or a
// piece of the map.
//
// As in the forward pass the hidden map exists for a slice of channels at a time, in planes of one vector per pixel: it
// is made again, then its gradient. A tile of the map needs the gradient of d for one more pixel around it, and for
// that the hidden map for two: with 16 x 48 pixels a ninth of the multiplications is done twice.
#pragma once

#include "gemm.h"
#include "norm_backward.h"
#include "sums.h"
#include "tile.h"

namespace ditn::DITN_LEVEL {

template <class P>
class TileFfnBackward {
 public:
  static constexpr int kSlice = 32 / kLanes;  // vectors of each half that are taken at a time

  TileFfnBackward(const Ffn& w, int channels)
      : rows_(channels), expanded_(w.expanded), row_(2 * vecs_for(w.expanded) * kLanes),
        parts_((vecs_for(w.expanded) + kSlice - 1) / kSlice, [&](int i) { return new Part(w, rows_, i * kSlice); }) {}

  struct Scratch {
    Scratch(const Rows& rows, const Tile& most)
        : pitch(most.width + 7), plane(static_cast<int64_t>(most.height + 4) * pitch * kLanes),
          u(most.within(2).height * static_cast<int64_t>(most.within(2).pitch()) * rows.stride),
          g(most.within(1).height * static_cast<int64_t>(most.within(1).pitch()) * rows.stride),
          inner_u(static_cast<int64_t>(most.pixels()) * rows.stride),
          inner_g(static_cast<int64_t>(most.pixels()) * rows.stride), hidden(2 * kSlice * plane),
          dmixed(2 * kSlice * plane),
          dgated(most.within(1).height * static_cast<int64_t>(most.within(1).pitch()) * kSlice * kLanes),
          gated(static_cast<int64_t>(most.pixels()) * kSlice * kLanes),
          dhidden(round_up(most.pixels(), 4) * static_cast<int64_t>(2 * kSlice * kLanes)),
          u_words(words<P>(most.pixels() * static_cast<int64_t>(rows.stride))),
          dhidden_words(words<P>(most.pixels() * static_cast<int64_t>(2 * kSlice * kLanes))),
          du(round_up(most.pixels(), 4) * static_cast<int64_t>(rows.stride)), scales(most.pixels()),
          zeros(rows.stride > 2 * kSlice * kLanes ? rows.stride : 2 * kSlice * kLanes) {}
    // From the planes' (0, 0) to the pixel (r, c) of the tile, which lies two rows and columns inside.
    int64_t at(int r, int c) const { return (static_cast<int64_t>(r + 2) * pitch + c + 2) * kLanes; }

    int pitch;
    int64_t plane;
    Buffer u, g;              // rows of the tile and two, of the tile and one pixel around it
    Buffer inner_u, inner_g;  // of the tile
    Buffer hidden, dmixed;    // planes; zero where there is no pixel
    Buffer dgated, gated, dhidden, u_words, dhidden_words, du;
    Buffer scales;  // of inner_u, as normalize() returned them
    Buffer zeros;
    Tile last{};
  };

  int64_t sums() const { return where_.end; }

  // From u and g, inner_u and inner_g to du, [pixels, stride], the gradient of u. Afterwards inner_u alone is what it was.
  void run(const Tile& tile, Scratch& s, float* sums) const {
    if (!(tile == s.last)) {
      std::memset(s.hidden, 0, sizeof(float) * static_cast<size_t>(2 * kSlice * s.plane));
      std::memset(s.dmixed, 0, sizeof(float) * static_cast<size_t>(2 * kSlice * s.plane));
      s.last = tile;
    }
    const Area around = tile.within(1), wide = tile.within(2);
    const int pixels = tile.pixels(), stride = rows_.stride, count = parts_count();
    add_rows(s.inner_g, pixels, stride, rows_.vecs, sums + where_.out_bias);
    const Right g = down<P>(s.inner_g, pixels, stride, stride, s.inner_g);
    const Left u = across<P>(s.inner_u, pixels, stride, stride, s.u_words);
    P::pack_along(s.u, wide.height * wide.pitch(), stride, stride);
    P::pack_along(s.g, around.height * around.pitch(), stride, stride);
    for (int i = 0; i < count; ++i) {
      const Part& part = parts_[i];
      const int row = part.vecs * kLanes, column = 2 * part.first * kLanes;
      make_hidden(part, tile, s);
      product<P>(rows_of(s.g, stride), around.height * around.pitch(), part.out_transposed.right(), part.vecs, s.zeros,
                 false, {s.dgated, row});
      for (int j = 0; j < part.vecs; ++j) gate_backward(part, j, tile, s);
      product<P>(across<P>(s.gated, pixels, row, row, s.gated), row, g, rows_.vecs, s.zeros, true,
                 {sums + where_.out + static_cast<int64_t>(part.first) * kLanes * stride, stride});
      for (int j = 0; j < 2 * part.vecs; ++j) {
        taps_backward(part, j, tile, s, sums + where_.dw + (2 * part.first + j) * 10 * kLanes);
      }
      add_rows(s.dhidden, pixels, 2 * row, 2 * part.vecs, sums + where_.in_bias + column);
      product<P>(u, round_up(rows_.channels, 4), down<P>(s.dhidden, pixels, 2 * row, 2 * row, s.dhidden_words),
                 2 * part.vecs, s.zeros, true, {sums + where_.in + column, row_});
      product<P>(along<P>(s.dhidden, pixels, 2 * row, 2 * row, s.dhidden), round_up(pixels, 4),
                 part.in_transposed.right(), rows_.vecs, s.zeros, i > 0, {s.du, stride});
    }
  }

  void write(const float* sums, const FfnOf<float>& gradient) const {
    const int64_t channels = rows_.channels, width = 2 * expanded_;
    for (int i = 0; i < parts_count(); ++i) {
      const Part& part = parts_[i];
      for (int n = 0; n < 2 * part.vecs * kLanes; ++n) {
        const int64_t to = part.source(n, expanded_), from = 2 * part.first * kLanes + n;
        if (to < 0) continue;
        for (int64_t k = 0; k < channels; ++k) gradient.in_weight[k * width + to] = sums[where_.in + k * row_ + from];
        gradient.in_bias[to] = sums[where_.in_bias + from];
        const float* taps = sums + where_.dw + from / kLanes * 10 * kLanes + from % kLanes;
        for (int tap = 0; tap < 9; ++tap) gradient.dw_weight[tap * width + to] = taps[tap * kLanes];
        gradient.dw_bias[to] = taps[9 * kLanes];
      }
    }
    write_rows(sums + where_.out, expanded_, rows_.stride, rows_.channels, gradient.out_weight, channels);
    write_rows(sums + where_.out_bias, 1, 0, rows_.channels, gradient.out_bias, 0);
  }

 private:
  // The weights of one slice: `vecs` vectors of the first half, then as many of the second.
  struct Part {
    Part(const Ffn& w, const Rows& rows, int first)
        : first(first), vecs(vecs_for(w.expanded) - first < kSlice ? vecs_for(w.expanded) - first : kSlice),
          in(rows.channels, 2 * vecs, [&](int k, int n) { return element(w.in_weight, k, n, w.expanded); }),
          in_transposed(
              2 * vecs * kLanes, rows.vecs,
              [&](int k, int n) { return n < rows.channels ? element(w.in_weight, n, k, w.expanded) : 0.0f; }),
          out_transposed(rows.channels, vecs,
                         [&](int k, int n) {
                           const int64_t e = first * kLanes + n;
                           return e < w.expanded ? w.out_weight[e * rows.channels + k] : 0.0f;
                         }),
          in_bias(2 * vecs * kLanes), dw(2 * vecs * 10 * kLanes) {
      for (int n = 0; n < 2 * vecs * kLanes; ++n) {
        in_bias[n] = element(w.in_bias, 0, n, w.expanded);
        float* taps = dw + n / kLanes * 10 * kLanes + n % kLanes;
        for (int tap = 0; tap < 9; ++tap) taps[tap * kLanes] = element(w.dw_weight, tap, n, w.expanded);
        taps[9 * kLanes] = element(w.dw_bias, 0, n, w.expanded);
      }
    }
    // Where element n of this slice lies in a row [2E]; -1 behind the last channel.
    int64_t source(int n, int expanded) const {
      const int half = n / (vecs * kLanes), e = first * kLanes + n % (vecs * kLanes);
      return e < expanded ? half * expanded + e : -1;
    }
    float element(const float* matrix, int row, int n, int expanded) const {
      const int64_t at = source(n, expanded);
      return at < 0 ? 0.0f : matrix[row * static_cast<int64_t>(2 * expanded) + at];
    }

    int first, vecs;
    PackedAs<P> in, in_transposed, out_transposed;
    Buffer in_bias, dw;  // dw: [2 * vecs, 9 taps and the bias, kLanes]
  };

  // Where each gradient lies in the sums: slice by slice, each as its Part.
  struct Where {
    Where(const Rows& rows, int row)
        : in_bias(static_cast<int64_t>(round_up(rows.channels, 4)) * row), dw(in_bias + row), out(dw + 10 * row),
          out_bias(out + static_cast<int64_t>(row / 2) * rows.stride), end(out_bias + rows.stride) {}
    int64_t in = 0, in_bias, dw, out, out_bias, end;
  };

  int parts_count() const { return (vecs_for(expanded_) + kSlice - 1) / kSlice; }

  void make_hidden(const Part& part, const Tile& tile, Scratch& s) const {
    const Area area = tile.within(2);
    for (int r = 0; r < area.height; ++r) {
      float* first = s.hidden + s.at(area.top + r, area.left);
      product<P>(rows_of(s.u + static_cast<int64_t>(r) * area.pitch() * rows_.stride, rows_.stride), area.pitch(),
                 part.in.right(), 2 * part.vecs, part.in_bias, false, {first, kLanes, s.plane});
      for (int c = area.width; c < area.pitch(); ++c) {
        for (int j = 0; j < 2 * part.vecs; ++j) store(first + j * s.plane + c * kLanes, splat(0.0f));
      }
    }
  }

  // d again, gelu(d1) * d2 for the tile, and the gradient of d for the pixels around it, too.
  static void gate_backward(const Part& part, int j, const Tile& tile, Scratch& s) {
    const int64_t pitch = static_cast<int64_t>(s.pitch) * kLanes, first_plane = j * s.plane,
                  second_plane = (part.vecs + j) * s.plane;
    const float *first = part.dw + j * 10 * kLanes, *second = part.dw + (part.vecs + j) * 10 * kLanes;
    const int row = part.vecs * kLanes;
    Vec w1[10], w2[10];
#pragma GCC unroll 10
    for (int tap = 0; tap < 10; ++tap) {
      w1[tap] = load(first + tap * kLanes);
      w2[tap] = load(second + tap * kLanes);
    }
    const Area area = tile.within(1);
    for (int r = area.top; r < area.top + area.height; ++r) {
      const float* a = s.hidden + first_plane + s.at(r - 1, area.left - 1);
      const float* b = s.hidden + second_plane + s.at(r - 1, area.left - 1);
      const float* dgated = s.dgated + static_cast<int64_t>(r - area.top) * area.pitch() * row + j * kLanes;
      float* out = s.dmixed + s.at(r, area.left);
      for (int c = area.left; c < area.left + area.width; ++c, a += kLanes, b += kLanes, out += kLanes, dgated += row) {
        Vec d1 = w1[9], d2 = w2[9];
#pragma GCC unroll 9
        for (int tap = 0; tap < 9; ++tap) {
          const int64_t at = tap / 3 * pitch + tap % 3 * kLanes;
          d1 = fma(w1[tap], load(a + at), d1);
          d2 = fma(w2[tap], load(b + at), d2);
        }
        // As in gelu(), not below 0.
        const Vec below = max(splat(0.0f), fma(splat(0.5f), erf(d1 * splat(0.707106781f)), splat(0.5f)));
        const Vec density = splat(0.398942280f) * exp(splat(-0.5f) * d1 * d1);
        const Vec gelu = d1 * below, slope = fma(d1, density, below);
        store(out + first_plane, load(dgated) * d2 * slope);
        store(out + second_plane, load(dgated) * gelu);
        if (tile.within(0).holds(r, c)) store(s.gated + (r * tile.width + c) * row + j * kLanes, gelu * d2);
      }
    }
  }

  // From the gradient of d that of the hidden map, and each tap's and the bias' sums. Both read the same neighbours: a
  // pixel of the hidden map went, by tap (y, x), to the pixel at (-y, -x) of it.
  static void taps_backward(const Part& part, int j, const Tile& tile, Scratch& s, float* sums) {
    const int64_t pitch = static_cast<int64_t>(s.pitch) * kLanes;
    const int row = 2 * part.vecs * kLanes;
    Vec w[9];
#pragma GCC unroll 9
    for (int tap = 0; tap < 9; ++tap) w[tap] = load(part.dw + (j * 10 + tap) * kLanes);
    for (int r = 0; r < tile.height; ++r) {
      const float *hidden = s.hidden + j * s.plane + s.at(r, 0), *around = s.dmixed + j * s.plane + s.at(r + 1, 1);
      float* out = s.dhidden + static_cast<int64_t>(r) * tile.width * row + j * kLanes;
      Vec total[10] = {};
      for (int c = 0; c < tile.width; ++c, hidden += kLanes, around += kLanes, out += row) {
        const Vec h = load(hidden);
        Vec dhidden = splat(0.0f);
#pragma GCC unroll 9
        for (int tap = 0; tap < 9; ++tap) {
          const Vec d = load(around - tap / 3 * pitch - tap % 3 * kLanes);
          dhidden = fma(w[tap], d, dhidden);
          total[tap] = fma(h, d, total[tap]);
          if (tap == 4) total[9] = total[9] + d;
        }
        store(out, dhidden);
      }
#pragma GCC unroll 10
      for (int tap = 0; tap < 10; ++tap) store(sums + tap * kLanes, load(sums + tap * kLanes) + total[tap]);
    }
  }

  Rows rows_;
  int expanded_, row_;
  Several<Part> parts_;
  Where where_{rows_, row_};
};

template <class T>
static void gated_ffn_backward(Threads threads, Shape shape, const T* grad, const T* x, const Ffn& w, Norm norm, int patch,
                               T* dx, const FfnOf<float>& gradient) {
  using Gradients = TileFfnBackward<typename Multiplied<T>::As>;
  const Rows rows(shape.channels);
  const Gradients ffn(w, shape.channels);
  const int64_t across = patch ? shape.width / patch : (shape.width + 47) / 48;
  const int height = patch ? patch : 16, width = across ? static_cast<int>((shape.width + across - 1) / across) : 0;
  const Tile most = patch ? Tile{height, width, 0, 0, 0, 0} : Tile{height, width, 2, 2, 2, 2};
  const int64_t down = (shape.height + height - 1) / height;
  const auto at_most = [](int64_t n, int most) { return n < most ? static_cast<int>(n) : most; };
  const int64_t tiles = shape.batch * down * across;
  Sums sums(tiles, ffn.sums());
  sums.add(threads, tiles, [&](SharedUnits& units) {
    typename Gradients::Scratch s(rows, most);
    for (int64_t unit; units.next(unit);) {
      const int64_t b = unit / (down * across), top = unit / across % down * height, left = unit % across * width;
      Tile tile{at_most(shape.height - top, height), at_most(shape.width - left, width), 0, 0, 0, 0};
      if (!patch) {
        tile.above = at_most(top, 2);
        tile.below = at_most(shape.height - top - tile.height, 2);
        tile.left = at_most(left, 2);
        tile.right = at_most(shape.width - left - tile.width, 2);
      }
      const auto pixel = [&](int r, int c) {
        return ((b * shape.height + top + r) * shape.width + left + c) * static_cast<int64_t>(shape.channels);
      };
      const auto each = [](const Area& area, const auto& visit) {
        for (int r = 0; r < area.height; ++r) {
          for (int c = 0; c < area.width; ++c) {
            visit(area.top + r, area.left + c, static_cast<int64_t>(r) * area.pitch() + c);
          }
        }
      };
      each(tile.within(2), [&](int r, int c, int64_t i) {
        float* u = s.u + i * rows.stride;
        copy_in(x + pixel(r, c), rows, u);
        const float scale = normalize(u, rows, norm, u);
        if (tile.within(0).holds(r, c)) {
          s.scales[r * tile.width + c] = scale;
          std::memcpy(s.inner_u + (r * tile.width + c) * rows.stride, u,
                      sizeof(float) * static_cast<size_t>(rows.stride));
        }
      });
      each(tile.within(1), [&](int r, int c, int64_t i) {
        copy_in(grad + pixel(r, c), rows, s.g + i * rows.stride);
        if (tile.within(0).holds(r, c)) {
          copy_in(grad + pixel(r, c), rows, s.inner_g + (r * tile.width + c) * rows.stride);
        }
      });
      if (patch && unit + 1 < tiles) {
        const int64_t row = shape.width * shape.channels;
        const int64_t next = (unit + 1) / across * patch * row + (unit + 1) % across * patch * shape.channels;
        prefetch(x + next, row, patch, patch * shape.channels);
        prefetch(grad + next, row, patch, patch * shape.channels);
      }
      ffn.run(tile, s, units.sums());
      for (int r = 0; r < tile.height; ++r) {
        for (int c = 0; c < tile.width; ++c) {
          const int64_t i = r * tile.width + c, at = pixel(r, c);
          normalize_backward(s.inner_u + i * rows.stride, rows, norm, s.scales[i], s.du + i * rows.stride);
          add_out(s.du + i * rows.stride, grad + at, rows, dx + at);
        }
      }
    }
  });
  ffn.write(sums.total(threads), gradient);
}

}  // namespace ditn::DITN_LEVEL
