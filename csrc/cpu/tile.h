// SPDX-License-Identifier: Apache-2.0
// A piece of a map and the pixels around it.
#pragma once

#include "vec.h"

namespace ditn::DITN_LEVEL {

// A rectangle of pixels; (0, 0) is the tile's first.
struct Area {
  int top, left, height, width;

  int pitch() const { return round_up(width, 4); }
  bool holds(int r, int c) const { return r >= top && r < top + height && c >= left && c < left + width; }
};

struct Tile {
  int height, width;
  int above, below, left, right;  // pixels that there are around it, at most 2 of interest

  bool operator==(const Tile&) const = default;
  Area within(int reach) const {
    const auto least = [&](int n) { return n < reach ? n : reach; };
    return {-least(above), -least(left), height + least(above) + least(below), width + least(left) + least(right)};
  }
  int pixels() const { return height * width; }
};

}  // namespace ditn::DITN_LEVEL
