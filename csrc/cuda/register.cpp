// SPDX-License-Identifier: Apache-2.0
// The CUDA kernels for torch: implementations of `ditn_native::*`, whose schemas are in ../register.cpp, on LibTorch's
// stable ABI. Tensors are dense on one GPU, activations [B, H, W, C]; shapes and types were checked by whoever calls.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <functional>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../checked.h"
#include "../handle.h"
#include "../new_tensor.h"
#include "kernels.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using namespace ditn;

// Both written by ditn_kernels/_interface.py when the library is built, as in ../register.cpp.
#include "torch_operators.h"

// An operator's weights in the order in which its kernels take them.
struct PackedWeights {
  std::vector<Tensor> memory;
  bool there = false;
};

// The GPU of a tensor, made the current one, with torch's current stream and torch's memory. Weights are packed into
// `packed`, or are there already; without it, into memory for this call.
class TorchDevice : public cuda::Device {
 public:
  explicit TorchDevice(const Tensor& like, PackedWeights* packed = nullptr)
      : Device(current_stream(like.get_device_index())), guard_(like.get_device_index()), like_(like), packed_(packed) {}

  // Torch gives the memory to others only on the same stream, hence after what was launched here.
  void* allocate(size_t bytes) override { return allocate(bytes, memory_); }

  void* allocate_weights(size_t bytes) override {
    if (!packed_) return allocate(bytes);
    if (!packed_->there) return allocate(bytes, packed_->memory);
    return packed_->memory.at(next_++).mutable_data_ptr();
  }

  bool has_weights() const override { return packed_ && packed_->there; }

  bool is_capturing() const {
    cudaStreamCaptureStatus status;
    check(cudaStreamIsCapturing(stream, &status));
    return status != cudaStreamCaptureStatusNone;
  }

  void wait() const { check(cudaStreamSynchronize(stream)); }

 private:
  static void check(cudaError_t error) {
    if (error != cudaSuccess) throw std::runtime_error(std::string("ditn_native: ") + cudaGetErrorString(error));
  }

  static cudaStream_t current_stream(int32_t index) {
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index, &stream));
    return static_cast<cudaStream_t>(stream);
  }

  void* allocate(size_t bytes, std::vector<Tensor>& memory) const {
    memory.push_back(new_tensor(like_, {static_cast<int64_t>(bytes)}, ScalarType::Byte));
    return memory.back().mutable_data_ptr();
  }

  torch::stable::accelerator::DeviceGuard guard_;
  Tensor like_;
  std::vector<Tensor> memory_;
  PackedWeights* packed_;
  size_t next_ = 0;
};

template <class T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

// As a function that records can be mapped with.
template <class T>
constexpr auto kData = [](const Tensor& t) { return data<T>(t); };

int as_int(int64_t value) { return static_cast<int>(value); }

Shape shape_of(const Tensor& x) { return {x.size(0), x.size(1), x.size(2), static_cast<int>(x.size(3))}; }

// y = launch(x, skip), which holds the operator's weights.
using Launch = std::function<void(cuda::Device&, Shape, const void* x, const void* skip, void* y)>;

// work(device, shape, x, skip, y) for activations of this type: float16, float32 or, with __nv_bfloat16, bfloat16.
template <class... Bfloat16, class Work>
Launch launch_of(ScalarType type, const Work& work) {
  Launch found;
  const auto offer = [&]<class T>(ScalarType offered, T) {
    if (type != offered) return;
    found = [work](cuda::Device& device, Shape shape, const void* x, const void* skip, void* y) {
      work(device, shape, static_cast<const T*>(x), static_cast<const T*>(skip), static_cast<T*>(y));
    };
  };
  offer(ScalarType::Half, __half{});
  offer(ScalarType::Float, float{});
  (offer(ScalarType::BFloat16, Bfloat16{}), ...);
  if (!found) {
    throw std::runtime_error("ditn_native has no CUDA kernels of this operator for scalar type " + std::to_string(static_cast<int>(type)));
  }
  return found;
}

// An operator with its weights. One that lasts packs them once.
class PreparedOperator final : public Handle {
 public:
  // Results have so many channels, in `upscale` times as many rows and columns as the maps.
  PreparedOperator(Launch launch, int64_t outputs, int64_t upscale = 1)
      : launch_(std::move(launch)), outputs_(outputs), upscale_(upscale) {}

  Tensor run(const Tensor& x, const Tensor& skip) override {
    Tensor y = new_tensor(x, {x.size(0), x.size(1) * upscale_, x.size(2) * upscale_, outputs_});
    const auto launch = [&](TorchDevice&& device) {
      launch_(device, shape_of(x), x.const_data_ptr(), skip.const_data_ptr(), y.mutable_data_ptr());
    };
    if (!lasts || !x.numel()) {
      launch(TorchDevice(x));
      return y;
    }
    const std::lock_guard<std::mutex> lock(guard_);
    PackedWeights& packed = packed_[cuda::kernels_in_use()];
    if (packed.there) {
      launch(TorchDevice(x, &packed));
    } else if (TorchDevice(x).is_capturing()) {  // what is packed here lies in the graph's memory, and only once it ran
      launch(TorchDevice(x));
    } else {
      packed.memory.clear();  // of a call that failed
      launch(TorchDevice(x, &packed));
      TorchDevice(x).wait();  // the next call may be on another stream
      packed.there = true;
    }
    return y;
  }

 private:
  const Launch launch_;
  const int64_t outputs_, upscale_;
  std::map<unsigned, PackedWeights> packed_;  // by kernels_in_use()
  std::mutex guard_;
};

PreparedOperator inner_patch_attention(ScalarType type, AttentionWeights weights, int64_t norm, int64_t patch_size) {
  const auto launch = [=]<class T>(cuda::Device& device, Shape shape, const T* x, const T*, T* y) {
    cuda::inner_patch_attention<T>(device, shape, x, y, weights.as<AttentionOf<const T>>(kData<T>), static_cast<Norm>(norm),
                                   at_least(1, patch_size, "patch_size"));
  };
  return {launch_of(type, launch), weights.out_bias.size(0)};
}

PreparedOperator gated_ffn(ScalarType type, FfnWeights weights, int64_t norm, int64_t patch_size) {
  const auto launch = [=]<class T>(cuda::Device& device, Shape shape, const T* x, const T*, T* y) {
    const auto ffn = weights.as<FfnOf<const T>>(kData<T>, at_least(1, weights.out_weight.size(0), "E"));
    cuda::gated_ffn<T>(device, shape, x, y, ffn, static_cast<Norm>(norm), at_least(0, patch_size, "patch_size"));
  };
  return {launch_of<__nv_bfloat16>(type, launch), weights.out_bias.size(0)};
}

PreparedOperator dilated_gate(ScalarType type, GateWeights weights, int64_t norm) {
  const auto launch = [=]<class T>(cuda::Device& device, Shape shape, const T* x, const T*, T* y) {
    cuda::dilated_gate<T>(device, shape, x, y, weights.as<GateOf<const T>>(kData<T>), static_cast<Norm>(norm));
  };
  return {launch_of<__nv_bfloat16>(type, launch), weights.out_bias.size(0)};
}

PreparedOperator inner_patch_stage(ScalarType type, InnerPatchStageWeights weights, int64_t norm, int64_t patch_size) {
  const int64_t layers = weights.ffn.out_weight.size(0), expanded = weights.ffn.out_weight.size(1);
  const auto launch = [=]<class T>(cuda::Device& device, Shape shape, const T* x, const T*, T* y) {
    cuda::inner_patch_stage<T>(device, shape, x, y, weights.attention.as<AttentionOf<const T>>(kData<T>),
                               weights.ffn.as<FfnOf<const T>>(kData<T>, at_least(1, expanded, "E")), as_int(layers),
                               static_cast<Norm>(norm), at_least(1, patch_size, "patch_size"));
  };
  return {launch_of<__nv_bfloat16>(type, launch), weights.ffn.out_weight.size(2)};
}

PreparedOperator spatial_stage(ScalarType type, SpatialStageWeights weights, int64_t norm) {
  const int64_t layers = weights.ffn.out_weight.size(0), expanded = weights.ffn.out_weight.size(1);
  const auto launch = [=]<class T>(cuda::Device& device, Shape shape, const T* x, const T*, T* y) {
    cuda::spatial_stage<T>(device, shape, x, y, weights.gate.as<GateOf<const T>>(kData<T>),
                           weights.ffn.as<FfnOf<const T>>(kData<T>, at_least(1, expanded, "E")), as_int(layers),
                           static_cast<Norm>(norm));
  };
  return {launch_of<__nv_bfloat16>(type, launch), weights.ffn.out_weight.size(2)};
}

PreparedOperator image_head(ScalarType type, Tensor weight, Tensor bias) {
  const int64_t outputs = weight.size(3);
  const auto launch = [=]<class T>(cuda::Device& device, Shape shape, const T* image, const T*, T* y) {
    cuda::image_head<T>(device, shape, image, y, data<T>(weight), data<T>(bias), as_int(outputs));
  };
  return {launch_of<__nv_bfloat16>(type, launch), outputs};
}

PreparedOperator image_tail(ScalarType type, TailWeights weights, int64_t upscale) {
  const int64_t outputs = weights.up_weight.size(3);
  const int scale = upscale_for(outputs, upscale);
  const auto launch = [=]<class T>(cuda::Device& device, Shape shape, const T* x, const T* skip, T* y) {
    const auto tail = weights.as<TailOf<const T>>(kData<T>, as_int(outputs), scale);
    cuda::image_tail<T>(device, shape, x, skip, y, tail);
  };
  return {launch_of<__nv_bfloat16>(type, launch), outputs / (scale * scale), scale};
}

PreparedOperator tanh_affine(ScalarType type, Tensor weight, Tensor bias) {
  const int64_t outputs = weight.size(1);
  const auto launch = [=]<class T>(cuda::Device& device, Shape shape, const T* x, const T*, T* y) {
    cuda::tanh_affine<T>(device, shape, x, y, data<T>(weight), data<T>(bias), as_int(outputs));
  };
  return {launch_of(type, launch), outputs};
}

PreparedOperator layer_norm2d(ScalarType type, Tensor weight, Tensor bias, double eps) {
  const auto launch = [=]<class T>(cuda::Device& device, Shape shape, const T* x, const T*, T* y) {
    cuda::layer_norm2d<T>(device, shape, x, y, data<T>(weight), data<T>(bias), static_cast<float>(eps));
  };
  return {launch_of(type, launch), weight.size(0)};
}

#include "torch_cuda.h"

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ditn_native, CUDA, m) { implement_operators(m); }
