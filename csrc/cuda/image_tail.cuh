// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "conv3x3.cuh"
#include "hopper.h"

namespace ditn::cuda {

template <class T>
void image_tail(Device& device, Shape shape, const T* x, const T* skip, T* y, const TailOf<const T>& w) {
#ifdef DITN_HOPPER
  if constexpr (sizeof(T) == sizeof(__half)) {
    if (hopper::serves_image_tail(shape, w.outputs)) return hopper::image_tail(device, shape, x, skip, y, w);
  }
#endif
  constexpr const char* kName = "image_tail";
  Packer<T> packer(device, kName, 9);
  const Weight<T> body = pack_conv3x3(packer, w.body_weight, shape.channels, shape.channels);
  const Weight<T> up = pack_conv3x3(packer, w.up_weight, shape.channels, w.outputs);
  packer.run();
  const int64_t values = shape.batch * shape.height * shape.width * shape.channels;
  auto* deep = static_cast<T*>(device.allocate(values * sizeof(T)));
  launch_conv3x3<T>(device, kName, shape, x, deep, body, shape.channels, w.body_bias, skip, 1);
  launch_conv3x3<T>(device, kName, shape, deep, y, up, w.outputs, w.up_bias, nullptr, w.upscale);
}

}  // namespace ditn::cuda
