// SPDX-License-Identifier: Apache-2.0
// The kernels for sm_90a. No GPU has run them yet; DITN_CUDA_HOPPER=0 leaves their work to those of kernels.cu.
#include "hopper.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <iterator>
#include <string>
#include <string_view>

#include "hopper/ffn_map.cuh"
#include "hopper/gate.cuh"
#include "hopper/image.cuh"
#include "hopper/stage.cuh"

namespace ditn::cuda::hopper {

namespace {

bool wanted() {
  const char* value = std::getenv("DITN_CUDA_HOPPER");
  return !value || std::string(value) != "0";
}

constexpr std::string_view kNames[] = {"inner_patch_stage", "gated_ffn", "image_head", "image_tail", "dilated_gate"};
std::atomic<unsigned> on{wanted() ? (1u << std::size(kNames)) - 1 : 0};
thread_local int most_blocks = 0;

unsigned bit_of(Operator which) { return 1u << static_cast<unsigned>(which); }

// 0 if it has no kernels here.
unsigned bit_of(std::string_view name) {
  const auto found = std::find(std::begin(kNames), std::end(kNames), name);
  return found == std::end(kNames) ? 0 : 1u << (found - std::begin(kNames));
}

// Whether an operator's kernels are on, and the current device is theirs.
bool serves(Operator which) {
  return on & bit_of(which) && compute_capability(kNames[static_cast<unsigned>(which)].data()) == 90;
}

}  // namespace

unsigned which_are_on() { return on; }

int persistent_blocks(const char* name) {
  if (most_blocks) return most_blocks;
  int device = 0, multiprocessors = 0;
  check(cudaGetDevice(&device), name);
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device), name);
  return multiprocessors;
}

bool serves_stage(const Shape& shape, int expanded, int patch) {
  return patch == 8 && shape.channels <= kSide && expanded <= kMostExpanded && serves(Operator::kInnerPatchStage);
}

template <class T>
void inner_patch_stage(Device& device, Shape shape, const T* x, T* y, const AttentionOf<const T>& attention,
                       const FfnOf<const T>& ffn, int layers, Norm norm) {
  stage::inner_patch_stage(device, "inner_patch_stage", shape, x, y, attention, ffn, layers, norm);
}

bool serves_ffn(const Shape& shape, int expanded, int patch) {
  return patch == 0 && shape.channels <= kSide && expanded <= ffn::kMostExpanded && serves(Operator::kGatedFfn);
}

template <class T>
void gated_ffn(Device& device, Shape shape, const T* x, T* y, const FfnOf<const T>& weights, Norm norm) {
  ffn::gated_ffn(device, "gated_ffn", shape, x, y, weights, norm);
}

bool serves_gate(const Shape& shape) { return shape.channels <= kSide && serves(Operator::kDilatedGate); }

template <class T>
void dilated_gate(Device& device, Shape shape, const T* x, T* y, const GateOf<const T>& weights, Norm norm) {
  gate::dilated_gate(device, "dilated_gate", shape, x, y, weights, norm);
}

bool serves_image_head(const Shape& shape, int outputs) {
  return shape.channels <= kSide && outputs <= kMostConvOutputs && serves(Operator::kImageHead);
}

bool serves_image_tail(const Shape& shape, int outputs) {
  return shape.channels <= kSide && outputs <= kMostConvOutputs && serves(Operator::kImageTail);
}

#define DITN_INSTANTIATE(T)                                                                                                   \
  template void inner_patch_stage<T>(Device&, Shape, const T*, T*, const AttentionOf<const T>&, const FfnOf<const T>&, int, Norm); \
  template void gated_ffn<T>(Device&, Shape, const T*, T*, const FfnOf<const T>&, Norm);                                       \
  template void dilated_gate<T>(Device&, Shape, const T*, T*, const GateOf<const T>&, Norm);                                    \
  template void image_head<T>(Device&, Shape, const T*, T*, const T*, const T*, int);                                           \
  template void image_tail<T>(Device&, Shape, const T*, const T*, T*, const TailOf<const T>&);

DITN_INSTANTIATE(__half)
DITN_INSTANTIATE(__nv_bfloat16)

}  // namespace ditn::cuda::hopper

// For ditn_kernels/backends/native/_hopper.py.
extern "C" {
#define DITN_EXPORT __attribute__((visibility("default")))

// Whether an operator has kernels here, and they are on.
DITN_EXPORT int ditn_cuda_hopper_is_on(const char* name) {
  return (ditn::cuda::hopper::on & ditn::cuda::hopper::bit_of(name)) != 0;
}

// Whether an operator's kernels serve, in all threads.
DITN_EXPORT void ditn_cuda_hopper_turn(const char* name, int on) {
  if (on) {
    ditn::cuda::hopper::on |= ditn::cuda::hopper::bit_of(name);
  } else {
    ditn::cuda::hopper::on &= ~ditn::cuda::hopper::bit_of(name);
  }
}

// How many blocks the launches of this thread have at most; 0: as many as run at once.
DITN_EXPORT void ditn_cuda_hopper_blocks(int most) { ditn::cuda::hopper::most_blocks = most; }

}  // extern "C"
