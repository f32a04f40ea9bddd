// SPDX-License-Identifier: Apache-2.0
// What a plugin has to know about an operator. No TensorRT here.
#pragma once

#include <vector>

#include "../cuda/kernels.h"

namespace ditn::tensorrt {

// One of an operator's inputs. Its axes are named as in ditn_kernels/ops: "3 3 2E" are three, of 3, 3 and twice E. Maps
// are channels-last here.
struct Input {
  const char *name, *axes;
};

struct Options {
  Norm norm;
  int patch_size;  // 0 where an operator has none
};

struct Call {
  cuda::Device& device;
  Shape shape;
  const void* const* inputs;
  void* output;
  int expanded;  // E, 0 where an operator has none
  Options options;
};

struct Operator {
  const char* name;
  std::vector<Input> inputs;     // the first one is a map, and the result is like it
  std::vector<int> patch_sizes;  // empty: it has no such option
  int most_channels;
  void (*run_half)(const Call&);
  void (*run_float)(const Call&);
};

const std::vector<Operator>& operators();

}  // namespace ditn::tensorrt
