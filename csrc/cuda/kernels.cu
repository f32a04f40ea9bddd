// SPDX-License-Identifier: Apache-2.0
// Every kernel, for halves and floats: one translation unit, which is compiled once per architecture.
#include "kernels.h"

#include "dilated_gate.cuh"
#include "gated_ffn.cuh"
#include "image_head.cuh"
#include "image_tail.cuh"
#include "inner_patch_attention.cuh"
#include "layer_norm2d.cuh"
#include "tanh_affine.cuh"

namespace ditn::cuda {

#define DITN_INSTANTIATE(T)                                                                                         \
  template void dilated_gate<T>(Device&, Shape, const T*, T*, const GateOf<const T>&, Norm);                        \
  template void gated_ffn<T>(Device&, Shape, const T*, T*, const FfnOf<const T>&, Norm, int);                       \
  template void image_head<T>(Device&, Shape, const T*, T*, const T*, const T*, int);                               \
  template void image_tail<T>(Device&, Shape, const T*, const T*, T*, const TailOf<const T>&);                      \
  template void inner_patch_attention<T>(Device&, Shape, const T*, T*, const AttentionOf<const T>&, Norm, int);     \
  template void tanh_affine<T>(Device&, Shape, const T*, T*, const T*, const T*, int);                              \
  template void layer_norm2d<T>(Device&, Shape, const T*, T*, const T*, const T*, float);

DITN_INSTANTIATE(__half)
DITN_INSTANTIATE(float)

}  // namespace ditn::cuda
