// SPDX-License-Identifier: Apache-2.0
// Sizes and options that kernels divide by or count from, for torch's side of the kernels on every device. Whoever calls
// has checked them (ditn_kernels/ops/_rules.py), but `torch.ops.ditn_native` can be called by anyone: an error, not a crash.
#pragma once

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>

namespace ditn {

inline int at_least(int least, int64_t value, const char* name) {
  if (value < least || value > std::numeric_limits<int>::max()) {
    throw std::runtime_error(std::string("ditn_native: ") + name + " is " + std::to_string(value) + ", must be " +
                             std::to_string(least) + " or more");
  }
  return static_cast<int>(value);
}

// Of an image_tail with so many outputs of its second convolution, which are whole colours.
inline int upscale_for(int64_t outputs, int64_t upscale) {
  const int64_t scale = at_least(1, upscale, "upscale"), square = scale * scale;
  if (outputs < 1 || outputs % square) {
    throw std::runtime_error("ditn_native: D is " + std::to_string(outputs) + ", must be a positive multiple of upscale^2 = " +
                             std::to_string(square));
  }
  return static_cast<int>(scale);
}

}  // namespace ditn
