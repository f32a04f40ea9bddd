// SPDX-License-Identifier: Apache-2.0
// What the CUDA kernels take and offer. No torch here: pointers into the GPU's memory, sizes, a stream, and a way to get
// memory. Nothing is waited for. A launch that fails throws std::runtime_error with the operator's name.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "../operators.h"

namespace ditn::cuda {

// Where the kernels are launched: the current device, on this stream. Or, without `launches`, where they are not: an operator
// then asks for its memory, which it does not touch, and perhaps which chip the current device is, and does nothing else.
class Device {
 public:
  explicit Device(cudaStream_t stream, bool launches = true) : stream(stream), launches(launches) {}
  Device(const Device&) = delete;
  virtual ~Device() = default;
  // Memory of the GPU, aligned to 256 bytes, for what is launched before this object's end.
  virtual void* allocate(size_t bytes) = 0;
  // The same for weights in the order in which kernels take them. What an operator asks for, and in which order, depends on
  // its weights and options, the chip and kernels_in_use() alone: a Device may give the same memory again for the same weights
  // and options, and then has them there already.
  virtual void* allocate_weights(size_t bytes) { return allocate(bytes); }
  virtual bool has_weights() const { return false; }

  const cudaStream_t stream;
  const bool launches;
};

// Which kernels for one chip alone (hopper.h) are compiled and not turned off. Weights that were packed under one value may not
// suit another.
unsigned kernels_in_use();

// Maps are dense, [batch, height, width, channels], and may be empty. T is __half or float, of weights too; sums are float.
template <class T>
void tanh_affine(Device&, Shape, const T* x, T* y, const T* weight, const T* bias, int outputs);

template <class T>
void layer_norm2d(Device&, Shape, const T* x, T* y, const T* weight, const T* bias, float eps);

// patch is 4, 8 or 16.
template <class T>
void inner_patch_attention(Device&, Shape, const T* x, T* y, const AttentionOf<const T>&, Norm, int patch);

// patch is 4, 8 or 16, or 0: the whole map is one.
template <class T>
void gated_ffn(Device&, Shape, const T* x, T* y, const FfnOf<const T>&, Norm, int patch);

template <class T>
void dilated_gate(Device&, Shape, const T* x, T* y, const GateOf<const T>&, Norm);

// Of these two, outputs are 128 at most.
template <class T>
void image_head(Device&, Shape, const T* image, T* y, const T* weight, const T* bias, int outputs);

template <class T>
void image_tail(Device&, Shape, const T* x, const T* skip, T* y, const TailOf<const T>&);

// `layers` times attention and FFN; parameters are [layers][...]. patch is 4, 8 or 16. In halves, patches of 8
// and up to 64 channels it is one kernel, else two for each layer.
template <class T>
void inner_patch_stage(Device&, Shape, const T* x, T* y, const AttentionOf<const T>&, const FfnOf<const T>&, int layers, Norm,
                       int patch);

// `layers` times gate and FFN on the whole map; parameters are [layers][...]. In bfloat16 it throws where these do (below).
template <class T>
void spatial_stage(Device&, Shape, const T* x, T* y, const GateOf<const T>&, const FfnOf<const T>&, int layers, Norm);

// In bfloat16 there are the kernels for sm_90a alone (hopper.h). These throw where that has none for a call.
template <>
void inner_patch_stage(Device&, Shape, const __nv_bfloat16* x, __nv_bfloat16* y, const AttentionOf<const __nv_bfloat16>&,
                       const FfnOf<const __nv_bfloat16>&, int layers, Norm, int patch);
template <>
void gated_ffn(Device&, Shape, const __nv_bfloat16* x, __nv_bfloat16* y, const FfnOf<const __nv_bfloat16>&, Norm, int patch);
template <>
void dilated_gate(Device&, Shape, const __nv_bfloat16* x, __nv_bfloat16* y, const GateOf<const __nv_bfloat16>&, Norm);
template <>
void image_head(Device&, Shape, const __nv_bfloat16* image, __nv_bfloat16* y, const __nv_bfloat16* weight,
                const __nv_bfloat16* bias, int outputs);
template <>
void image_tail(Device&, Shape, const __nv_bfloat16* x, const __nv_bfloat16* skip, __nv_bfloat16* y,
                const TailOf<const __nv_bfloat16>&);

}  // namespace ditn::cuda
