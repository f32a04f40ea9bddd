// SPDX-License-Identifier: Apache-2.0
// inner_patch_stage: a block to a multiprocessor, which takes four patches at a time through all layers, each by a warpgroup.
// The weights of a layer are in shared memory: those of attention are replaced by the next layer's during the FFN, and those
// of the FFN during attention, by a bulk copy that the last warpgroup starts which has done with them.
#pragma once

#include <algorithm>

#include "../hopper.h"
#include "attention.cuh"
#include "feed_forward.cuh"
#include "pack.cuh"

namespace ditn::cuda::hopper {

// What is to be done. `pairs`: two channels lie at a multiple of four bytes, in x and in y.
struct Stage {
  int patches, columns, channels, layers;
  bool pairs;

  // From a line of the map to the next.
  __device__ int row() const { return columns * 8 * channels; }
  // Of the first pixel of a patch that this thread has.
  __device__ int64_t place(int patch) const {
    const int line = patch / columns * 8 + threadIdx.x % 128 / 32 * 2, pixel = patch % columns * 8 + lane() / 4;
    return static_cast<int64_t>(line) * row() + pixel * channels;
  }
};

// Weights of one kind, attention's or the FFN's, as they come to shared memory and go: one layer's after the other's.
template <bool FULL>
class Supply {
 public:
  __device__ Supply(unsigned target, unsigned bytes, const unsigned char* source, unsigned arrival, unsigned counter)
      : target_(target), bytes_(bytes), arrival_(arrival), counter_(counter), source_(source) {}

  // By one thread, before the block meets.
  __device__ void prepare() const {
    prepare_arrival(arrival_);
    store_word(counter_, 0);
  }
  __device__ void start(int layer) const { start_bulk_copy(target_, source_ + layer * kLayerBytes<FULL>, bytes_, arrival_); }
  // By all lanes of a warp, which are together again afterwards.
  __device__ void wait(unsigned number) const {
    wait_for_arrival(arrival_, number);
    __syncwarp();
  }
  // By the threads of a warpgroup that has done with them, after they have met; all warpgroups do. Those of `layer` come next.
  __device__ void leave(int layer) const {
    if (threadIdx.x % 128 == 0 && arrives_last(counter_, kPatches)) start(layer);
  }

 private:
  unsigned target_, bytes_, arrival_, counter_;
  const unsigned char* source_;
};

// `weights`: [layers][kLayerBytes]. Grid: as many blocks as run at once, which take four patches in turn. FULL: 64 channels.
template <class T, Norm NORM, bool FULL>
__global__ void __launch_bounds__(128 * kPatches, 1)
    _hopper_stage_kernel(const T* x, T* y, const unsigned char* weights, const T* temperature, Stage stage) {
  using At = StageMemory<FULL>;
  assume_network(stage.pairs && stage.channels == (FULL ? kSide : 60));
  const unsigned memory = shared_address(shared_memory<unsigned char>()), arrivals = memory + At::kArrivalsAt;
  const unsigned weights_of_ffn = memory + kAttentionBytes<FULL>, ones = memory + At::kOnesAt;
  const int warpgroup = uniform(threadIdx.x / 128);
  const Supply<FULL> of_attention(memory, kAttentionBytes<FULL>, weights, arrivals, arrivals + 16);
  const Supply<FULL> of_ffn(weights_of_ffn, kFfnBytes<FULL>, weights + kAttentionBytes<FULL>, arrivals + 8, arrivals + 20);
  if (threadIdx.x == 0) {
    of_attention.prepare();
    of_ffn.prepare();
  }
  const unsigned patches = memory + At::kPatchesAt, mine = patches + warpgroup * kPatchBytes;
  const unsigned first = patches + warpgroup / 2 * 2 * kPatchBytes;
  clear_between_channels(mine + kTileBytes, threadIdx.x % 128, 2 * kSide + 1, 128);
  if constexpr (FULL) fill_ones<T>(ones);
  __syncthreads();
  if (threadIdx.x == 0 && stage.layers) of_attention.start(0);

  unsigned number = 0;  // of the layer at hand, among all that the block goes through
#pragma unroll 1
  for (int first_patch = blockIdx.x * kPatches; first_patch < stage.patches; first_patch += gridDim.x * kPatches) {
    const bool last = stage.patches - first_patch <= static_cast<int>(gridDim.x) * kPatches;
    const int patch = first_patch + warpgroup;
    const bool exists = patch < stage.patches;
    Stream<T> stream(x + stage.place(patch), stage.row(), stage.channels, stage.pairs, exists, exists);
#pragma unroll 1
    for (int layer = 0; layer < stage.layers; ++layer, ++number) {
      const float scale = to_float(__ldg(temperature + layer));
      meet(1 + warpgroup, 128);  // after that nobody needs what was in shared memory for the layer before
      of_ffn.leave(layer);
      of_attention.wait(number);
      attend<NORM, FULL>(stream, memory, ones, mine, scale, stage.channels, 1 + warpgroup);
      of_ffn.wait(number);
      const auto met = [&] {
        const bool more = layer + 1 < stage.layers;
        if (more || !last) of_attention.leave(more ? layer + 1 : 0);
      };
      feed_forward<NORM, FULL>(stream, weights_of_ffn, ones, first, mine, stage.channels, 1 + kPatches + warpgroup / 2, met);
    }
    // There are no registers to keep the place in.
    const int again = read_again(patch);
    if (again < stage.patches) stream.store(y + stage.place(again), stage.row(), stage.channels, stage.pairs);
  }
}

namespace stage {

template <bool FULL, class T>
void run(Device& device, const char* name, const Shape& shape, const T* x, T* y, const AttentionOf<const T>& attention,
         const FfnOf<const T>& ffn, int layers, Norm norm) {
  auto* weights = static_cast<T*>(device.allocate_weights(static_cast<size_t>(layers) * kLayerBytes<FULL>));
  constexpr unsigned kThreads = 256, kValues = kLayerBytes<FULL> / 2;
  if (!device.has_weights()) {
    launch(device, name, _pack_stage_kernel<T, FULL>, dim3((kValues + kThreads - 1) / kThreads, layers), kThreads, 0, weights,
           Packing<T, FULL>{attention, ffn, shape.channels});
  }
  const int64_t columns = shape.width / 8, patches = shape.batch * (shape.height / 8) * columns;
  const auto in_pairs = [&](const T* data) { return reinterpret_cast<uintptr_t>(data) % (2 * sizeof(T)) == 0; };
  const Stage stage{static_cast<int>(patches), static_cast<int>(columns), shape.channels, layers,
                    shape.channels % 2 == 0 && in_pairs(x) && in_pairs(y)};
  const dim3 blocks(std::min(blocks_for(patches, kPatches, name), static_cast<unsigned>(persistent_blocks(name))));
  const auto run_kernel = [&](auto kernel) {
    launch(device, name, kernel, blocks, 128 * kPatches, StageMemory<FULL>::kSharedBytes, x, y,
           reinterpret_cast<const unsigned char*>(weights), attention.temperature, stage);
  };
  if (norm == Norm::kTanh) return run_kernel(_hopper_stage_kernel<T, Norm::kTanh, FULL>);
  if (norm == Norm::kLayerNorm) return run_kernel(_hopper_stage_kernel<T, Norm::kLayerNorm, FULL>);
  run_kernel(_hopper_stage_kernel<T, Norm::kNone, FULL>);
}

template <class T>
void inner_patch_stage(Device& device, const char* name, const Shape& shape, const T* x, T* y, const AttentionOf<const T>& attention,
                       const FfnOf<const T>& ffn, int layers, Norm norm) {
  const auto run_kernels = shape.channels == kSide ? run<true, T> : run<false, T>;
  run_kernels(device, name, shape, x, y, attention, ffn, layers, norm);
}

}  // namespace stage

}  // namespace ditn::cuda::hopper
