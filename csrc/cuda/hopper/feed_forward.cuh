// SPDX-License-Identifier: Apache-2.0
// The gated FFN of two patches by two warpgroups. Each multiplies its own patch by W_in and W_out; the depthwise convolution
// between these takes eight gates and their values of both patches to a warp, as products with banded matrices.
#pragma once

#include "stream.cuh"

namespace ditn::cuda::hopper {

// Zeros where neighbouring channels of the hidden map meet: before the channels `first`, first + step, ... < end.
__device__ __forceinline__ void clear_between_channels(unsigned hidden, int first, int end, int step) {
  for (int channel = first; channel < end; channel += step) clear_piece(hidden + channel * kHiddenPitch);
}

// hidden[channel][line] = the sums [pixel][channel] of a product, for 64 channels.
template <class T>
__device__ __forceinline__ void store_hidden(unsigned hidden, const float (&sums)[32]) {
  const int line = threadIdx.x % 128 / 32 * 2 + lane() / 8 % 2, channel = lane() / 16 * 8 + lane() % 8;
  const unsigned place = hidden + channel * kHiddenPitch + (1 + line) * kLine;
  Factor rounded;
  round_sums<T>(rounded, sums);
#pragma unroll
  for (int k = 0; k < 4; ++k) store_matrices_trans(place + 16 * k * kHiddenPitch, rounded[k]);
}

// gated [channel][pixel] = gelu(gate) * value of the channels 8 `warp` on, in both patches. `pass`: their taps.
// hidden and gated: of the first patch; those of the second are kPatchBytes behind.
template <class T>
__device__ __forceinline__ void gate_hidden(unsigned gated, unsigned hidden, unsigned pass, int warp) {
  // The 16 rows of a left factor are a channel's lines, in both patches. Of depth 16 are a line and the one above it, which is
  // 16 bytes before; of depth 8 the line below, of a gate and of its value.
  const unsigned line = hidden + lane() / 8 % 2 * kPatchBytes + (8 * warp * kHiddenPitch + kLine + lane() % 8 * kLine);
  const unsigned above = line - (lane() < 16 ? kLine : 0);
  const unsigned below = line + kLine + (lane() < 16 ? 0 : kSide * kHiddenPitch);
  const unsigned taps = pass + kTaps + 8 * warp * kTapsOfPair + place_of_taps(lane()) * 16;
  const unsigned place = gated + 8 * warp * 128 + lane() / 4 * kLine + lane() % 4 * 4;
  // Two channels at a time, one of which waits for its loads while the other computes.
#pragma unroll
  for (int i = 0; i < 8; i += 2) {
    unsigned gates[2][2], values[2][2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const unsigned at = taps + (i + j) * kTapsOfPair, row = (i + j) * kHiddenPitch;
      const uint4 gate_taps = load_piece(at), value_taps = load_piece(at + kPlacesBytes);
      const uint2 taps_below = load_half_piece(at + 2 * kPlacesBytes);
      unsigned gate_lines[4], value_lines[4], lines_below[4];
      load_matrices(gate_lines, above + row);
      load_matrices(value_lines, above + kSide * kHiddenPitch + row);
      load_matrices(lines_below, below + row);
      BandSums<T> gate(gate_taps.z, gate_taps.w), value(value_taps.z, value_taps.w);
      gate.add(gate_lines, gate_taps.x, gate_taps.y);
      value.add(value_lines, value_taps.x, value_taps.y);
      gate.add(lines_below[0], lines_below[1], taps_below.x);
      value.add(lines_below[2], lines_below[3], taps_below.y);
      gate.round(gates[j]);
      value.round(values[j]);
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
      for (int patch = 0; patch < 2; ++patch) {
        const unsigned gated = Words<T>::product(Words<T>::twice_gelu(gates[j][patch]), values[j][patch]);
        store_word((place ^ (i + j) * kLine) + (i + j) * 128 + patch * kPatchBytes, gated);
      }
    }
  }
}

// x += W_out (gelu(d1) * d2) + b_out, d = dw3x3(W_in u + b_in) + b_dw, of a warpgroup's patch. `first_patch`: of both, `patch`:
// its own. `ones`: where they lie. The threads of both warpgroups meet at `barrier`; when they first have, met() is called.
template <Norm NORM, bool FULL, class T, class Met>
__device__ __forceinline__ void feed_forward(Stream<T>& x, unsigned weights, unsigned ones, unsigned first_patch, unsigned patch,
                                             int channels, int barrier, const Met& met) {
  const unsigned hidden = patch + kTileBytes;
  const uint64_t gated = tile_descriptor(patch);
  Factor u;
  float out[32];
  x.template normalize<NORM, FULL>(u, channels);
  clear_between_channels(hidden, threadIdx.x % 128, kZeroLinesUnderTile, 128);
#pragma unroll 1
  for (int i = 0; i < kPasses; ++i, weights += kPassBytes<FULL>) {
    const uint64_t of_weights = tile_descriptor(weights);
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      float sums[32];
      begin_products();
      start_product<T>(sums, u, of_weights + part * kNextTile);
      add_biases<FULL, false, T>(sums, weights + kPassBiases, ones, part);
      finish_products();
      store_hidden<T>(hidden + part * kSide * kHiddenPitch, sums);
    }
    meet(barrier, 256);
    if (i == 0) met();
    gate_hidden<T>(first_patch, first_patch + kTileBytes, weights, threadIdx.x / 32 % 8);
    publish();
    meet(barrier, 256);
    begin_products();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      multiply_tile<T, true>(out, gated + k * kNextRows, of_weights + kOutWeight / 16 + k * kNextColumns, i || k);
    }
    finish_products();
  }
  x.add(out);
}

}  // namespace ditn::cuda::hopper
