// SPDX-License-Identifier: Apache-2.0
// The norms without their affine part, and the way from a map's dense pixels to rows of whole vectors.
#pragma once

#include "buffer.h"
#include "half.h"
#include "math.h"

namespace ditn::DITN_LEVEL {

// Rows of `channels` floats that lie in whole vectors, zero behind the last channel.
struct Rows {
  int channels;
  int vecs;
  int stride;

  explicit Rows(int channels) : channels(channels), vecs(vecs_for(channels)), stride(vecs * kLanes) {}
  int lanes(int vec) const { return channels - vec * kLanes < kLanes ? channels - vec * kLanes : kLanes; }
};

template <class T>
DITN_INLINE void copy_in(const T* pixel, const Rows& rows, float* row) {
  for (int j = 0; j < rows.vecs; ++j) store(row + j * kLanes, load_first(pixel + j * kLanes, rows.lanes(j)));
}

template <class T>
DITN_INLINE void copy_out(const float* row, const Rows& rows, T* pixel) {
  for (int j = 0; j < rows.vecs; ++j) store_first(pixel + j * kLanes, load(row + j * kLanes), rows.lanes(j));
}

// pixel_out = pixel_in + row
template <class T>
DITN_INLINE void add_out(const float* row, const T* pixel_in, const Rows& rows, T* pixel_out) {
  for (int j = 0; j < rows.vecs; ++j) {
    const int n = rows.lanes(j);
    store_first(pixel_out + j * kLanes, load_first(pixel_in + j * kLanes, n) + load(row + j * kLanes), n);
  }
}

// u = norm(row), in place or not. Returns one over the standard deviation, for LayerNorm's gradient.
DITN_INLINE float normalize(const float* row, const Rows& rows, Norm norm, float* u, float eps = 1e-5f) {
  if (norm == Norm::kTanh) {
    for (int j = 0; j < rows.vecs; ++j) store(u + j * kLanes, tanh(load(row + j * kLanes)));
  } else if (norm == Norm::kLayerNorm) {
    Vec total = splat(0.0f);
    for (int j = 0; j < rows.vecs; ++j) total = total + load(row + j * kLanes);
    const Vec mean = splat(sum(total) / static_cast<float>(rows.channels));
    Vec squares = splat(0.0f);
    for (int j = 0; j < rows.vecs; ++j) {
      const Vec centred = keep_first(load(row + j * kLanes) - mean, rows.lanes(j));
      store(u + j * kLanes, centred);
      squares = fma(centred, centred, squares);
    }
    const float variance = sum(squares) / static_cast<float>(rows.channels);
    const Vec scale = splat(1.0f) / sqrt(splat(variance + eps));
    for (int j = 0; j < rows.vecs; ++j) store(u + j * kLanes, load(u + j * kLanes) * scale);
    return first_lane(scale);
  } else if (u != row) {
    for (int j = 0; j < rows.vecs; ++j) store(u + j * kLanes, load(row + j * kLanes));
  }
  return 1.0f;
}

// A bias [channels] as whole vectors.
static Buffer padded(const float* bias, int channels) {
  Buffer whole(round_up(channels, kLanes));
  std::memcpy(whole, bias, static_cast<size_t>(channels) * sizeof(float));
  return whole;
}

}  // namespace ditn::DITN_LEVEL
