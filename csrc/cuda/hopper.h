// SPDX-License-Identifier: Apache-2.0
// The kernels for sm_90a, a translation unit of their own (hopper.cu), which is compiled where DITN_HOPPER is defined.
#pragma once

#include "kernels.h"

namespace ditn::cuda::hopper {

// Whether nobody has turned these kernels off. They are off from the start where the environment variable DITN_CUDA_HOPPER is 0.
bool are_on();

// Whether they are on, there is one for such a stage, and the current device is of compute capability 9.0.
bool serves_stage(const Shape&, int expanded, int patch);

// inner_patch_stage of kernels.h in patches of 8, where the above is true.
void inner_patch_stage(Device&, Shape, const __half* x, __half* y, const AttentionOf<const __half>&, const FfnOf<const __half>&,
                       int layers, Norm);

}  // namespace ditn::cuda::hopper
