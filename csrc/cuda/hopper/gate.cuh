// SPDX-License-Identifier: Apache-2.0
// dilated_gate for up to 64 channels: two kernels, as in ../dilated_gate.cuh, with all that is multiplied on tensor cores.
#pragma once

#include <algorithm>
#include <type_traits>

#include "../hopper.h"
#include "gate_far.cuh"
#include "gate_near.cuh"

namespace ditn::cuda::hopper::gate {

inline int parts(int whole, int size) { return (whole + size - 1) / size; }

template <Norm NORM, bool FULL, class T>
void run(Device& device, const char* name, int64_t images, const T* x, T* y, unsigned char* near,
         const unsigned char* weights, const Gate& gate) {
  const auto launch_tiles = [&](auto kernel, int rows, int columns, int at_once, unsigned threads, size_t shared,
                                const auto&... arguments) {
    const unsigned blocks = std::min(blocks_for(images * rows * columns, 1, name), static_cast<unsigned>(at_once));
    const Tiles tiles(static_cast<int>(images), rows, columns, blocks);
    launch(device, name, kernel, dim3(blocks), threads, shared, arguments..., gate, tiles);
  };
  const int most = persistent_blocks(name);
  launch_tiles(_hopper_gate_near_kernel<T, NORM, FULL>, gate.lines / kNearLines, gate.chunks, 2 * most, kNearThreads, FULL ? kNearFullShared : kNearShared, x, near,
               weights);
  launch_tiles(_hopper_gate_far_kernel<T, NORM, FULL>, parts(gate.height, kFarLines), parts(gate.width, kChunk), most, kFarThreads,
               FULL ? kFarFullShared : kFarShared, x, near, y, weights + kNearWeights);
}

template <class T>
void dilated_gate(Device& device, const char* name, const Shape& shape, const T* x, T* y, const GateOf<const T>& w, Norm norm) {
  auto* weights = static_cast<unsigned char*>(device.allocate_weights(kPacked));
  constexpr unsigned kThreads = 256, kValues = kPacked / 2;
  if (!device.has_weights()) {
    launch(device, name, _pack_gate_kernel<T>, dim3((kValues + kThreads - 1) / kThreads), kThreads, 0,
           reinterpret_cast<T*>(weights), GatePacking<T>{w, shape.channels});
  }
  if (shape.batch * shape.height * shape.width == 0) return;
  const auto in_pairs = [&](const T* data) { return reinterpret_cast<uintptr_t>(data) % (2 * sizeof(T)) == 0; };
  const Gate gate{{shape, kFarLines}, shape.channels % 2 == 0 && in_pairs(x) && in_pairs(y)};
  auto* near = static_cast<unsigned char*>(device.allocate(gate.place(shape.batch, 0, 0, 0)));
  const auto run_with = [&]<Norm NORM>(std::integral_constant<Norm, NORM>) {
    const auto run_kernels = shape.channels == kSide ? run<NORM, true, T> : run<NORM, false, T>;
    run_kernels(device, name, shape.batch, x, y, near, weights, gate);
  };
  if (norm == Norm::kTanh) return run_with(std::integral_constant<Norm, Norm::kTanh>());
  if (norm == Norm::kLayerNorm) return run_with(std::integral_constant<Norm, Norm::kLayerNorm>());
  run_with(std::integral_constant<Norm, Norm::kNone>());
}

}  // namespace ditn::cuda::hopper::gate
