// SPDX-License-Identifier: Apache-2.0
// image_head and image_tail of kernels.h, by the convolution of conv3x3.cuh, whose weights are packed here.
#pragma once

#include <algorithm>

#include "../hopper.h"
#include "conv3x3.cuh"

namespace ditn::cuda::hopper {

// A weight [3, 3, inputs, outputs] and its bias, for kernels of so many columns. Outputs are those of `square` pixels.
template <class T>
struct ConvPacking {
  const T *weight, *bias;
  int inputs, outputs, square, columns;
};

// target: ConvMemory's weights of all columns. Grid: (a thread per value of a tap's tile; columns, taps and the biases).
template <class T>
__global__ void _pack_conv3x3_kernel(unsigned char* target, ConvPacking<T> packing) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x, columns = packing.columns, tap = blockIdx.y % 10;
  const int column = tap < 9 ? i / kSide : i, slice = blockIdx.y / 10;
  if (column >= columns) return;
  // Among the outputs as they lie in y, then as they are counted in the weight.
  const int place = slice * columns + (tap < 9 ? output_of_column(column) : column), channels = packing.outputs / packing.square;
  const int output = place % channels * packing.square + place / channels;
  const bool exists = place < packing.outputs;
  target += slice * (9 * columns * kSide * 2 + columns * static_cast<int>(sizeof(float)));
  if (tap == 9) {
    reinterpret_cast<float*>(target + 9 * columns * kSide * 2)[i] = exists ? to_float(packing.bias[output]) : 0.0f;
    return;
  }
  // The exchange of pieces that tile_descriptor speaks of.
  const int input = (i / 8 % 8 ^ column % 8) * 8 + i % 8;
  const T* weight = packing.weight + (static_cast<int64_t>(tap) * packing.inputs + input) * packing.outputs + output;
  reinterpret_cast<T*>(target)[tap * columns * kSide + i] = exists && input < packing.inputs ? *weight : T(0.0f);
}

// A weight as the kernel takes it. It multiplies by `columns` at a time.
struct ConvWeight {
  const unsigned char* data;
  int columns, slices;
};

template <class T>
ConvWeight pack_conv3x3(Device& device, const char* name, const T* weight, const T* bias, int inputs, int outputs, int upscale,
                        int columns) {
  const int slices = (outputs + columns - 1) / columns;
  const size_t bytes = 9 * columns * kSide * sizeof(T) + columns * sizeof(float);
  auto* target = static_cast<unsigned char*>(device.allocate_weights(slices * bytes));
  if (!device.has_weights()) {
    constexpr unsigned kThreads = 256;
    launch(device, name, _pack_conv3x3_kernel<T>, dim3((columns * kSide + kThreads - 1) / kThreads, 10 * slices), kThreads, 0, target,
           ConvPacking<T>{weight, bias, inputs, outputs, upscale * upscale, columns});
  }
  return {target, columns, slices};
}

// `padded`: x has 64 channels, whatever the shape says, and y gets as many.
template <class T>
void launch_conv3x3(Device& device, const char* name, Shape shape, const T* x, bool padded, const ConvWeight& weight, const T* skip,
                    T* y, int outputs, int upscale) {
  const int rows = (shape.height + kConvHeight - 1) / kConvHeight, columns = (shape.width + kConvWidth - 1) / kConvWidth;
  const int run = outputs / upscale, channels = padded ? kSide : shape.channels;
  const unsigned tiles = blocks_for(shape.batch * rows * columns, 1, name);
  const Conv<T> conv{.x = x,
                  .skip = skip,
                  .y = y,
                  .height = static_cast<int>(shape.height),
                  .width = static_cast<int>(shape.width),
                  .channels = channels,
                  .rows = rows,
                  .columns = columns,
                  .tiles = static_cast<int>(tiles),
                  .outputs = outputs,
                  .upscale = upscale,
                  .run = run,
                  .line = Divisor(run),
                  .quads = in_quads(x, channels) && (!skip || in_quads(skip, channels)),
                  .y_quads = in_quads(y, run)};
  const dim3 blocks(std::min(tiles, static_cast<unsigned>(persistent_blocks(name))), weight.slices);
  const auto run_kernel = [&](auto kernel, size_t shared_bytes) {
    launch(device, name, kernel, blocks, kConvThreads, shared_bytes, conv, weight.data);
  };
  if (!padded) return run_kernel(_hopper_conv3x3_kernel<T, 64, false>, ConvMemory<64>::kSharedBytes);
  if (weight.columns == 16) return run_kernel(_hopper_conv3x3_kernel<T, 16, true>, ConvMemory<16>::kSharedBytes);
  if (weight.columns == 32) return run_kernel(_hopper_conv3x3_kernel<T, 32, true>, ConvMemory<32>::kSharedBytes);
  if (weight.columns == 48) return run_kernel(_hopper_conv3x3_kernel<T, 48, true>, ConvMemory<48>::kSharedBytes);
  run_kernel(_hopper_conv3x3_kernel<T, 64, true>, ConvMemory<64>::kSharedBytes);
}

template <class T>
void image_head(Device& device, Shape shape, const T* image, T* y, const T* weight, const T* bias, int outputs) {
  constexpr const char* kName = "image_head";
  const ConvWeight packed = pack_conv3x3(device, kName, weight, bias, shape.channels, outputs, 1, kSide);
  launch_conv3x3<T>(device, kName, shape, image, false, packed, nullptr, y, outputs, 1);
}

// Between the convolutions is a map of 64 channels, so that its pixels can be copied 16 bytes at a time.
template <class T>
void image_tail(Device& device, Shape shape, const T* x, const T* skip, T* y, const TailOf<const T>& w) {
  constexpr const char* kName = "image_tail";
  const ConvWeight body = pack_conv3x3(device, kName, w.body_weight, w.body_bias, shape.channels, shape.channels, 1, kSide);
  const ConvWeight up = pack_conv3x3(device, kName, w.up_weight, w.up_bias, shape.channels, w.outputs, w.upscale,
                                   std::min((w.outputs + 15) / 16 * 16, kSide));
  auto* deep = static_cast<T*>(device.allocate(shape.batch * shape.height * shape.width * kSide * sizeof(T)));
  launch_conv3x3(device, kName, shape, x, false, body, skip, deep, kSide, 1);
  launch_conv3x3<T>(device, kName, shape, deep, true, up, nullptr, y, w.outputs, w.upscale);
}

}  // namespace ditn::cuda::hopper
