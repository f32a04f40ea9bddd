// SPDX-License-Identifier: Apache-2.0
// The way layers with halos go over a map: down a strip of columns, row by row. What a convolution needs of the rows above
// stays in L2, in lines that are used in turn; columns beside the strip are computed twice, rows only where two threads
// meet.
#pragma once

#include "arithmetic.h"
#include "norm.h"

namespace ditn::DITN_LEVEL {

constexpr int kStrip = 160;  // columns at most
constexpr int kBand = 16;  // rows for which there is one band at most
constexpr int kHalo = 6;  // what a band's halo takes, as rows: the gate's 22 lines are a product each, or a 5x5

struct Strip {
  int64_t b, left, right, top, bottom;
};

// The number of a pixel in a dense map.
DITN_INLINE int64_t pixel_of(const Shape& shape, int64_t b, int64_t row, int64_t column) {
  return (b * shape.height + row) * shape.width + column;
}

class Strips {
 public:
  // Of all numbers of bands of rows the one that ends soonest where threads are equally fast. Strips start at even rows and
  // columns, so that pixels which are computed in pairs have the same partner whatever the number of threads.
  Strips(const Shape& shape, int64_t threads) : shape_(shape) {
    if (shape.batch * shape.height * shape.width == 0) return;
    columns_ = 2 * parts(shape.width, 2 * parts(shape.width, kStrip));
    across_ = parts(shape.width, columns_);
    int64_t least = 0;
    for (int64_t bands = 1; bands <= parts(shape.height, kBand); ++bands) {
      const int64_t rows = 2 * parts(shape.height, 2 * bands);
      const int64_t turns = parts(shape.batch * across_ * parts(shape.height, rows), threads);
      if (bands > 1 && turns * (rows + kHalo) >= least) continue;
      least = turns * (rows + kHalo);
      rows_ = rows;
    }
    bands_ = parts(shape.height, rows_);
  }
  int64_t count() const { return shape_.batch * bands_ * across_; }
  bool next(Units& units, Strip& strip) const {
    int64_t unit;
    if (!units.next(unit)) return false;
    strip.b = unit / (bands_ * across_);
    strip.left = unit % across_ * columns_;
    strip.top = unit / across_ % bands_ * rows_;
    strip.right = smaller(strip.left + columns_, shape_.width);
    strip.bottom = smaller(strip.top + rows_, shape_.height);
    return true;
  }

 private:
  static int64_t parts(int64_t whole, int64_t size) { return (whole + size - 1) / size; }

  Shape shape_;
  int64_t across_ = 0, columns_ = 0, bands_ = 0, rows_ = 0;
};

// Asks for a pixel that is wanted when the next row is, or written when this one is: hardware does not foresee where a strip
// goes on.
template <bool kToWrite = false, class T>
DITN_INLINE void prefetch(const T* pixel, const Rows& rows) {
  constexpr int kLine = 64 / sizeof(T);
  for (int at = 0; at < rows.channels; at += kLine) __builtin_prefetch(pixel + at, kToWrite, 2);
}

// `count` neighbours to ask for, a few between one piece of arithmetic and the next: a whole row at once waits in a queue.
template <class T, bool kToWrite = false>
class Ahead {
 public:
  Ahead(const T* pixel, int count, const Rows& rows) : pixel_(pixel), left_(count), rows_(rows) {}
  __attribute__((always_inline)) void ask(int pixels) {
    for (; pixels > 0 && left_ > 0; --pixels, --left_, pixel_ += rows_.channels) prefetch<kToWrite>(pixel_, rows_);
  }

 private:
  const T* pixel_;
  int left_;
  Rows rows_;
};

// norm(x) of `count` neighbours on the map, [count, stride], in words along the channels.
template <class P, class T>
static void normalized(const T* x, int count, const Rows& rows, Norm norm, float* u) {
  for (int i = 0; i < count; ++i) {
    copy_in(x + i * rows.channels, rows, u + i * rows.stride);
    normalize(u + i * rows.stride, rows, norm, u + i * rows.stride);
  }
  P::pack_along(u, count, rows.stride, rows.stride);
}

// The last `rows` lines of a strip with `halo` columns on either side, as planes of one vector per pixel.
class Lines {
 public:
  Lines(int planes, int rows, int halo)
      : planes_(planes), rows_(rows), halo_(halo), data_(static_cast<int64_t>(planes) * rows * kPitch * kLanes, false) {}

  // Forget everything; the next lines belong to this strip of a map `width` columns wide.
  void start(const Strip& strip, int64_t width) {
    std::memset(data_, 0, sizeof(float) * static_cast<size_t>(planes_ * rows_) * kPitch * kLanes);
    origin_ = strip.left - halo_;
    first_ = origin_ > 0 ? origin_ : 0;
    count_ = static_cast<int>((strip.right + halo_ < width ? strip.right + halo_ : width) - first_);
  }
  // The columns of a line that lie on the map: all others are zero.
  int64_t first() const { return first_; }
  int count() const { return count_; }

  float* at(int plane, int64_t row, int64_t column) {
    const int64_t line = (row % rows_ + rows_) % rows_;
    return data_ + ((plane * rows_ + line) * kPitch + column - origin_) * kLanes;
  }
  int planes() const { return planes_; }
  int64_t plane() const { return static_cast<int64_t>(rows_) * kPitch * kLanes; }
  // A line that lies outside the map.
  void clear(int64_t row) {
    for (int j = 0; j < planes_; ++j) std::memset(at(j, row, origin_), 0, sizeof(float) * kPitch * kLanes);
  }
  // Pixels come in groups: zero those that were written behind the last column.
  void trim(int64_t row) {
    for (int j = 0; j < planes_; ++j) {
      for (int i = 0; i < kTileRows; ++i) store(at(j, row, first_ + count_ + i), splat(0.0f));
    }
  }

 private:
  // Room for the widest halo on both sides and for pixels that come in groups; odd, so that lines do not share cache sets.
  static constexpr int kPitch = kStrip + 2 * 11 + 2 * 8 + 1;

  int planes_, rows_, halo_;
  int64_t origin_ = 0, first_ = 0;
  int count_ = 0;
  Buffer data_;
};

// A row of a map as a line.
template <class T>
static void enter(const T* x, const Shape& shape, const Strip& strip, int64_t row, Lines& lines) {
  if (row < 0 || row >= shape.height) return lines.clear(row);
  const Rows rows(shape.channels);
  const T* pixels = x + pixel_of(shape, strip.b, row, lines.first()) * rows.channels;
  for (int j = 0; j < rows.vecs; ++j) {
    float* line = lines.at(j, row, lines.first());
    for (int i = 0; i < lines.count(); ++i) {
      if (j == 0) prefetch(pixels + shape.width * rows.channels + i * rows.channels, rows);
      store(line + i * kLanes, load_first(pixels + i * rows.channels + j * kLanes, rows.lanes(j)));
    }
  }
}

}  // namespace ditn::DITN_LEVEL
