// SPDX-License-Identifier: Apache-2.0
// inner_patch_stage. For the shipped networks' patches, of 8 by 8 pixels and up to 64 channels in halves, one kernel: a
// block takes a patch or two through all layers. Their pixels stay in registers, as halves that are rounded between the layers;
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

  // rows [8][PATCHES][8][kStride] = the norm of the pixels of so many patches side by side, of which this is one. Other threads
  // may read them after the next barrier.
  template <int PATCHES>
  __device__ void normalize(__half* rows, Norm norm) const {
    __half* place = rows + first_place<PATCHES>();
#pragma unroll
    for (int i = 0; i < kQuads; ++i) {
      store_quad(place + i * kLine<PATCHES>, norm == Norm::kTanh ? tanh_of(quads_[i]) : quads_[i]);
    }
    if (norm == Norm::kLayerNorm) {
      __syncthreads();
      layer_norm<128 * PATCHES>(rows, kStride, channels_, 64 * PATCHES, kLayerNormEps, [](int, float value) { return value; });
    }
  }

  // Adds such rows.
  template <int PATCHES>
  __device__ void add(const __half* rows) {
    if (channel_ >= channels_) return;
    const __half* place = rows + first_place<PATCHES>();
#pragma unroll
    for (int i = 0; i < kQuads; ++i) quads_[i] = sum_of(quads_[i], load_quad(place + i * kLine<PATCHES>));
  }

 private:
  template <int PATCHES>
  static constexpr int kLine = PATCHES * kQuads * kStride;
  template <int PATCHES>
  static __device__ int first_place() {
    const int thread = read_again(threadIdx.x), patch = PATCHES == 1 ? 0 : thread / 128;
    return (patch * kQuads + thread % 128 / 16) * kStride + thread % 16 * 4;
  }

  const int channels_, first_ = threadIdx.x % 128 / 16, channel_ = threadIdx.x % 16 * 4;
  Quad<__half> quads_[kQuads];
};

// A block takes one patch, or two with banded_ffn.cuh, which need not be neighbours on the map.
template <bool BANDED>
struct StageTiles {
  using Weights = std::conditional_t<BANDED, BandedFfnWeights, FfnWeights<__half>>;
  using Ffn = std::conditional_t<BANDED, BandedFfn, FfnTile<__half, 64, 8>>;
  using Attention = AttentionTiles<__half, 64, 64>;
  static constexpr int kPatches = BANDED ? 2 : 1, kThreads = 128 * kPatches;
  static constexpr int kRows = kPatches * 64 * Stream::kStride;  // values, in front of the FFN's scratch
  static constexpr size_t kFfnBytes = (kRows + Ffn::kScratch) * sizeof(__half), kAttentionBytes = kPatches * Attention::kBytes;
  static constexpr size_t kShared = kFfnBytes > kAttentionBytes ? kFfnBytes : kAttentionBytes;
  static_assert(kShared <= kTuringShared);
  // Of a thread, without spills: with bands for 16 warps at once, from sm_100 on for 8.
#if __CUDA_ARCH__ >= 1000
  static constexpr int kRegisters = 200;
#else
  static constexpr int kRegisters = BANDED ? 128 : 200;
#endif
  static constexpr int kBlocks = blocks_at_once(kShared, kThreads, kRegisters);
  static_assert(Stream::kStride == Ffn::kStride && Stream::kStride == Attention::kPixelStride);
};

// `layers` times x + attention(x), then x + ffn(x), in every patch of 8 by 8 pixels.
// Grid: a block for every kPatches patches.
template <bool BANDED>
__global__ void __launch_bounds__(StageTiles<BANDED>::kThreads, StageTiles<BANDED>::kBlocks)
    _inner_patch_stage_kernel(Map<__half> x, __half* y, PackedAttention<__half> attention, typename StageTiles<BANDED>::Weights ffn,
                              int layers, Norm norm, int columns, unsigned patches) {
  if constexpr (BANDED && !kBands) return;
  using Tiles = StageTiles<BANDED>;
  const bool quads = x.quads;
  assume_network(quads, norm);
  const unsigned mine = threadIdx.x / 128, number = blockIdx.x * Tiles::kPatches + mine;
  // The last block may lack a patch: it does the last one twice, and stores it once.
  Stream stream({x.data, x.channels, quads}, patch_at(min(number, patches - 1), columns, x.channels, 8));
  for (int layer = 0; layer < layers; ++layer) {
    // Places are found again in each layer: there are no registers to keep them in.
    __half* memory = shared_memory<__half>() + read_again(0);
    __half* scratch = memory + Tiles::kRows;
    __half* attended = memory + mine * (Tiles::Attention::kBytes / sizeof(__half));
    attend<64, 64, 1>(
        attention.of_layer(layer), x.channels, attended, [&](int, __half* u) { stream.normalize<1>(u, norm); },
        [&](int, const __half* result) { stream.add<1>(result); });
    if (BANDED) __syncthreads();  // what one patch still reads is where the other's rows will be
    stream.normalize<Tiles::kPatches>(memory, norm);
    __syncthreads();
    if constexpr (BANDED) {
      banded_feed_forward(memory, scratch, ffn.of_layer(layer));
    } else {
      clear_hidden<typename Tiles::Ffn>(scratch);
      __syncthreads();
      feed_forward<typename Tiles::Ffn>(memory, scratch, ffn.of_layer(layer), [](int, int) { return true; });
    }
    __syncthreads();
    stream.add<Tiles::kPatches>(memory);
    if (BANDED) __syncthreads();
  }
  // Asked for again: what is not needed before would be kept through all layers, in registers that there are not.
  const bool quads_again = read_again(x.quads);
  assume_network(quads_again, norm);
  if (number < patches) stream.store({x.data, x.channels, quads_again}, y, patch_at(number, read_again(columns), x.channels, 8));
}

template <bool BANDED>
void launch_stage(Device& device, const char* name, Shape shape, const __half* x, __half* y,
                  const PackedAttention<__half>& attention, const typename StageTiles<BANDED>::Weights& ffn, int layers, Norm norm) {
  using Tiles = StageTiles<BANDED>;
  const int columns = static_cast<int>(shape.width / 8);
  const int64_t patches = shape.batch * (shape.height / 8) * columns;
  const Map<__half> map{x, shape.channels, in_quads(x, shape.channels) && in_quads(y, shape.channels)};
  launch(device, name, _inner_patch_stage_kernel<BANDED>, blocks_for(patches, Tiles::kPatches, name), Tiles::kThreads,
         Tiles::kShared, map, y, attention, ffn, layers, norm, columns, blocks_for(patches, 1, name));
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
  if constexpr (sizeof(T) == sizeof(__half)) {
    if (patch == 8 && shape.channels <= 64) {
      const auto launch_with = [&](auto banded, const auto& packed_ffn) {
        packer.run();
        launch_stage<decltype(banded)::value>(device, kName, shape, x, y, packed_attention, packed_ffn, layers, norm);
      };
      if (has_bands(kName)) {
        return launch_with(std::true_type(), pack_banded_ffn(device, packer, kName, ffn, shape.channels, layers));
      }
      return launch_with(std::false_type(), pack_ffn(device, packer, kName, ffn, shape.channels, layers));
    }
  }
  const FfnWeights<T> packed_ffn = pack_ffn(device, packer, kName, ffn, shape.channels, layers);
  packer.run();
  auto* attended = static_cast<T*>(device.allocate(bytes));
  if (!layers && device.launches) check(cudaMemcpyAsync(y, x, bytes, cudaMemcpyDeviceToDevice, device.stream), kName);
  for (int layer = 0; layer < layers; ++layer) {
    inner_patch_attention(device, kName, shape, layer ? y : x, attended, packed_attention.of_layer(layer), norm, patch);
    gated_ffn(device, kName, shape, attended, y, packed_ffn.of_layer(layer), norm, patch);
  }
}

}  // namespace ditn::cuda
