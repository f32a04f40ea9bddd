// SPDX-License-Identifier: Apache-2.0
// Every kernel, for halves and floats: one translation unit, which is compiled once per architecture.
#include "kernels.h"

#include "bfloat16.cuh"
#include "dilated_gate.cuh"
#include "gated_ffn.cuh"
#include "hopper.h"
#include "image_head.cuh"
#include "image_tail.cuh"
#include "inner_patch_attention.cuh"
#include "inner_patch_stage.cuh"
#include "layer_norm2d.cuh"
#include "spatial_stage.cuh"
#include "tanh_affine.cuh"

namespace ditn::cuda {

#ifdef DITN_NETWORK
#define DITN_KERNEL(...) template __global__ decltype(__VA_ARGS__) __VA_ARGS__

DITN_KERNEL(_inner_patch_attention_kernel<__half, 64, 8>);
DITN_KERNEL(_gated_ffn_kernel<__half, 64, 8>);
DITN_KERNEL(_gated_ffn_kernel<__half, 64, 0>);
DITN_KERNEL(_dilated_gate_near_kernel<__half, 64>);
DITN_KERNEL(_dilated_gate_far_kernel<__half, 64>);
DITN_KERNEL(_conv3x3_kernel<__half, 16>);
DITN_KERNEL(_conv3x3_kernel<__half, 64>);
DITN_KERNEL(_tanh_affine_kernel<__half>);
DITN_KERNEL(_layer_norm2d_kernel<__half>);
DITN_KERNEL(_inner_patch_stage_kernel<true>);
DITN_KERNEL(_inner_patch_stage_kernel<false>);
#else
#define DITN_INSTANTIATE(T)                                                                                         \
  template void dilated_gate<T>(Device&, Shape, const T*, T*, const GateOf<const T>&, Norm);                        \
  template void gated_ffn<T>(Device&, Shape, const T*, T*, const FfnOf<const T>&, Norm, int);                       \
  template void image_head<T>(Device&, Shape, const T*, T*, const T*, const T*, int);                               \
  template void image_tail<T>(Device&, Shape, const T*, const T*, T*, const TailOf<const T>&);                      \
  template void inner_patch_attention<T>(Device&, Shape, const T*, T*, const AttentionOf<const T>&, Norm, int);     \
  template void inner_patch_stage<T>(Device&, Shape, const T*, T*, const AttentionOf<const T>&,                     \
                                     const FfnOf<const T>&, int, Norm, int);                                        \
  template void spatial_stage<T>(Device&, Shape, const T*, T*, const GateOf<const T>&, const FfnOf<const T>&, int, Norm); \
  template void tanh_affine<T>(Device&, Shape, const T*, T*, const T*, const T*, int);                              \
  template void layer_norm2d<T>(Device&, Shape, const T*, T*, const T*, const T*, float);

DITN_INSTANTIATE(__half)
DITN_INSTANTIATE(float)
template void spatial_stage<__nv_bfloat16>(Device&, Shape, const __nv_bfloat16*, __nv_bfloat16*, const GateOf<const __nv_bfloat16>&,
                                           const FfnOf<const __nv_bfloat16>&, int, Norm);

unsigned kernels_in_use() {
#ifdef DITN_HOPPER
  return hopper::which_are_on();
#else
  return 0;
#endif
}
#endif

}  // namespace ditn::cuda
