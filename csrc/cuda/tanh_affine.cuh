// SPDX-License-Identifier: Apache-2.0
// tanh_affine: a run of pixels to a block, 64 of the outputs at a time.
#pragma once

#include "pack.cuh"
#include "pixels.cuh"

namespace ditn::cuda {

// y = W tanh(x) + b at every pixel.
// Grid: a block of four warps for every 64 pixels, 16 to a warp.
template <class T>
__global__ void __launch_bounds__(128, 3)
    _tanh_affine_kernel(Map<T> x, T* y, Weight<T> weight, const T* bias, int64_t pixels, bool quads) {
  constexpr int kPixels = 64, kOutputs = 64, kStride = kOutputs + kSpare<T>;
  T* u = shared_memory<T>();  // [kPixels][stride]
  const int stride = padded(x.channels) + kSpare<T>, outputs = weight.outputs;
  T* result = u + kPixels * stride;  // [kPixels][kStride]
  const int64_t first = blockIdx.x * static_cast<int64_t>(kPixels);
  const int count = static_cast<int>(min(pixels - first, static_cast<int64_t>(kPixels)));
  load_pixels<128>(u, stride, padded(x.channels), x, kPixels, true,
              [&](int i) { return i < count ? (first + i) * x.channels : -1; });
  __syncthreads();
  for (int o = 0; o < outputs; o += kOutputs) {
    float sums[kOutputs / 8][4] = {};
    product(sums, Rows<T>{u, stride}, 16 * warp(), weight, o, x.channels);
    for (int n = 0; n < kOutputs / 8; ++n) {
      const int c = o + 8 * n + column();
      const float left = c < outputs ? to_float(bias[c]) : 0.0f, right = c + 1 < outputs ? to_float(bias[c + 1]) : 0.0f;
      T* target = result + (16 * warp() + row()) * kStride + 8 * n + column();
      store_pair(target, sums[n][0] + left, sums[n][1] + right);
      store_pair(target + 8 * kStride, sums[n][2] + left, sums[n][3] + right);
    }
    __syncthreads();
    store_pixels<128>(result, kStride, kOutputs, y, nullptr, quads, o, min(outputs - o, kOutputs), count,
                    [&](int i) { return (first + i) * outputs; });
    __syncthreads();
  }
}

template <class T>
void tanh_affine(Device& device, Shape shape, const T* x, T* y, const T* weight, const T* bias, int outputs) {
  constexpr const char* kName = "tanh_affine";
  const int64_t pixels = shape.batch * shape.height * shape.width;
  Packer<T> packer(device, kName);
  const Weight<T> packed = packer.add(weight, shape.channels, outputs, outputs, padded(shape.channels), (outputs + 63) / 64 * 64);
  packer.run();
  const size_t shared = 64 * (padded(shape.channels) + 64 + 2 * kSpare<T>) * sizeof(T);
  launch(device, kName, _tanh_affine_kernel<T>, blocks_for(pixels, 64, kName), 128, shared,
         Map<T>{x, shape.channels, in_quads(x, shape.channels)}, y, packed, bias, pixels, in_quads(y, outputs));
}

}  // namespace ditn::cuda
