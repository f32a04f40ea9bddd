// SPDX-License-Identifier: Apache-2.0
// bfloat16, which the kernels for sm_90a compute (hopper.h) and none of those for all chips: what kernels.h declares of it.
#pragma once

#include <stdexcept>
#include <string>

#include "hopper.h"

namespace ditn::cuda {

namespace in_bfloat16 {

using T = __nv_bfloat16;

inline bool is_empty(const Shape& shape) { return shape.batch * shape.height * shape.width == 0; }
[[noreturn]] inline void fail(const char* name) {
  throw std::runtime_error(std::string(name) + " in bfloat16 has kernels for compute capability 9.0 alone, and none for this call");
}

}  // namespace in_bfloat16

template <>
void inner_patch_stage(Device& device, Shape shape, const in_bfloat16::T* x, in_bfloat16::T* y,
                       const AttentionOf<const in_bfloat16::T>& attention, const FfnOf<const in_bfloat16::T>& ffn, int layers, Norm norm,
                       int patch) {
  if (in_bfloat16::is_empty(shape)) return;
  if constexpr (hopper::kIsCompiled) {
    if (hopper::serves_stage(shape, ffn.expanded, patch)) return hopper::inner_patch_stage(device, shape, x, y, attention, ffn, layers, norm);
  }
  in_bfloat16::fail("inner_patch_stage");
}

template <>
void gated_ffn(Device& device, Shape shape, const in_bfloat16::T* x, in_bfloat16::T* y, const FfnOf<const in_bfloat16::T>& weights,
               Norm norm, int patch) {
  if (in_bfloat16::is_empty(shape)) return;
  if constexpr (hopper::kIsCompiled) {
    if (hopper::serves_ffn(shape, weights.expanded, patch)) return hopper::gated_ffn(device, shape, x, y, weights, norm);
  }
  in_bfloat16::fail("gated_ffn");
}

template <>
void dilated_gate(Device& device, Shape shape, const in_bfloat16::T* x, in_bfloat16::T* y, const GateOf<const in_bfloat16::T>& weights,
                  Norm norm) {
  if (in_bfloat16::is_empty(shape)) return;
  if constexpr (hopper::kIsCompiled) {
    if (hopper::serves_gate(shape)) return hopper::dilated_gate(device, shape, x, y, weights, norm);
  }
  in_bfloat16::fail("dilated_gate");
}

template <>
void image_head(Device& device, Shape shape, const in_bfloat16::T* image, in_bfloat16::T* y, const in_bfloat16::T* weight,
                const in_bfloat16::T* bias, int outputs) {
  if (in_bfloat16::is_empty(shape)) return;
  if constexpr (hopper::kIsCompiled) {
    if (hopper::serves_image_head(shape, outputs)) return hopper::image_head(device, shape, image, y, weight, bias, outputs);
  }
  in_bfloat16::fail("image_head");
}

template <>
void image_tail(Device& device, Shape shape, const in_bfloat16::T* x, const in_bfloat16::T* skip, in_bfloat16::T* y,
                const TailOf<const in_bfloat16::T>& weights) {
  if (in_bfloat16::is_empty(shape)) return;
  if constexpr (hopper::kIsCompiled) {
    if (hopper::serves_image_tail(shape, weights.outputs)) return hopper::image_tail(device, shape, x, skip, y, weights);
  }
  in_bfloat16::fail("image_tail");
}

}  // namespace ditn::cuda
