// SPDX-License-Identifier: Apache-2.0
// The CUDA kernels for torch: implementations of `ditn_native::*`, whose schemas are in ../register.cpp, on LibTorch's
// stable ABI. Tensors are dense on one GPU, activations [B, H, W, C]; shapes and types were checked by whoever calls.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using namespace ditn;

// Both written by ditn_kernels/_interface.py when the library is built, as in ../register.cpp.
#include "torch_operators.h"

// The GPU of a tensor, made the current one, with torch's current stream and torch's memory.
class TorchDevice : public cuda::Device {
 public:
  explicit TorchDevice(const Tensor& like)
      : Device(current_stream(like.get_device_index())), guard_(like.get_device_index()), like_(like) {}

  // Torch gives the memory to others only on the same stream, hence after what was launched here.
  void* allocate(size_t bytes) override {
    memory_.push_back(torch::stable::new_empty(like_, {static_cast<int64_t>(bytes)}, ScalarType::Byte));
    return memory_.back().mutable_data_ptr();
  }

 private:
  static cudaStream_t current_stream(int32_t index) {
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index, &stream));
    return static_cast<cudaStream_t>(stream);
  }

  torch::stable::accelerator::DeviceGuard guard_;
  Tensor like_;
  std::vector<Tensor> memory_;
};

template <class T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

template <class T>
T* out(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

// As a function that records can be mapped with.
template <class T>
constexpr auto kData = [](const Tensor& t) { return data<T>(t); };

int as_int(int64_t value) { return static_cast<int>(value); }

// Calls work with the type of x.
template <class Work>
void with_type(const Tensor& x, const Work& work) {
  TorchDevice device(x);
  switch (x.scalar_type()) {
    case ScalarType::Half:
      return work.template operator()<__half>(device);
    case ScalarType::Float:
      return work.template operator()<float>(device);
    default:
      throw std::runtime_error("ditn_native computes float16 and float32 on CUDA, not scalar type " +
                               std::to_string(static_cast<int>(x.scalar_type())));
  }
}

Shape shape_of(const Tensor& x) { return {x.size(0), x.size(1), x.size(2), static_cast<int>(x.size(3))}; }

Tensor inner_patch_attention(Tensor x, AttentionWeights weights, int64_t norm, int64_t patch_size) {
  Tensor y = torch::stable::empty_like(x);
  with_type(x, [&]<class T>(cuda::Device& device) {
    cuda::inner_patch_attention<T>(device, shape_of(x), data<T>(x), out<T>(y), weights.as<AttentionOf<const T>>(kData<T>),
                                   static_cast<Norm>(norm), as_int(patch_size));
  });
  return y;
}

Tensor gated_ffn(Tensor x, FfnWeights weights, int64_t norm, int64_t patch_size) {
  Tensor y = torch::stable::empty_like(x);
  with_type(x, [&]<class T>(cuda::Device& device) {
    const auto ffn = weights.as<FfnOf<const T>>(kData<T>, as_int(weights.out_weight.size(0)));
    cuda::gated_ffn<T>(device, shape_of(x), data<T>(x), out<T>(y), ffn, static_cast<Norm>(norm), as_int(patch_size));
  });
  return y;
}

Tensor dilated_gate(Tensor x, GateWeights weights, int64_t norm) {
  Tensor y = torch::stable::empty_like(x);
  with_type(x, [&]<class T>(cuda::Device& device) {
    cuda::dilated_gate<T>(device, shape_of(x), data<T>(x), out<T>(y), weights.as<GateOf<const T>>(kData<T>),
                          static_cast<Norm>(norm));
  });
  return y;
}

Tensor inner_patch_stage(Tensor x, InnerPatchStageWeights weights, int64_t norm, int64_t patch_size) {
  Tensor y = torch::stable::empty_like(x);
  with_type(x, [&]<class T>(cuda::Device& device) {
    const int64_t layers = weights.ffn.out_weight.size(0), expanded = weights.ffn.out_weight.size(1);
    cuda::inner_patch_stage<T>(device, shape_of(x), data<T>(x), out<T>(y), weights.attention.as<AttentionOf<const T>>(kData<T>),
                               weights.ffn.as<FfnOf<const T>>(kData<T>, as_int(expanded)), as_int(layers),
                               static_cast<Norm>(norm), as_int(patch_size));
  });
  return y;
}

Tensor image_head(Tensor image, Tensor weight, Tensor bias) {
  const int64_t outputs = weight.size(3);
  Tensor y = torch::stable::new_empty(image, {image.size(0), image.size(1), image.size(2), outputs});
  with_type(image, [&]<class T>(cuda::Device& device) {
    cuda::image_head<T>(device, shape_of(image), data<T>(image), out<T>(y), data<T>(weight), data<T>(bias),
                        as_int(outputs));
  });
  return y;
}

Tensor image_tail(Tensor x, Tensor skip, TailWeights weights, int64_t upscale) {
  const int64_t outputs = weights.up_weight.size(3);
  Tensor y = torch::stable::new_empty(
      x, {x.size(0), x.size(1) * upscale, x.size(2) * upscale, outputs / (upscale * upscale)});
  with_type(x, [&]<class T>(cuda::Device& device) {
    cuda::image_tail<T>(device, shape_of(x), data<T>(x), data<T>(skip), out<T>(y),
                        weights.as<TailOf<const T>>(kData<T>, as_int(outputs), as_int(upscale)));
  });
  return y;
}

Tensor tanh_affine(Tensor x, Tensor weight, Tensor bias) {
  const int64_t outputs = weight.size(1);
  Tensor y = torch::stable::new_empty(x, {x.size(0), x.size(1), x.size(2), outputs});
  with_type(x, [&]<class T>(cuda::Device& device) {
    cuda::tanh_affine<T>(device, shape_of(x), data<T>(x), out<T>(y), data<T>(weight), data<T>(bias),
                         as_int(outputs));
  });
  return y;
}

Tensor layer_norm2d(Tensor x, Tensor weight, Tensor bias, double eps) {
  Tensor y = torch::stable::empty_like(x);
  with_type(x, [&]<class T>(cuda::Device& device) {
    cuda::layer_norm2d<T>(device, shape_of(x), data<T>(x), out<T>(y), data<T>(weight), data<T>(bias),
                          static_cast<float>(eps));
  });
  return y;
}

#include "torch_cuda.h"

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ditn_native, CUDA, m) { implement_operators(m); }
