// SPDX-License-Identifier: Apache-2.0
// The kernels for sm_90a, a translation unit of their own (hopper.cu), which is compiled where DITN_HOPPER is defined.
#pragma once

#include "kernels.h"

namespace ditn::cuda::hopper {

#ifdef DITN_HOPPER
constexpr bool kIsCompiled = true;
#else
constexpr bool kIsCompiled = false;
#endif

// The operators that have kernels here; hopper.cu has their names.
enum class Operator { kInnerPatchStage, kGatedFfn, kImageHead, kImageTail, kDilatedGate };

// A bit for each of them whose kernels nobody has turned off. Where the environment variable DITN_CUDA_HOPPER is 0, all are off
// from the start.
unsigned which_are_on();

// How many blocks a persistent kernel has at most: one for each multiprocessor, unless this thread was told otherwise.
int persistent_blocks(const char* name);

// Whether its kernels are on, there is one for such a stage, and the current device is of compute capability 9.0.
bool serves_stage(const Shape&, int expanded, int patch);

// inner_patch_stage of kernels.h in patches of 8, where the above is true. Here and below T is __half or __nv_bfloat16.
template <class T>
void inner_patch_stage(Device&, Shape, const T* x, T* y, const AttentionOf<const T>&, const FfnOf<const T>&, int layers, Norm);

// Likewise of gated_ffn; patch is 0.
bool serves_ffn(const Shape&, int expanded, int patch);
template <class T>
void gated_ffn(Device&, Shape, const T* x, T* y, const FfnOf<const T>&, Norm);

// Likewise of dilated_gate.
bool serves_gate(const Shape&);
template <class T>
void dilated_gate(Device&, Shape, const T* x, T* y, const GateOf<const T>&, Norm);

// Whether the same is true of image_head and image_tail of such maps, which the functions below then compute.
bool serves_image_head(const Shape&, int outputs);
bool serves_image_tail(const Shape&, int outputs);

template <class T>
void image_head(Device&, Shape, const T* image, T* y, const T* weight, const T* bias, int outputs);
template <class T>
void image_tail(Device&, Shape, const T* x, const T* skip, T* y, const TailOf<const T>&);

}  // namespace ditn::cuda::hopper
