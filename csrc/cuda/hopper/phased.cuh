// SPDX-License-Identifier: Apache-2.0
// The map between the two kernels of dilated_gate. Its columns are sorted by their phase, their
// number modulo 3, so that the 7x7 with dilation 3 sees neighbours.
#pragma once

#include "../launch.cuh"
#include "taps.cuh"

namespace ditn::cuda::hopper {

// 24 columns are 8 of each phase: a line of 48 bytes. The map is [image][chunk of 24 columns][channel][line][phase][8]. Chunk c
// begins with column 24 c - 9, which is what the 7x7 sees first for the columns 24 c to 24 c + 23, of those of chunks c and c + 1.
// Line kAbove is the image's first. What lies outside the image is zero.
constexpr int kPhases = 3, kChunk = 8 * kPhases, kPhasedLine = kChunk * 2;
constexpr int kBefore = 9, kAbove = 16;

struct PhasedMap {
  int height, width, channels;  // of the image
  int chunks, lines;

  // For tiles of the 7x7 of so many lines.
  PhasedMap(const Shape& shape, int tile)
      : height(static_cast<int>(shape.height)), width(static_cast<int>(shape.width)), channels(shape.channels),
        chunks((width + kChunk - 1) / kChunk + 1), lines((height + tile - 1) / tile * tile + 2 * kAbove) {}

  // In bytes.
  __host__ __device__ int64_t place(int64_t image, int chunk, int channel, int line) const {
    return (((image * chunks + chunk) * channels + channel) * lines + line) * kPhasedLine;
  }
  __host__ __device__ int64_t next_channel() const { return static_cast<int64_t>(lines) * kPhasedLine; }
  __host__ __device__ int64_t next_chunk() const { return channels * next_channel(); }
  // Of the image, in values.
  __device__ int64_t pixel(int64_t image, int row, int column) const {
    return ((image * height + row) * width + column) * channels;
  }
};

// Matrices of zeros and ones that sort 24 columns by phases: for each phase the words of a lane for rows 0 to 15 and 16 to 23.
template <class T>
struct Sorting {
  unsigned words[kPhases][3];

  __device__ Sorting() {
#pragma unroll
    for (int i = 0; i < 3 * kPhases; ++i) {
      const int first = source(i / 3) - 8 * (i % 3) - column();
      words[i / 3][i % 3] = read_again(first == 0 ? Words<T>::kOne : first == 1 ? Words<T>::kOne << 16 : 0);  // once, not for every tile
    }
  }
  // The same without the columns outside the image, of which `left` is the first of these 24.
  __device__ Sorting inside(int left, int width) const {
    Sorting found = *this;
#pragma unroll
    for (int i = 0; i < 3 * kPhases; ++i) {
      if (static_cast<unsigned>(left + source(i / 3)) >= static_cast<unsigned>(width)) found.words[i / 3][i % 3] = 0;
    }
    return found;
  }
  // sorted[phase] [16 lines, 8] = the columns of this phase of dense [16 lines, 24].
  __device__ void sort(unsigned (&sorted)[kPhases][2], const unsigned (&dense)[3][2]) const {
    const unsigned columns[4] = {dense[0][0], dense[0][1], dense[1][0], dense[1][1]};
#pragma unroll
    for (int phase = 0; phase < kPhases; ++phase) {
      BandSums<T> sums(0, 0);
      sums.add(columns, words[phase][0], words[phase][1]);
      sums.add(dense[2][0], dense[2][1], words[phase][2]);
      sums.round(sorted[phase]);
    }
  }

 private:
  // The column that becomes this lane's of a phase.
  __device__ static int source(int phase) { return kPhases * row() + phase; }
};

}  // namespace ditn::cuda::hopper
