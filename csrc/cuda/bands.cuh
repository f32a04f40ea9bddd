// SPDX-License-Identifier: Apache-2.0
// Depthwise 3x3 convolutions on tensor cores: the taps of a channel as band matrices.
//
// A channel lies in shared memory as lines of 8 pixels, 16 bytes each: rows of ldmatrix. A depthwise convolution with taps w
// and zeros outside,
//
//   out[y][x] = b + sum over i, j of w[i][j] in[y + i - 1][x + j - 1] = b + sum over i of (in[y + i - 1] T_i)[x],
//
// multiplies lines by matrices T_i[x'][x] = w[i][x' - x + 1], which are zero but for three diagonals. So 16 lines of results
// are three products of depth 8: the factor a is the lines themselves, those of another i by another address, and the factor
// b is T_i. Of that a lane holds the two elements for x' = column() and the next, and x = row(): (w[i][d], w[i][d + 1]) with
// d = x' - x + 1. There are four d for which they are not both zero. A table has them for each channel, one "place" for each
// d from -1 to 2 and one for all others: there a word for each i, and the bias, which the sums start with.
//
// Sums are halves, which tensor cores round at most after every four products, and not after each tap.
//
// Five eighths of what is multiplied are zero, so bands pay only on chips whose tensor cores do 1,024 multiply-adds or more in
// a cycle.
#pragma once

#include <instructions.cuh>

#include "launch.cuh"
#include "math.cuh"

namespace ditn::cuda {

// The chips for which kernels with bands are compiled; and whether the current device is one of those that are to run them.
#if __CUDA_ARCH__ == 800 || (__CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1100)
constexpr bool kBands = true;
#else
constexpr bool kBands = false;
#endif
inline bool has_bands(const char* name) {
  const int capability = compute_capability(name);
  return capability == 80 || (capability >= 90 && capability < 110);
}

constexpr int kPlaces = 5;

struct alignas(16) BandWords {
  unsigned taps[3], bias;  // pairs of halves; the bias twice
};

// A lane's place.
__device__ __forceinline__ int band_place() {
  const int d = column() - row() + 1;
  return d >= -1 && d <= 2 ? d + 1 : 4;
}

// The tables of the channels of all layers.
struct Bands {
  const BandWords* words;     // [layers][channels][kPlaces]
  const __half2* input_bias;  // [layers][channels]: another bias, that of what is convolved, twice
  int channels;
  __host__ __device__ Bands of_layer(int64_t i) const {
    return {words + i * channels * kPlaces, input_bias + i * channels, channels};
  }
};

// [layers][3][3][parts * outputs]; biases [layers][parts * outputs].
struct BandSources {
  const __half *weight, *bias, *input_bias;
  int parts, outputs;
};

// Grid: (channels, layers). A thread per place.
__global__ void _pack_bands_kernel(BandWords* words, __half2* input_bias, BandSources sources) {
  const int output = blockIdx.x / sources.parts, channels = sources.parts * sources.outputs;
  const int channel = blockIdx.x % sources.parts * sources.outputs + output, place = threadIdx.x;
  const int64_t layer = blockIdx.y, target = layer * gridDim.x + blockIdx.x;
  if (place >= kPlaces) return;
  const auto of_channel = [&](const __half* values) {
    return output < sources.outputs ? values[channel] : __half(0.0f);
  };
  const auto tap = [&](int i, int j) {
    return j >= 0 && j < 3 ? of_channel(sources.weight + ((layer * 3 + i) * 3 + j) * channels) : __half(0.0f);
  };
  const auto word = [](__half first, __half second) {
    const __half2 pair = __halves2half2(first, second);
    return reinterpret_cast<const unsigned&>(pair);
  };
  BandWords found;
  for (int i = 0; i < 3; ++i) found.taps[i] = word(tap(i, place - 1), tap(i, place));
  const __half bias = of_channel(sources.bias + layer * channels);
  found.bias = word(bias, bias);
  words[target * kPlaces + place] = found;
  if (place == 0) input_bias[target] = __half2half2(of_channel(sources.input_bias + layer * channels));
}

// Channels go by turns through the parts, and end with zeros: `padded` of each part.
inline Bands pack_bands(Device& device, const char* name, const BandSources& sources, int padded, int layers) {
  const int channels = sources.parts * padded;
  auto* words = static_cast<BandWords*>(device.allocate_weights(layers * channels * kPlaces * sizeof(BandWords)));
  auto* input_bias = static_cast<__half2*>(device.allocate_weights(layers * channels * sizeof(__half2)));
  if (!device.has_weights()) launch(device, name, _pack_bands_kernel, dim3(channels, layers), 32, 0, words, input_bias, sources);
  return {words, input_bias, channels};
}

// sums [16 lines, 8] += a b for two blocks of depth 8, or for one. Sums are pairs of halves: of row() of the upper 8 lines and
// of row() of the lower 8, at column().
__device__ __forceinline__ void multiply_bands(unsigned (&sums)[2], const unsigned (&lines)[4], unsigned b0, unsigned b1) {
  if constexpr (kBands) mma_m16n8k16(sums, lines, b0, b1);
}
__device__ __forceinline__ void multiply_bands(unsigned (&sums)[2], unsigned upper, unsigned lower, unsigned b) {
  if constexpr (kBands) mma_m16n8k8(sums, upper, lower, b);
}

}  // namespace ditn::cuda
