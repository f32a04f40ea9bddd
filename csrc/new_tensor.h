// SPDX-License-Identifier: Apache-2.0
// New tensors, for torch's side of the kernels on every device.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <exception>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace ditn {

// On the device of `like`, and of its type unless one is given. PyTorch's stable interface drops what PyTorch says where
// there is no room, so that it is said here, in words by which Python knows it (ditn_kernels/_memory.py).
inline torch::stable::Tensor new_tensor(const torch::stable::Tensor& like, const std::vector<int64_t>& sizes,
                                        std::optional<torch::headeronly::ScalarType> type = std::nullopt) {
  try {
    return torch::stable::new_empty(like, sizes, type);
  } catch (const std::exception&) {
    std::string shape;
    for (const int64_t size : sizes) shape += (shape.empty() ? "" : " x ") + std::to_string(size);
    throw std::runtime_error("ditn_native: out of memory, there is no room for a tensor of " + shape);
  }
}

}  // namespace ditn
