// SPDX-License-Identifier: Apache-2.0
// The weights in global memory in the order of layout.cuh, from where two copies bring those of a layer to shared memory.
#pragma once

#include "layout.cuh"

namespace ditn::cuda::hopper {

// The weights of a stage, [layers][...], and what becomes of them.
struct Packing {
  AttentionOf<const __half> attention;
  FfnOf<const __half> ffn;
  int channels;

  // The i-th half of a layer's weights as they lie in shared memory.
  __device__ __half at(int64_t layer, int i) const {
    constexpr int kTile = kTileBytes / 2, kAttention = kAttentionBytes / 2, kPass = kPassBytes / 2;
    const int pass = i < kAttention ? -1 : (i - kAttention) / kPass;
    const int j = i < kAttention ? i : (i - kAttention) % kPass, part = j / kTile;
    // Of a tile; see tile_descriptor.
    const int row = j % kTile / kSide, column = (j / 8 % 8 ^ row % 8) * 8 + j % 8;
    if (pass < 0) return of_attention(layer, part, row, column);
    if (part < 2) return of_in_weight(layer, part, pass * kSide + row, column);
    if (part == 2) return of_out_weight(layer, row, pass * kSide + column);
    return of_taps(layer, pass * kSide + (j - kTaps / 2) / (kTapsOfPair / 2), (j - kTaps / 2) % (kTapsOfPair / 2));
  }

 private:
  // Of column `output` of a weight [layers][inputs][outputs], whose bias stands for input `one`.
  __device__ static __half of_weight(const __half* weight, const __half* bias, int64_t layer, int inputs, int outputs, int output,
                                     int input, int one) {
    if (input == one) return bias[layer * outputs + output];
    return input < inputs ? weight[(layer * inputs + input) * outputs + output] : __half(0.0f);
  }

  __device__ __half of_attention(int64_t layer, int part, int output, int input) const {
    const int c = channels;
    if (output >= c) return __half(0.0f);
    if (part == 3) return of_weight(attention.out_weight, attention.out_bias, layer, c, c, output, input, kOne);
    return of_weight(attention.qkv_weight, attention.qkv_bias, layer, c, 3 * c, part * c + output, input, kOne);
  }

  __device__ __half of_in_weight(int64_t layer, int value, int e, int input) const {
    if (e >= ffn.expanded) return __half(0.0f);
    const int output = value * ffn.expanded + e;
    return of_weight(ffn.in_weight, ffn.in_bias, layer, channels, 2 * ffn.expanded, output, input, kOne);
  }

  __device__ __half of_out_weight(int64_t layer, int output, int e) const {
    if (output >= channels) return __half(0.0f);
    return of_weight(ffn.out_weight, ffn.out_bias, layer, ffn.expanded, channels, output, e, kMostExpanded);
  }

  // The i-th half of what there is for a pair. A value is halved: the product with its gate's GELU wants that.
  __device__ __half of_taps(int64_t layer, int e, int i) const {
    const int block = i / (kPlacesBytes / 2), place = i / 8 % kPlaces, word = i % 8 / 2;
    const bool below = block == 2;
    const int value = below ? word % 2 : block;
    const int expanded = ffn.expanded, channel = value * expanded + e;
    const float scale = value ? 0.5f : 1.0f;
    if (!below && word >= 2) {
      if (e == kMostExpanded) return __half(value ? scale / 8 : 8.0f);
      return e < expanded ? __half(scale * __half2float(ffn.dw_bias[layer * 2 * expanded + channel])) : __half(0.0f);
    }
    const int row = below ? 2 : word, column = place - 2 + i % 2;
    if (e >= expanded || place == kNoTap || column < -1 || column > 1) return __half(0.0f);
    const int tap = row * 3 + column + 1;
    return __half(scale * __half2float(ffn.dw_weight[(layer * 9 + tap) * 2 * expanded + channel]));
  }
};

// target [layers][kLayerBytes].
// Grid: (a thread per half, the layers).
__global__ void _pack_stage_kernel(__half* target, Packing packing) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x, halves = kLayerBytes / 2;
  if (i < halves) target[static_cast<int64_t>(blockIdx.y) * halves + i] = packing.at(blockIdx.y, i);
}

}  // namespace ditn::cuda::hopper
