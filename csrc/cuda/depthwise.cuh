// SPDX-License-Identifier: Apache-2.0
// Depthwise convolutions, two channels at a time: a lane computes neighbouring results, which share what they read. Halves
// are multiplied and added in pairs by one instruction, and stay halves between the taps.
#pragma once

#include "launch.cuh"
#include "math.cuh"

namespace ditn::cuda {

constexpr int kGroup = 64;  // channels whose taps lie together: a pair for each lane of a warp

// For every kGroup channels, rows of kGroup values: the taps, then vectors of which the first is the bias.
template <class T>
struct Taps {
  const Pair<T>* data;  // [layers][groups][rows][kGroup / 2]
  int rows;
  int64_t layer;
  __host__ __device__ Taps of_layer(int64_t i) const { return {data + i * layer, rows, layer}; }
  // A row of the group that a channel belongs to, from there on.
  __device__ const Pair<T>* at(int row, int channel) const {
    return data + (channel / kGroup * rows + row) * (kGroup / 2) + channel % kGroup / 2;
  }
};

// One of the rows: where it is, and the way to the next layer's.
template <class T>
struct Vector {
  const T* data;
  int layer;
};

constexpr int kVectors = 4;

template <class T>
struct TapSources {
  const T* weight;
  int taps, count;
  Vector<T> vectors[kVectors];
};

// The channels of a group are `parts` runs: of the group's number times their length in each of `parts` vectors [outputs]
// that lie one behind the other. Channels behind the last output are zero.
// Grid: (the groups, their rows, the layers), a thread per value.
template <class T>
__global__ void _pack_taps_kernel(T* target, TapSources<T> sources, int parts, int outputs) {
  const int run = kGroup / parts, row = blockIdx.y, stride = parts * outputs;
  const int output = blockIdx.x * run + threadIdx.x % run;
  const int channel = threadIdx.x / run * outputs + output;
  const int64_t layer = blockIdx.z;
  Vector<T> vector = sources.vectors[0];
#pragma unroll
  for (int i = 1; i < kVectors; ++i) {
    if (row == sources.taps + i) vector = sources.vectors[i];
  }
  const T* source = row < sources.taps ? sources.weight + (layer * sources.taps + row) * stride : vector.data + layer * vector.layer;
  const int64_t place = (layer * gridDim.x + blockIdx.x) * gridDim.y + row;
  target[place * kGroup + threadIdx.x] = output < outputs ? source[channel] : T(0.0f);
}

// The weight is [layers][taps][parts * outputs], a vector [layers][parts * outputs].
template <class T>
Taps<T> pack_taps(Device& device, const char* name, const TapSources<T>& sources, int parts, int outputs, int layers = 1) {
  const int rows = sources.taps + sources.count;
  const unsigned groups = (outputs * parts + kGroup - 1) / kGroup;
  const int64_t layer = static_cast<int64_t>(groups) * rows * kGroup;
  auto* target = static_cast<T*>(device.allocate_weights(layers * layer * sizeof(T)));
  if (!device.has_weights()) {
    launch(device, name, _pack_taps_kernel<T>, dim3(groups, rows, layers), kGroup, 0, target, sources, parts, outputs);
  }
  return {reinterpret_cast<const Pair<T>*>(target), rows, layer / 2};
}

// sums[r][c] = bias + the SIZE x SIZE taps on what at(r + i, c + j) gives for tap (i, j). taps: a lane's column of a group.
// The outermost SKIPPED columns of what is seen are zeros that at() is not asked for.
template <class T, int SIZE, int SKIPPED, int ROWS, int COLUMNS, class At>
__device__ __forceinline__ void depthwise(Pair<T> (&sums)[ROWS][COLUMNS], const Pair<T>* taps, const At& at) {
  constexpr int kSeen = COLUMNS + SIZE - 1, kPairs = kGroup / 2;
  const Pair<T> bias = taps[SIZE * SIZE * kPairs];
#pragma unroll
  for (int i = 0; i < ROWS * COLUMNS; ++i) sums[i / COLUMNS][i % COLUMNS] = bias;
#pragma unroll
  for (int y = 0; y < ROWS + SIZE - 1; ++y) {
    Pair<T> seen[kSeen];
#pragma unroll
    for (int x = SKIPPED; x < kSeen - SKIPPED; ++x) seen[x] = at(y, x);
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      if (y < r || y - r >= SIZE) continue;
#pragma unroll
      for (int j = 0; j < SIZE; ++j) {
        const Pair<T> tap = taps[((y - r) * SIZE + j) * kPairs];
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c) {
          if (c + j < SKIPPED || c + j >= kSeen - SKIPPED) continue;
          sums[r][c] = multiply_add(seen[c + j], tap, sums[r][c]);
        }
      }
    }
  }
}

}  // namespace ditn::cuda
