// SPDX-License-Identifier: Apache-2.0
// Images have 1 to 3 channels, of which a convolution by channels would fill tensor cores with zeros. In halves and from sm_75
// on, the products are over what a pixel sees in a line instead: three pixels of four values, the last of which is 1, for the
// bias, and one of them again, for which weights are zero. Three such products of depth 16 are the convolution.
#pragma once

#include "conv3x3.cuh"
#include "hopper.h"

namespace ditn::cuda {

constexpr int kImageChannels = 3, kHeadOutputs = 64;  // at most
constexpr int kHeadWidth = 64, kHeadHeight = 8;  // of a block's tile, a line for each warp
constexpr int kHeadThreads = 32 * kHeadHeight, kHeadSeenWidth = kHeadWidth + 2, kHeadSeen = (kHeadHeight + 2) * kHeadSeenWidth;
// The results of 16 pixels, between their products and y. With this stride four of them are in different banks.
constexpr int kHeadStride = kHeadOutputs + 16, kHeadGroup = 16;
constexpr size_t kHeadShared = (kHeadSeen * 4 + kHeadHeight * kHeadGroup * kHeadStride) * sizeof(__half);
constexpr int kHeadFragments = 3 * kHeadOutputs / 16;  // of the weight: [16 outputs][line]

// Both factors are permuted so that a lane's values lie side by side in memory. Of a product's depth it has the four values of
// one of the pixels that are seen, and of 16 columns four neighbouring outputs.
__device__ __forceinline__ Fragment load_image(const __half* seen) {
  const auto pixel = [&](int i) { return word_of(load_quad(seen + (row() + i + min(lane() % 4, 2)) * 4)); };
  const uint2 upper = pixel(0), lower = pixel(8);
  return {{upper.x, lower.x, upper.y, lower.y}};
}

// fragments: as above. Grid: a warp for each.
__global__ void _pack_head_kernel(Fragment* fragments, const __half* weight, const __half* bias, int channels, int outputs) {
  const int i = blockIdx.x, line = i % 3, right = lane() % 4;
  __half values[8];
  for (int k = 0; k < 8; ++k) {
    // Of word k / 2: channel and column of the fragment.
    const int c = k / 2 % 2 * 2 + k % 2, column = k / 4 * 8 + row();
    const int output = i / 3 * 16 + column % 8 / 2 * 4 + column / 8 * 2 + column % 2;
    values[k] = __half(0.0f);
    if (output >= outputs || right == 3) continue;
    if (c < channels) values[k] = weight[((line * 3 + right) * channels + c) * outputs + output];
    if (c == 3 && line == 1 && right == 1) values[k] = bias[output];
  }
  for (int k = 0; k < 4; ++k) {
    const __half2 pair = __halves2half2(values[2 * k], values[2 * k + 1]);
    fragments[i * 32 + lane()].words[k] = reinterpret_cast<const unsigned&>(pair);
  }
}

// y = conv3x3(image) + bias, with zero padding. line: places of a pixel in y, which are Quads, or values.
// Grid: a tile_grid.
__global__ void __launch_bounds__(kHeadThreads, 2)
    _image_head_kernel(const __half* image, int channels, __half* y, const Fragment* weight, int outputs, Divisor line, bool quads,
                       int height, int width) {
  assume_network(quads && channels == 3);
  if constexpr (!kVolta) {
    __half* seen = shared_memory<__half>();  // [kHeadHeight + 2][kHeadSeenWidth][4]
    __half* results = seen + kHeadSeen * 4 + warp() * kHeadGroup * kHeadStride;
    const TilePlace tile((height + kHeadHeight - 1) / kHeadHeight);
    const int top = tile.row * kHeadHeight, left = tile.column * kHeadWidth;
#pragma unroll
    for (int first = 0; first < kHeadSeen; first += kHeadThreads) {
      const int i = first + threadIdx.x, down = i / kHeadSeenWidth, right = i % kHeadSeenWidth;
      if (i >= kHeadSeen) continue;
      const int row = top - 1 + down, column = left - 1 + right;
      const bool exists = row >= 0 && row < height && column >= 0 && column < width;
      const __half* source = image + ((tile.image * height + row) * width + column) * channels;
      __half values[4] = {0.0f, 0.0f, 0.0f, 1.0f};
#pragma unroll
      for (int c = 0; c < kImageChannels; ++c) {
        if (exists && c < channels) values[c] = __ldg(source + c);
      }
      store_quad(seen + i * 4, Quad<__half>{{__halves2half2(values[0], values[1]), __halves2half2(values[2], values[3])}});
    }
    Fragment of_weight[kHeadFragments];
#pragma unroll
    for (int i = 0; i < kHeadFragments; ++i) {
      reinterpret_cast<uint4&>(of_weight[i]) = __ldg(reinterpret_cast<const uint4*>(weight + i * 32 + lane()));
    }
    __syncthreads();

    const int row_in_map = top + warp();
    if (row_in_map >= height) return;
    const int64_t first = (tile.image * height + row_in_map) * width + left;
#pragma unroll 1
    for (int x = 0; x < kHeadWidth && left + x < width; x += kHeadGroup) {
      float sums[kHeadOutputs / 8][4] = {};
#pragma unroll
      for (int i = 0; i < 3; ++i) {
        const Fragment pixels = load_image(seen + ((warp() + i) * kHeadSeenWidth + x) * 4);
#pragma unroll
        for (int n = 0; n < kHeadOutputs / 8; n += 2) {
          multiply(reinterpret_cast<float(&)[2][4]>(sums[n]), pixels, of_weight[n / 2 * 3 + i]);
        }
      }
      __syncwarp();  // the results before have been read
#pragma unroll
      for (int i = 0; i < kHeadOutputs / 8; ++i) {
        const float *left_sums = sums[i / 2 * 2] + i % 2 * 2, *right_sums = sums[i / 2 * 2 + 1] + i % 2 * 2;
        store_quad(results + (row() + i % 2 * 8) * kHeadStride + i / 2 * 16 + lane() % 4 * 4,
                   Quad<__half>{{__floats2half2_rn(left_sums[0], left_sums[1]), __floats2half2_rn(right_sums[0], right_sums[1])}});
      }
      __syncwarp();
      const int count = min(width - left - x, kHeadGroup) * line.value;
      __half* target = y + (first + x) * outputs;
      const auto source = [&](int i, int unit) {
        const int pixel = line.divide(i);
        return results + pixel * kHeadStride + (i - pixel * line.value) * unit;
      };
      if (quads) {
#pragma unroll
        for (int i = lane(); i < kHeadGroup * kHeadOutputs / 4; i += 32) {
          if (i < count) write_quad(target + i * 4, load_quad(source(i, 4)));
        }
      } else {
#pragma unroll 1
        for (int i = lane(); i < count; i += 32) target[i] = *source(i, 1);
      }
    }
  }
}

inline void launch_image_head(Device& device, const char* name, Shape shape, const __half* image, __half* y, const __half* weight,
                              const __half* bias, int outputs) {
  auto* packed = static_cast<Fragment*>(device.allocate_weights(kHeadFragments * 32 * sizeof(Fragment)));
  if (!device.has_weights()) {
    launch(device, name, _pack_head_kernel, dim3(kHeadFragments), 32, 0, packed, weight, bias, shape.channels, outputs);
  }
  const bool quads = in_quads(y, outputs);
  const dim3 tiles = tile_grid(name, shape.batch, parts(shape.height, kHeadHeight), parts(shape.width, kHeadWidth));
  launch(device, name, _image_head_kernel, tiles, kHeadThreads, kHeadShared, image, shape.channels, y, packed, outputs,
         Divisor(quads ? outputs / 4 : outputs), quads, static_cast<int>(shape.height), static_cast<int>(shape.width));
}

template <class T>
void image_head(Device& device, Shape shape, const T* image, T* y, const T* weight, const T* bias, int outputs) {
  constexpr const char* kName = "image_head";
  if constexpr (sizeof(T) == sizeof(__half)) {
    if (shape.channels <= kImageChannels && outputs <= kHeadOutputs && compute_capability(kName) >= 75) {
      return launch_image_head(device, kName, shape, image, y, weight, bias, outputs);
    }
#ifdef DITN_HOPPER
    if (hopper::serves_image_head(shape, outputs)) return hopper::image_head(device, shape, image, y, weight, bias, outputs);
#endif
  }
  Packer<T> packer(device, kName, 9);
  const Weight<T> packed = pack_conv3x3(packer, weight, shape.channels, outputs);
  packer.run();
  launch_conv3x3<T>(device, kName, shape, image, y, packed, outputs, bias, nullptr, 1);
}

}  // namespace ditn::cuda
