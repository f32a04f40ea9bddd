// SPDX-License-Identifier: Apache-2.0
// 3x3 convolution of the lines of a strip, by Winograd's minimal filtering F(2x2, 3x3): two by two results from four by
// four pixels take 16 products of matrices and not 36. Its transforms are sums and halves, which cost less of float32 than
// one chain of 9 * inputs roundings would. Of bfloat16 they would cost too much, so these products are always of floats.
#pragma once

#include "gemm.h"
#include "strips.h"

namespace ditn::DITN_LEVEL {

class Conv3x3 {
 public:
  // weight [3, 3, inputs, outputs]; output n is the weight's order(n)
  template <class Order>
  Conv3x3(const float* weight, const float* bias, int inputs, int outputs, const Order& order)
      : inputs_(inputs), outputs_(outputs), bias_(outputs_.stride), zeros_(outputs_.stride), products_(16, [&](int i) {
          return new Packed(inputs, outputs_.vecs, [&](int k, int n) {
            return n < outputs ? filter(weight + static_cast<int64_t>(k) * outputs + order(n),
                                        static_cast<int64_t>(inputs) * outputs, i / 4, i % 4)
                               : 0.0f;
          });
        }) {
    for (int n = 0; n < outputs; ++n) bias_[n] = bias[order(n)];
  }

  const Rows& outputs() const { return outputs_; }

  struct Scratch {
    explicit Scratch(const Conv3x3& conv) : v(16 * step(conv.inputs_)), m(16 * step(conv.outputs_)) {}
    Buffer v, m;
  };

  // Rows `row` and row + 1, `count` columns from `column`, of all outputs: out[2][kLine][outputs' stride].
  static constexpr int kLine = kStrip + 2 * 2 + 2;
  void run(Lines& map, int64_t row, int64_t column, int count, Scratch& s, float* out) const {
    for (int at = 0; at < count; at += 2 * kTiles) {
      const int left = count - at < 2 * kTiles ? count - at : 2 * kTiles, tiles = (left + 1) / 2;
      for (int j = 0; j < inputs_.vecs; ++j) transform_in(map, j, row, column + at, tiles, s.v + j * kLanes);
      for (int i = 0; i < 16; ++i) {
        product(rows_of(s.v + i * step(inputs_), inputs_.stride), round_up(tiles, 4), products_[i].right(), outputs_.vecs,
                zeros_, false, {s.m + i * step(outputs_), outputs_.stride});
      }
      for (int j = 0; j < outputs_.vecs; ++j) {
        transform_out(s.m + j * kLanes, tiles, load(bias_ + j * kLanes), out + at * outputs_.stride + j * kLanes);
      }
    }
  }

 private:
  static constexpr int kTiles = 32;  // of two by two results, taken at a time: both sides of the products fit L2
  // Floats from one of the 16 matrices to the next; odd in vectors, so that they do not share cache sets.
  static int64_t step(const Rows& rows) { return static_cast<int64_t>(kTiles) * rows.stride + kLanes; }

  // Element (i, j) of G g G^T, g one 3x3 filter whose taps are `tap` apart.
  static float filter(const float* g, int64_t tap, int i, int j) {
    static constexpr float kG[4][3] = {{1, 0, 0}, {0.5f, 0.5f, 0.5f}, {0.5f, -0.5f, 0.5f}, {0, 0, 1}};
    double sum = 0;
    for (int a = 0; a < 3; ++a) {
      for (int b = 0; b < 3; ++b) sum += static_cast<double>(kG[i][a] * kG[j][b]) * g[(3 * a + b) * tap];
    }
    return static_cast<float>(sum);
  }

  // B^T d
  DITN_INLINE void in(const Vec (&d)[4], Vec (&t)[4]) {
    t[0] = d[0] - d[2];
    t[1] = d[1] + d[2];
    t[2] = d[2] - d[1];
    t[3] = d[1] - d[3];
  }
  // A^T m
  DITN_INLINE void out(const Vec (&m)[4], Vec (&t)[2]) {
    t[0] = m[0] + m[1] + m[2];
    t[1] = m[1] - m[2] - m[3];
  }

  // v = B^T d B for one vector of channels; a tile starts one row above and one column left of its results.
  void transform_in(Lines& map, int j, int64_t row, int64_t column, int tiles, float* v) const {
    const float* lines[4];
    for (int r = 0; r < 4; ++r) lines[r] = map.at(j, row - 1 + r, column - 1);
    const auto next = [&](Vec (&t)[4]) __attribute__((always_inline)) {
      const Vec d[] = {load(lines[0]), load(lines[1]), load(lines[2]), load(lines[3])};
      in(d, t);
      for (const float*& line : lines) line += kLanes;
    };
    Vec columns[4][4];
    next(columns[0]);
    next(columns[1]);
    for (int tile = 0; tile < tiles; ++tile) {
      next(columns[2]);
      next(columns[3]);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const Vec d[] = {columns[0][i], columns[1][i], columns[2][i], columns[3][i]};
        Vec t[4];
        in(d, t);
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k) store(v + (4 * i + k) * step(inputs_) + tile * inputs_.stride, t[k]);
        columns[0][i] = d[2];
        columns[1][i] = d[3];
      }
    }
  }

  // A^T m A + bias for one vector of channels.
  void transform_out(const float* m, int tiles, Vec bias, float* out_rows) const {
    for (int tile = 0; tile < tiles; ++tile) {
      Vec columns[4][2];
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) {
        const float* from = m + k * step(outputs_) + tile * outputs_.stride;
        const Vec d[] = {load(from), load(from + 4 * step(outputs_)), load(from + 8 * step(outputs_)),
                         load(from + 12 * step(outputs_))};
        out(d, columns[k]);
      }
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        const Vec d[] = {columns[0][i], columns[1][i], columns[2][i], columns[3][i]};
        Vec t[2];
        out(d, t);
        float* to = out_rows + (static_cast<int64_t>(i) * kLine + 2 * tile) * outputs_.stride;
        store(to, t[0] + bias);
        store(to + outputs_.stride, t[1] + bias);
      }
    }
  }

  Rows inputs_, outputs_;
  Buffer bias_, zeros_;
  Several<Packed> products_;
};

}  // namespace ditn::DITN_LEVEL
