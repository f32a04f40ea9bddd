// SPDX-License-Identifier: Apache-2.0
// inner_patch_stage. For the shipped networks' patches, of 8 by 8 pixels and up to 64 channels in halves, one kernel: a patch
// to a block, which takes it through all layers. Its pixels stay in registers, as halves that are rounded between the layers;
// shared memory holds what the layer at hand needs. All others do not fit there: each layer is the two operators' kernels.
#pragma once

#include "gated_ffn.cuh"
#include "hopper.h"
#include "inner_patch_attention.cuh"

namespace ditn::cuda {

// The 64 pixels of a patch of 8 by 8 and up to 64 channels, by 128 threads: a thread has a Quad of every eighth pixel.
class Stream {
 public:
  static constexpr int kQuads = 8, kStride = 64 + kSpare<__half>;

  __device__ Stream(const Map<__half>& map, const Patch& patch) : channels_(map.channels) {
    const __half* source = map.data + patch(first_) + channel_;
#pragma unroll
    for (int i = 0; i < kQuads; ++i, source += patch.row) {
      quads_[i] = Quad<__half>{};
      if (map.quads) {
        if (channel_ < channels_) quads_[i] = fetch_quad(source);
      } else {
        __half values[4] = {};
        for (int k = 0; k < 4 && channel_ + k < channels_; ++k) values[k] = source[k];
        quads_[i] = {{__halves2half2(values[0], values[1]), __halves2half2(values[2], values[3])}};
      }
    }
  }

  __device__ void store(const Map<__half>& map, __half* y, const Patch& patch) const {
    __half* target = y + patch(first_) + channel_;
#pragma unroll
    for (int i = 0; i < kQuads; ++i, target += patch.row) {
      if (map.quads) {
        if (channel_ < channels_) write_quad(target, quads_[i]);
      } else {
        const __half2(&pairs)[2] = quads_[i].pairs;
        const __half values[4] = {__low2half(pairs[0]), __high2half(pairs[0]), __low2half(pairs[1]), __high2half(pairs[1])};
        for (int k = 0; k < 4 && channel_ + k < channels_; ++k) target[k] = values[k];
      }
    }
  }

  // rows [64][kStride] = the norm of the pixels. Other threads may read them after the next barrier.
  __device__ void normalize(__half* rows, Norm norm) const {
#pragma unroll
    for (int i = 0; i < kQuads; ++i) {
      store_quad(place(rows, i), norm == Norm::kTanh ? tanh_of(quads_[i]) : quads_[i]);
    }
    if (norm == Norm::kLayerNorm) {
      __syncthreads();
      layer_norm<128>(rows, kStride, channels_, 64, kLayerNormEps, [](int, float value) { return value; });
    }
  }

  // Adds rows [64][kStride].
  __device__ void add(const __half* rows) {
    if (channel_ >= channels_) return;
#pragma unroll
    for (int i = 0; i < kQuads; ++i) quads_[i] = sum_of(quads_[i], load_quad(place(rows, i)));
  }

 private:
  template <class T>
  __device__ T* place(T* rows, int i) const {
    return rows + (first_ + i * kQuads) * kStride + channel_;
  }

  const int channels_, first_ = threadIdx.x % 128 / 16, channel_ = threadIdx.x % 16 * 4;
  Quad<__half> quads_[kQuads];
};

using StageFfn = FfnTile<__half, 64, 8>;
using StageAttention = AttentionTiles<__half, 64, 64>;
constexpr size_t kStageFfnBytes = (StageFfn::kSeenRows * StageFfn::kStride + StageFfn::kScratch) * sizeof(__half);
constexpr size_t kStageBytes = kStageFfnBytes > StageAttention::kBytes ? kStageFfnBytes : StageAttention::kBytes;
static_assert(Stream::kStride == StageFfn::kStride && Stream::kStride == StageAttention::kPixelStride);
// Of a thread, without spills: for four blocks at once, from sm_100 on for two.
#if __CUDA_ARCH__ >= 1000
constexpr int kStageRegisters = 200;
#else
constexpr int kStageRegisters = 128;
#endif

// `layers` times x + attention(x), then x + ffn(x), in every patch of 8 by 8 pixels.
// Grid: a block for every patch.
__global__ void __launch_bounds__(128, blocks_at_once(kStageBytes, 128, kStageRegisters))
    _inner_patch_stage_kernel(Map<__half> x, __half* y, PackedAttention<__half> attention, FfnWeights<__half> ffn, int layers,
                              Norm norm, int columns) {
  const bool quads = x.quads;
  assume_network(quads, norm);
  __half* rows = shared_memory<__half>();
  __half* scratch = rows + StageFfn::kSeenRows * StageFfn::kStride;
  Stream stream({x.data, x.channels, quads}, patch_of_block(columns, x.channels, 8));
  for (int layer = 0; layer < layers; ++layer) {
    attend<64, 64, 1>(
        attention.of_layer(layer), x.channels, rows, [&](int, __half* u) { stream.normalize(u, norm); },
        [&](int, const __half* result) { stream.add(result); });
    stream.normalize(rows, norm);
    __syncthreads();
    clear_hidden<StageFfn>(scratch);
    __syncthreads();
    feed_forward<StageFfn>(rows, scratch, ffn.of_layer(layer), [](int, int) { return true; });
    __syncthreads();
    stream.add(rows);
  }
  // Asked for again: what is not needed before would be kept through all layers, in registers that there are not.
  const bool quads_again = read_again(x.quads);
  assume_network(quads_again, norm);
  stream.store({x.data, x.channels, quads_again}, y, patch_of_block(read_again(columns), x.channels, 8));
}

inline void launch_stage(Device& device, const char* name, Shape shape, const __half* x, __half* y,
                         const PackedAttention<__half>& attention, const FfnWeights<__half>& ffn, int layers, Norm norm) {
  const int columns = static_cast<int>(shape.width / 8);
  const int64_t patches = shape.batch * (shape.height / 8) * columns;
  const Map<__half> map{x, shape.channels, in_quads(x, shape.channels) && in_quads(y, shape.channels)};
  launch(device, name, _inner_patch_stage_kernel, blocks_for(patches, 1, name), 128, kStageBytes, map, y, attention, ffn, layers,
         norm, columns);
}

template <class T>
void inner_patch_stage(Device& device, Shape shape, const T* x, T* y, const AttentionOf<const T>& attention,
                       const FfnOf<const T>& ffn, int layers, Norm norm, int patch) {
  constexpr const char* kName = "inner_patch_stage";
  const size_t bytes = shape.batch * shape.height * shape.width * shape.channels * sizeof(T);
  if (!bytes) return;
#ifdef DITN_HOPPER
  if constexpr (sizeof(T) == sizeof(__half)) {
    if (hopper::serves_stage(shape, ffn.expanded, patch)) return hopper::inner_patch_stage(device, shape, x, y, attention, ffn, layers, norm);
  }
#endif
  Packer<T> packer(device, kName, layers);
  const PackedAttention<T> packed_attention = packed(packer, attention, shape.channels);
  const FfnWeights<T> packed_ffn = pack_ffn(device, packer, kName, ffn, shape.channels, layers);
  packer.run();
  if constexpr (sizeof(T) == sizeof(__half)) {
    if (patch == 8 && shape.channels <= 64) {
      return launch_stage(device, kName, shape, x, y, packed_attention, packed_ffn, layers, norm);
    }
  }
  auto* attended = static_cast<T*>(device.allocate(bytes));
  if (!layers && device.launches) check(cudaMemcpyAsync(y, x, bytes, cudaMemcpyDeviceToDevice, device.stream), kName);
  for (int layer = 0; layer < layers; ++layer) {
    inner_patch_attention(device, kName, shape, layer ? y : x, attended, packed_attention.of_layer(layer), norm, patch);
    gated_ffn(device, kName, shape, attended, y, packed_ffn.of_layer(layer), norm, patch);
  }
}

}  // namespace ditn::cuda
