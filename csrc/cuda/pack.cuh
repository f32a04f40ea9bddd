// SPDX-License-Identifier: Apache-2.0
// Weights in the order in which tensor cores take them, so that a kernel reads a tile by one instruction per warp, without
// shared memory and without asking where the weight ends.
#pragma once

#include "product.cuh"

namespace ditn::cuda {

struct Packing {
  const __half* source;  // [layers][inputs][source_stride]
  __half* target;        // [layers][output tiles][input tiles][lane][8]
  int64_t source_layer, target_layer;
  int source_stride, inputs, outputs, input_tiles, tiles;
  Side side;
};

// Channels of a kernel that takes so many.
inline int width_of(int channels) { return channels <= 64 ? 64 : 128; }

constexpr int kPackings = 7;

struct Packings {
  Packing list[kPackings];
  int count;
};

// Grid: (a warp per tile, the packings, their layers).
__global__ void _pack_kernel(Packings packings) {
  const Packing& p = packings.list[blockIdx.y];
  const int tile = blockIdx.x * (blockDim.x / 32) + warp();
  if (tile >= p.tiles) return;
  const __half* source = p.source + blockIdx.z * p.source_layer;
  __half* target = p.target + blockIdx.z * p.target_layer + (tile * 32 + lane()) * 8;
  for (int i = 0; i < 8; ++i) {
    const int outer = p.side == kLeft ? packed_outer<kLeft>(i) : packed_outer<kRight>(i);
    const int depth = p.side == kLeft ? packed_depth<kLeft>(i) : packed_depth<kRight>(i);
    const int output = tile / p.input_tiles * 16 + outer, input = tile % p.input_tiles * 16 + depth;
    const bool inside = output < p.outputs && input < p.inputs;
    target[i] = inside ? source[static_cast<int64_t>(input) * p.source_stride + output] : __half(0.0f);
  }
}

// Collects the weights of an operator, at most kPackings, and packs them in one launch.
template <class T>
class Packer {
 public:
  Packer(Device& device, const char* name, int layers = 1) : device_(device), name_(name), layers_(layers) {}

  // The columns [0, outputs) of a matrix [layers][inputs][stride]. What lies behind its inputs and outputs is zero, up to
  // these multiples of 16.
  template <Side SIDE = kRight>
  Weight<T, SIDE> add(const T* source, int inputs, int stride, int outputs, int padded_inputs, int padded_outputs) {
    const int64_t source_layer = static_cast<int64_t>(inputs) * stride;
    if constexpr (sizeof(T) == sizeof(__half)) {
      const int input_tiles = padded_inputs / 16, tiles = padded_outputs / 16 * input_tiles;
      const int64_t target_layer = tiles * 256;
      if (packings_.count == kPackings) throw std::logic_error(std::string(name_) + " packs too many weights");
      auto target = static_cast<__half*>(device_.allocate_weights(layers_ * target_layer * sizeof(__half)));
      packings_.list[packings_.count++] = {source, target, source_layer, target_layer, stride, inputs, outputs, input_tiles, tiles, SIDE};
      most_tiles_ = most_tiles_ > tiles ? most_tiles_ : tiles;
      return {target, input_tiles, outputs, target_layer};
    } else {
      return {source, stride, outputs, source_layer};
    }
  }

  void run() const {
    if (device_.has_weights()) return;
    constexpr unsigned kWarps = 4;
    const dim3 blocks((most_tiles_ + kWarps - 1) / kWarps, packings_.count, layers_);
    launch(device_, name_, _pack_kernel, blocks, 32 * kWarps, 0, packings_);
  }

 private:
  Device& device_;
  const char* name_;
  int layers_, most_tiles_ = 0;
  Packings packings_{};
};

}  // namespace ditn::cuda
