// SPDX-License-Identifier: Apache-2.0
// The kernels' scratch memory inside the piece of memory that TensorRT reserves for a layer.
#pragma once

#include "../cuda/kernels.h"

namespace ditn::tensorrt {

constexpr size_t kAlignment = 256;  // what a Device promises

inline size_t aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// Hands the memory out. TensorRT promises no alignment.
class Workspace : public cuda::Device {
 public:
  Workspace(void* memory, cudaStream_t stream) : Device(stream), next_(aligned(reinterpret_cast<size_t>(memory))) {}

  void* allocate(size_t bytes) override {
    void* memory = reinterpret_cast<void*>(next_);
    next_ += aligned(bytes);
    return memory;
  }

 private:
  size_t next_;
};

// Finds out how much of it there has to be.
class MeasuredWorkspace : public cuda::Device {
 public:
  MeasuredWorkspace() : Device(nullptr, false) {}

  void* allocate(size_t bytes) override {
    bytes_ += aligned(bytes);
    return nullptr;
  }

  size_t bytes() const { return bytes_ ? bytes_ + kAlignment - 1 : 0; }

 private:
  size_t bytes_ = 0;
};

}  // namespace ditn::tensorrt
