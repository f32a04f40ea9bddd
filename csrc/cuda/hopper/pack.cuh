// SPDX-License-Identifier: Apache-2.0
// The weights in global memory in the order of layout.cuh, from where two copies bring those of a layer to shared memory.
#pragma once

#include "elements.cuh"
#include "layout.cuh"

namespace ditn::cuda::hopper {

// Of column `output` of a weight [layers][inputs][outputs], whose bias stands for input `one`.
template <class T>
__device__ T of_weight(const T* weight, const T* bias, int64_t layer, int inputs, int outputs, int output, int input, int one) {
  if (input == one) return bias[layer * outputs + output];
  return input < inputs ? weight[(layer * inputs + input) * outputs + output] : T(0.0f);
}

// The weights of an FFN [layers][...], in which gated channel `one` is 1, for the bias of W_out.
template <class T, bool FULL>
struct FfnPacking {
  FfnOf<const T> weights;
  int channels, one;

  __device__ T of_in(int64_t layer, int value, int e, int input) const {
    if (e >= weights.expanded) return T(0.0f);
    const int output = value * weights.expanded + e;
    return of_weight(weights.in_weight, weights.in_bias, layer, channels, 2 * weights.expanded, output, input, kBiasInput<FULL>);
  }

  __device__ T of_out(int64_t layer, int output, int e) const {
    if (output >= channels) return T(0.0f);
    return of_weight(weights.out_weight, weights.out_bias, layer, weights.expanded, channels, output, e, one);
  }

  // A value's taps and their bias are halved: the product with its gate's GELU wants that. Taps beyond the three are zero. What
  // the taps make of the gate of `one` is 8, whose GELU is 8, and of its value 1/8.
  __device__ T tap(int64_t layer, int value, int e, int row, int column) const {
    if (e >= weights.expanded || column < 0 || column > 2) return T(0.0f);
    const int64_t place = (layer * 9 + row * 3 + column) * 2 * weights.expanded;
    return halved(value, weights.dw_weight[place + value * weights.expanded + e]);
  }
  __device__ T bias(int64_t layer, int value, int e) const {
    if (e == one) return T(value ? 0.0625f : 8.0f);
    if (e >= weights.expanded) return T(0.0f);
    return halved(value, weights.dw_bias[(layer * 2 + value) * weights.expanded + e]);
  }

 private:
  __device__ static T halved(int value, T weight) { return value ? T(0.5f * to_float(weight)) : weight; }
};

// The weights of a stage, [layers][...], and what becomes of them.
template <class T, bool FULL>
struct Packing {
  AttentionOf<const T> attention;
  FfnPacking<T, FULL> ffn;
  int channels;

  Packing(const AttentionOf<const T>& attention, const FfnOf<const T>& ffn, int channels)
      : attention(attention), ffn{ffn, channels, kMostExpanded}, channels(channels) {}

  // The i-th value of a layer's weights as they lie in shared memory.
  __device__ T at(int64_t layer, int i) const {
    constexpr int kTile = kTileBytes / 2, kAttention = kAttentionBytes<FULL> / 2, kPass = kPassBytes<FULL> / 2;
    const int pass = i < kAttention ? -1 : (i - kAttention) / kPass;
    const int j = i < kAttention ? i : (i - kAttention) % kPass, part = j / kTile;
    if (FULL && j >= (pass < 0 ? kAttentionBiases : kPassBiases) / 2) {
      const int row = j % (kPlane / 2) / 8, tile = j % 8;
      if (pass < 0) return tile < kAttentionTiles ? of_attention(layer, tile, row, kBiasInput<FULL>) : T(0.0f);
      return tile < 2 ? ffn.of_in(layer, tile, pass * kSide + row, kBiasInput<FULL>) : T(0.0f);
    }
    // Of a tile; see tile_descriptor.
    const int row = j % kTile / kSide, column = (j / 8 % 8 ^ row % 8) * 8 + j % 8;
    if (pass < 0) return of_attention(layer, part, row, column);
    if (part < 2) return ffn.of_in(layer, part, pass * kSide + row, column);
    if (part == 2) return ffn.of_out(layer, row, pass * kSide + column);
    return of_taps(layer, pass * kSide + (j - kTaps / 2) / (kTapsOfPair / 2), (j - kTaps / 2) % (kTapsOfPair / 2));
  }

 private:
  __device__ T of_attention(int64_t layer, int part, int output, int input) const {
    const int c = channels;
    if (output >= c) return T(0.0f);
    if (part == 3) return of_weight(attention.out_weight, attention.out_bias, layer, c, c, output, input, kBiasInput<FULL>);
    return of_weight(attention.qkv_weight, attention.qkv_bias, layer, c, 3 * c, part * c + output, input, kBiasInput<FULL>);
  }

  // The i-th value of what there is for a pair.
  __device__ T of_taps(int64_t layer, int e, int i) const {
    const int block = i / (kPlacesBytes / 2), place = i / 8 % kPlaces, word = i % 8 / 2;
    const bool below = block == 2;
    const int value = below ? word % 2 : block;
    if (!below && word >= 2) return ffn.bias(layer, value, e);
    return place == kNoTap ? T(0.0f) : ffn.tap(layer, value, e, below ? 2 : word, place - 1 + i % 2);
  }
};

// target [layers][kLayerBytes].
// Grid: (a thread per value, the layers).
template <class T, bool FULL>
__global__ void _pack_stage_kernel(T* target, Packing<T, FULL> packing) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x, values = kLayerBytes<FULL> / 2;
  if (i < values) target[static_cast<int64_t>(blockIdx.y) * values + i] = packing.at(blockIdx.y, i);
}

}  // namespace ditn::cuda::hopper
