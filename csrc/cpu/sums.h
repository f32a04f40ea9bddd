// SPDX-License-Identifier: Apache-2.0
// The gradients of weights are sums over all pixels. Work is cut into shares that depend on its amount alone, each with
// sums of its own, which are added up in order: the number of threads changes no bit.
#pragma once

#include "norm.h"

namespace ditn::DITN_LEVEL {

// More shares scale to more threads; each costs the zeroing and the adding of one set of sums.
constexpr int kShares = 32;

// Hands out units share by share; sums() belong to the unit's share and so to this thread alone.
class SharedUnits {
 public:
  SharedUnits(Units& shares, int64_t units, int64_t count, float* sums, int64_t floats)
      : shares_(shares), units_(units), count_(count), all_(sums), floats_(floats) {}

  bool next(int64_t& unit) {
    while (next_ == end_) {
      int64_t share;
      if (!shares_.next(share)) return false;
      next_ = share * units_ / count_;
      end_ = (share + 1) * units_ / count_;
      sums_ = all_ + share * floats_;
    }
    unit = next_++;
    return true;
  }
  float* sums() const { return sums_; }

 private:
  Units& shares_;
  int64_t units_, count_;
  float* all_;
  int64_t floats_;
  int64_t next_ = 0, end_ = 0;
  float* sums_ = nullptr;
};

class Sums {
 public:
  Sums(int64_t units, int64_t floats)
      : shares_(units < kShares ? units : kShares), floats_(floats), sums_((shares_ ? shares_ : 1) * floats) {}

  // worker(units) on each thread, for each of so many units once. Called again it adds to the same sums.
  template <class Worker>
  void add(const Threads& threads, int64_t count, const Worker& worker) {
    share(threads, shares_, [&](Units& shares) {
      SharedUnits units(shares, count, shares_, sums_, floats_);
      worker(units);
    });
  }

  const float* total(const Threads& threads) {
    constexpr int64_t kBlock = 4096;
    share(threads, (floats_ + kBlock - 1) / kBlock, [&](Units& blocks) {
      for (int64_t block; blocks.next(block);) {
        const int64_t first = block * kBlock, left = floats_ - first;
        for (int64_t i = 1; i < shares_; ++i) {
          for (int64_t at = first; at < first + (left < kBlock ? left : kBlock); ++at) {
            sums_[at] += sums_[i * floats_ + at];
          }
        }
      }
    });
    return sums_;
  }

 private:
  int64_t shares_, floats_;
  Buffer sums_;
};

// The sum of term(i) for i < count, a multiple of 4, in four chains: a fourth of the roundings, and no waiting.
template <class Term>
DITN_INLINE Vec summed(int64_t count, const Term& term) {
  Vec a = splat(0.0f), b = a, c = a, d = a;
  for (int64_t i = 0; i < count; i += 4) {
    a = a + term(i);
    b = b + term(i + 1);
    c = c + term(i + 2);
    d = d + term(i + 3);
  }
  return (a + b) + (c + d);
}

// Asks for a rectangle of a map before it is needed: in short rows the hardware finds no stream to follow.
template <class T>
DITN_INLINE void prefetch(const T* corner, int64_t row, int height, int64_t width) {
  constexpr int kLine = 64 / sizeof(T);
  for (int r = 0; r < height; ++r) {
    for (int64_t at = 0; at < width; at += kLine) __builtin_prefetch(corner + r * row + at, 0, 2);
  }
}

// sums += the rows
static void add_rows(const float* from, int64_t count, int64_t pitch, int vecs, float* sums) {
  for (int j = 0; j < vecs; ++j, from += kLanes, sums += kLanes) {
    Vec total = summed(count / 4 * 4, [&](int64_t i) { return load(from + i * pitch); });
    for (int64_t i = count / 4 * 4; i < count; ++i) total = total + load(from + i * pitch);
    store(sums, load(sums) + total);
  }
}

// Rows of whole vectors -> dense rows.
static void write_rows(const float* from, int64_t count, int64_t pitch, int width, float* to, int64_t to_pitch) {
  for (int64_t i = 0; i < count; ++i) {
    std::memcpy(to + i * to_pitch, from + i * pitch, sizeof(float) * static_cast<size_t>(width));
  }
}

}  // namespace ditn::DITN_LEVEL
