// SPDX-License-Identifier: Apache-2.0
// An operator whose weights were prepared for its kernels once, for torch's side of the kernels on every device.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>

namespace ditn {

// What the numbers stand for that `ditn_native::prepare_<op>` give. Whoever got one releases it.
class Handle {
 public:
  Handle() = default;
  Handle(const Handle&) = delete;
  virtual ~Handle() = default;
  // `skip` is the second map of those operators that have one, and x of others. May be called by several threads at once.
  virtual torch::stable::Tensor run(const torch::stable::Tensor& x, const torch::stable::Tensor& skip) = 0;

  bool lasts = false;  // not for a single call
};

inline int64_t number_of(Handle* handle) {
  handle->lasts = true;
  return reinterpret_cast<int64_t>(handle);
}

}  // namespace ditn
