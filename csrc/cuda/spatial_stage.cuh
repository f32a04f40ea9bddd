// SPDX-License-Identifier: Apache-2.0
// spatial_stage: for each layer the kernels of dilated_gate and gated_ffn, with one map in between. A call of the host
// instead of two for each layer.
#pragma once

#include <vector>

#include "kernels.h"
#include "launch.cuh"

namespace ditn::cuda {

// What layers ask for one after the other, given to each of them: memory of the first one serves all, which run in turn;
// weights are each one's own.
class LayersDevice final : public Device {
 public:
  explicit LayersDevice(Device& device) : Device(device.stream, device.launches), device_(device) {}

  void begin_layer() { next_ = 0; }
  void* allocate(size_t bytes) override {
    if (next_ == memory_.size()) memory_.push_back(device_.allocate(bytes));
    return memory_[next_++];
  }
  void* allocate_weights(size_t bytes) override { return device_.allocate_weights(bytes); }
  bool has_weights() const override { return device_.has_weights(); }

 private:
  Device& device_;
  std::vector<void*> memory_;
  size_t next_ = 0;
};

template <class T>
GateOf<const T> of_layer(const GateOf<const T>& w, int64_t layer, int channels) {
  const int64_t vector = layer * channels, square = vector * channels;
  return {w.in_weight + 2 * square,   w.in_bias + 2 * vector, w.dw5_weight + 25 * vector, w.dw5_bias + vector,
          w.dw7_weight + 49 * vector, w.dw7_bias + vector,    w.mix_weight + square,      w.mix_bias + vector,
          w.out_weight + square,      w.out_bias + vector};
}

template <class T>
FfnOf<const T> of_layer(const FfnOf<const T>& w, int64_t layer, int channels) {
  const int64_t hidden = layer * w.expanded, matrix = hidden * channels;
  return {w.in_weight + 2 * matrix, w.in_bias + 2 * hidden,        w.dw_weight + 18 * hidden, w.dw_bias + 2 * hidden,
          w.out_weight + matrix,    w.out_bias + layer * channels, w.expanded};
}

template <class T>
void spatial_stage(Device& device, Shape shape, const T* x, T* y, const GateOf<const T>& gate, const FfnOf<const T>& ffn,
                   int layers, Norm norm) {
  const size_t bytes = shape.batch * shape.height * shape.width * shape.channels * sizeof(T);
  if (!bytes) return;
  if (!layers && device.launches) {
    check(cudaMemcpyAsync(y, x, bytes, cudaMemcpyDeviceToDevice, device.stream), "spatial_stage");
  }
  auto* gated = layers ? static_cast<T*>(device.allocate(bytes)) : nullptr;
  LayersDevice shared(device);
  for (int layer = 0; layer < layers; ++layer) {
    shared.begin_layer();
    dilated_gate<T>(shared, shape, layer ? y : x, gated, of_layer(gate, layer, shape.channels), norm);
    gated_ffn<T>(shared, shape, gated, y, of_layer(ffn, layer, shape.channels), norm, 0);
  }
}

}  // namespace ditn::cuda
