// SPDX-License-Identifier: Apache-2.0
// layer_norm2d: a run of pixels to a block.
#pragma once

#include "pixels.cuh"

namespace ditn::cuda {

constexpr int kRun = 64;

// y = weight * (x - mean) / sqrt(var + eps) + bias at every pixel.
// Grid: a block of 128 threads for every kRun pixels.
template <class T>
__global__ void __launch_bounds__(128)
    _layer_norm2d_kernel(Map<T> x, T* y, const T* weight, const T* bias, float eps, int64_t pixels) {
  T* rows = shared_memory<T>();  // [kRun][stride]
  const int stride = padded(x.channels) + kSpare<T>;
  const int64_t first = blockIdx.x * static_cast<int64_t>(kRun);
  const int count = static_cast<int>(min(pixels - first, static_cast<int64_t>(kRun)));
  const auto offset = [&](int i) { return (first + i) * x.channels; };
  load_pixels<128>(rows, stride, padded(x.channels), x, count, false, offset);
  __syncthreads();
  layer_norm<128>(rows, stride, x.channels, count, eps,
             [&](int c, float value) { return value * to_float(weight[c]) + to_float(bias[c]); });
  __syncthreads();
  store_pixels<128>(rows, stride, padded(x.channels), y, nullptr, x.quads, 0, x.channels, count, offset);
}

template <class T>
void layer_norm2d(Device& device, Shape shape, const T* x, T* y, const T* weight, const T* bias, float eps) {
  constexpr const char* kName = "layer_norm2d";
  const Map<T> map{x, shape.channels, in_quads(x, shape.channels) && in_quads(y, shape.channels)};
  const int64_t pixels = shape.batch * shape.height * shape.width;
  const size_t shared = kRun * (padded(shape.channels) + kSpare<T>) * sizeof(T);
  launch(device, kName, _layer_norm2d_kernel<T>, blocks_for(pixels, kRun, kName), 128, shared, map, y, weight, bias, eps, pixels);
}

}  // namespace ditn::cuda
