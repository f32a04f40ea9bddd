// SPDX-License-Identifier: Apache-2.0
// The kernels for sm_90a. No GPU has run them yet; DITN_CUDA_HOPPER=0 leaves their work to those of kernels.cu.
#include "hopper.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <string>

#include "hopper/pack.cuh"
#include "hopper/stage.cuh"

namespace ditn::cuda::hopper {

namespace {

int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
  return value;
}

bool wanted() {
  const char* value = std::getenv("DITN_CUDA_HOPPER");
  return !value || std::string(value) != "0";
}

std::atomic<bool> is_on{wanted()};
thread_local int most_blocks = 0;

}  // namespace

bool are_on() { return is_on; }

bool serves_stage(const Shape& shape, int expanded, int patch) {
  if (!is_on || patch != 8 || shape.channels > kMostChannels || expanded > kMostExpanded) return false;
  return device_attribute(cudaDevAttrComputeCapabilityMajor) == 9 && device_attribute(cudaDevAttrComputeCapabilityMinor) == 0;
}

void inner_patch_stage(Device& device, Shape shape, const __half* x, __half* y, const AttentionOf<const __half>& attention,
                       const FfnOf<const __half>& ffn, int layers, Norm norm) {
  constexpr const char* kName = "inner_patch_stage";
  auto* weights = static_cast<__half*>(device.allocate_weights(static_cast<size_t>(layers) * kLayerBytes));
  constexpr unsigned kThreads = 256, kHalves = kLayerBytes / 2;
  if (!device.has_weights()) {
    launch(device, kName, _pack_stage_kernel, dim3((kHalves + kThreads - 1) / kThreads, layers), kThreads, 0, weights,
           Packing{attention, ffn, shape.channels});
  }
  const int64_t columns = shape.width / 8, patches = shape.batch * (shape.height / 8) * columns;
  const auto in_pairs = [&](const __half* data) { return reinterpret_cast<uintptr_t>(data) % sizeof(__half2) == 0; };
  const Stage stage{static_cast<int>(patches), static_cast<int>(columns), shape.channels, layers,
                    shape.channels % 2 == 0 && in_pairs(x) && in_pairs(y)};
  const int most = most_blocks ? most_blocks : device_attribute(cudaDevAttrMultiProcessorCount);
  const dim3 blocks(std::min(blocks_for(patches, kPatches, kName), static_cast<unsigned>(most)));
  const auto run = [&](auto kernel) {
    launch(device, kName, kernel, blocks, 128 * kPatches, kSharedBytes, x, y, reinterpret_cast<const unsigned char*>(weights),
           attention.temperature, stage);
  };
  if (norm == Norm::kTanh) return run(_hopper_stage_kernel<Norm::kTanh>);
  if (norm == Norm::kLayerNorm) return run(_hopper_stage_kernel<Norm::kLayerNorm>);
  run(_hopper_stage_kernel<Norm::kNone>);
}

}  // namespace ditn::cuda::hopper

// For ditn_kernels/backends/native/_hopper.py.
extern "C" {
#define DITN_EXPORT __attribute__((visibility("default")))

DITN_EXPORT int ditn_cuda_hopper_is_on() { return ditn::cuda::hopper::are_on(); }

// Whether these kernels serve, in all threads.
DITN_EXPORT void ditn_cuda_hopper_turn(int on) { ditn::cuda::hopper::is_on = on; }

// How many blocks the launches of this thread have at most; 0: as many as run at once.
DITN_EXPORT void ditn_cuda_hopper_blocks(int most) { ditn::cuda::hopper::most_blocks = most; }

}  // extern "C"
