// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "conv3x3.cuh"
#include "hopper.h"

namespace ditn::cuda {

template <class T>
void image_head(Device& device, Shape shape, const T* image, T* y, const T* weight, const T* bias, int outputs) {
#ifdef DITN_HOPPER
  if constexpr (sizeof(T) == sizeof(__half)) {
    if (hopper::serves_image_head(shape, outputs)) return hopper::image_head(device, shape, image, y, weight, bias, outputs);
  }
#endif
  constexpr const char* kName = "image_head";
  Packer<T> packer(device, kName, 9);
  const Weight<T> packed = pack_conv3x3(packer, weight, shape.channels, outputs);
  packer.run();
  launch_conv3x3<T>(device, kName, shape, image, y, packed, outputs, bias, nullptr, 1);
}

}  // namespace ditn::cuda
