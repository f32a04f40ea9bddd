// SPDX-License-Identifier: Apache-2.0
// Torch's side of the CPU kernels: `ditn_native::*` on LibTorch's stable ABI. Tensors are dense on the CPU, activations
// [B, H, W, C]; shapes and types were checked by whoever calls (ditn_kernels/_library.py, _prepared.py).
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <exception>
#include <mutex>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "checked.h"
#include "cpu/kernels.h"
#include "handle.h"
#include "new_tensor.h"
#include "pages.h"

namespace {

using torch::stable::Tensor;
using namespace ditn;

using torch::headeronly::ScalarType;

// Written when the library is built, by ditn_kernels/_interface.py: the records of weights, here, and `define_operators`;
// at the end of the namespace the functions of the operators that take their tensors one by one, and `implement_operators`.
#include "torch_operators.h"

template <class T = float>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

template <class T = float>
T* out(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

// A new tensor for a result; the kernels write all of it.
Tensor result(Tensor t) {
  prefer_huge_pages(t.mutable_data_ptr(), static_cast<size_t>(t.numel()) * t.element_size());
  return t;
}

Tensor new_like(const Tensor& x) {
  const auto sizes = x.sizes();
  return result(new_tensor(x, {sizes.begin(), sizes.end()}));
}

// The part of a stacked weight that belongs to one layer.
const float* data_of_layer(const Tensor& t, int64_t layer) { return data(t) + layer * (t.numel() / t.size(0)); }

// As functions that records can be mapped with.
constexpr auto kData = [](const Tensor& t) { return data(t); };
constexpr auto kOut = [](const Tensor& t) { return out(t); };
constexpr auto kNewLike = [](const Tensor& t) { return new_like(t); };
// Weights become float32, as the kernels take them.
constexpr auto kWiden = [](const Tensor& t) {
  return t.scalar_type() == ScalarType::Float ? t : torch::stable::to(t, ScalarType::Float);
};

int as_int(int64_t value) { return static_cast<int>(value); }

// The kernels for activations of this type.
const Kernels& kernels_for(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return level().for_float;
    case ScalarType::BFloat16:
      return level().for_bfloat16;
    case ScalarType::Half:
      return level().for_float16;
    default:
      throw std::runtime_error("ditn_native computes float32, bfloat16 and float16, not scalar type " +
                               std::to_string(static_cast<int>(type)));
  }
}

Shape shape_of(const Tensor& x) { return {x.size(0), x.size(1), x.size(2), static_cast<int>(x.size(3))}; }

// Torch's threads. An exception must not cross them: the first is kept and thrown again by the caller's.
void run_on_torch(int64_t most, void (*work)(void*), void* argument) {
  const int64_t threads = torch::stable::get_num_threads();
  std::exception_ptr failure;
  std::mutex guard;
  torch::stable::parallel_for(0, most < threads ? most : threads, 1, [&](int64_t, int64_t) {
    try {
      work(argument);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(guard);
      if (!failure) failure = std::current_exception();
    }
  });
  if (failure) std::rethrow_exception(failure);
}

int64_t count_of_torch() { return torch::stable::get_num_threads(); }

constexpr Threads kThreads{run_on_torch, count_of_torch};

// An operator with its weights, as a kernel reads them.
class PreparedOperator final : public Handle {
 public:
  // Results have so many channels, in `upscale` times as many rows and columns as the maps.
  PreparedOperator(Prepared kernel, int64_t outputs, int64_t upscale = 1) : kernel_(kernel), outputs_(outputs), upscale_(upscale) {}
  ~PreparedOperator() override { kernel_.release(kernel_.weights); }

  Tensor run(const Tensor& x, const Tensor& skip) override {
    Tensor y = result(new_tensor(x, {x.size(0), x.size(1) * upscale_, x.size(2) * upscale_, outputs_}));
    kernel_.run(kernel_.weights, kThreads, shape_of(x), x.const_data_ptr(), skip.const_data_ptr(), y.mutable_data_ptr());
    return y;
  }

 private:
  const Prepared kernel_;
  const int64_t outputs_, upscale_;
};

// Each operator for activations of a type, with weights of any.

PreparedOperator inner_patch_stage(ScalarType type, InnerPatchStageWeights weights, int64_t norm, int64_t patch_size) {
  weights = weights.map(kWiden);
  std::vector<Attention> attentions;
  std::vector<Ffn> ffns;
  const int64_t layers = weights.ffn.out_weight.size(0), channels = weights.ffn.out_weight.size(2);
  for (int64_t i = 0; i < layers; ++i) {
    const auto of_layer = [i](const Tensor& t) { return data_of_layer(t, i); };
    attentions.push_back(weights.attention.as<Attention>(of_layer));
    ffns.push_back(weights.ffn.as<Ffn>(of_layer, at_least(1, weights.ffn.out_weight.size(1), "E")));
  }
  return {kernels_for(type).inner_patch(as_int(channels), attentions.data(), ffns.data(), as_int(layers),
                                        static_cast<Norm>(norm), at_least(1, patch_size, "patch_size")),
          channels};
}

PreparedOperator inner_patch_attention(ScalarType type, AttentionWeights weights, int64_t norm, int64_t patch_size) {
  weights = weights.map(kWiden);
  const auto attention = weights.as<Attention>(kData);
  const int64_t channels = weights.out_bias.size(0);
  return {kernels_for(type).inner_patch(as_int(channels), &attention, nullptr, 1, static_cast<Norm>(norm),
                                        at_least(1, patch_size, "patch_size")),
          channels};
}

PreparedOperator gated_ffn(ScalarType type, FfnWeights weights, int64_t norm, int64_t patch_size) {
  weights = weights.map(kWiden);
  const auto ffn = weights.as<Ffn>(kData, at_least(1, weights.out_weight.size(0), "E"));
  const int patch = at_least(0, patch_size, "patch_size");
  const int64_t channels = weights.out_bias.size(0);
  const Kernels& kernels = kernels_for(type);
  return {patch ? kernels.inner_patch(as_int(channels), nullptr, &ffn, 1, static_cast<Norm>(norm), patch)
                : kernels.spatial(as_int(channels), nullptr, &ffn, 1, static_cast<Norm>(norm)),
          channels};
}

PreparedOperator spatial_stage(ScalarType type, SpatialStageWeights weights, int64_t norm) {
  weights = weights.map(kWiden);
  std::vector<Gate> gates;
  std::vector<Ffn> ffns;
  const int64_t layers = weights.ffn.out_weight.size(0), channels = weights.ffn.out_weight.size(2);
  for (int64_t i = 0; i < layers; ++i) {
    const auto of_layer = [i](const Tensor& t) { return data_of_layer(t, i); };
    gates.push_back(weights.gate.as<Gate>(of_layer));
    ffns.push_back(weights.ffn.as<Ffn>(of_layer, at_least(1, weights.ffn.out_weight.size(1), "E")));
  }
  return {kernels_for(type).spatial(as_int(channels), gates.data(), ffns.data(), as_int(layers), static_cast<Norm>(norm)),
          channels};
}

PreparedOperator dilated_gate(ScalarType type, GateWeights weights, int64_t norm) {
  weights = weights.map(kWiden);
  const auto gate = weights.as<Gate>(kData);
  const int64_t channels = weights.out_bias.size(0);
  return {kernels_for(type).spatial(as_int(channels), &gate, nullptr, 1, static_cast<Norm>(norm)), channels};
}

PreparedOperator image_head(ScalarType type, Tensor weight, Tensor bias) {
  weight = kWiden(weight), bias = kWiden(bias);
  const int64_t channels = weight.size(2), outputs = weight.size(3);
  return {kernels_for(type).image_head(as_int(channels), data(weight), data(bias), as_int(outputs)), outputs};
}

PreparedOperator image_tail(ScalarType type, TailWeights weights, int64_t upscale) {
  weights = weights.map(kWiden);
  const int64_t channels = weights.up_weight.size(2), outputs = weights.up_weight.size(3);
  const auto tail = weights.as<Tail>(kData, as_int(outputs), upscale_for(outputs, upscale));
  return {kernels_for(type).image_tail(as_int(channels), tail), outputs / (upscale * upscale), upscale};
}

PreparedOperator tanh_affine(ScalarType type, Tensor weight, Tensor bias) {
  weight = kWiden(weight), bias = kWiden(bias);
  const int64_t channels = weight.size(0), outputs = weight.size(1);
  return {kernels_for(type).tanh_affine(as_int(channels), data(weight), data(bias), as_int(outputs)), outputs};
}

PreparedOperator layer_norm2d(ScalarType type, Tensor weight, Tensor bias, double eps) {
  weight = kWiden(weight), bias = kWiden(bias);
  const int64_t channels = weight.size(0);
  return {kernels_for(type).layer_norm2d(as_int(channels), data(weight), data(bias), static_cast<float>(eps)), channels};
}

// Gradients for activations of the type of x: results are like what they are the gradients of. gradients(kernels, in, out)
// has activations as the kernels take them.
template <class Gradients>
void differentiate(const Tensor& x, const Gradients& gradients) {
  const auto with = [&]<class T>(const Backward<T>& kernels) {
    gradients(kernels, [](const Tensor& t) { return data<T>(t); }, [](const Tensor& t) { return out<T>(t); });
  };
  x.scalar_type() == ScalarType::Float ? with(*level().backward_of_float) : with(*level().backward_of_bfloat16);
}

// Gradients of weights, which are computed in float32, in the weights' type.
auto in_type_of(const Tensor& weight) {
  return [type = weight.scalar_type()](const Tensor& t) {
    return type == ScalarType::Float ? t : torch::stable::to(t, type);
  };
}

std::tuple<Tensor, AttentionWeights> inner_patch_attention_backward(Tensor grad, Tensor x, AttentionWeights weights, int64_t norm,
                                                                    int64_t patch_size) {
  Tensor dx = new_like(x);
  const AttentionWeights wide = weights.map(kWiden), dweights = wide.map(kNewLike);
  differentiate(x, [&](const auto& kernels, const auto& in, const auto& out_of) {
    kernels.inner_patch_attention(kThreads, shape_of(x), in(grad), in(x), wide.as<Attention>(kData), static_cast<Norm>(norm),
                                  at_least(1, patch_size, "patch_size"), out_of(dx), dweights.as<AttentionOf<float>>(kOut));
  });
  return {dx, dweights.map(in_type_of(weights.out_bias))};
}

std::tuple<Tensor, FfnWeights> gated_ffn_backward(Tensor grad, Tensor x, FfnWeights weights, int64_t norm, int64_t patch_size) {
  Tensor dx = new_like(x);
  const FfnWeights wide = weights.map(kWiden), dweights = wide.map(kNewLike);
  const int expanded = at_least(1, weights.out_weight.size(0), "E");
  differentiate(x, [&](const auto& kernels, const auto& in, const auto& out_of) {
    kernels.gated_ffn(kThreads, shape_of(x), in(grad), in(x), wide.as<Ffn>(kData, expanded), static_cast<Norm>(norm),
                      at_least(0, patch_size, "patch_size"), out_of(dx), dweights.as<FfnOf<float>>(kOut, expanded));
  });
  return {dx, dweights.map(in_type_of(weights.out_bias))};
}

std::tuple<Tensor, GateWeights> dilated_gate_backward(Tensor grad, Tensor x, GateWeights weights, int64_t norm) {
  Tensor dx = new_like(x);
  const GateWeights wide = weights.map(kWiden), dweights = wide.map(kNewLike);
  differentiate(x, [&](const auto& kernels, const auto& in, const auto& out_of) {
    kernels.dilated_gate(kThreads, shape_of(x), in(grad), in(x), wide.as<Gate>(kData), static_cast<Norm>(norm), out_of(dx),
                         dweights.as<GateOf<float>>(kOut));
  });
  return {dx, dweights.map(in_type_of(weights.out_bias))};
}

// Of an operator with a weight and a bias alone; `options` come between weight and dx.
template <class Kernel, class... Options>
std::tuple<Tensor, Tensor, Tensor> affine_backward(const Kernel& kernel, const Tensor& grad, const Tensor& x, const Tensor& weight,
                                                   const Tensor& bias, Options... options) {
  Tensor dx = new_like(x), wide = kWiden(weight), dweight = new_like(wide), dbias = new_like(kWiden(bias));
  differentiate(x, [&](const auto& kernels, const auto& in, const auto& out_of) {
    kernel(kernels)(kThreads, shape_of(x), in(grad), in(x), data(wide), options..., out_of(dx), out(dweight), out(dbias));
  });
  const auto narrowed = in_type_of(weight);
  return {dx, narrowed(dweight), narrowed(dbias)};
}

std::tuple<Tensor, Tensor, Tensor> tanh_affine_backward(Tensor grad, Tensor x, Tensor weight, Tensor bias) {
  return affine_backward([](const auto& kernels) { return kernels.tanh_affine; }, grad, x, weight, bias, as_int(weight.size(1)));
}

std::tuple<Tensor, Tensor, Tensor> layer_norm2d_backward(Tensor grad, Tensor x, Tensor weight, Tensor bias, double eps) {
  return affine_backward([](const auto& kernels) { return kernels.layer_norm2d; }, grad, x, weight, bias, static_cast<float>(eps));
}

std::tuple<Tensor, Tensor, Tensor> image_head_backward(Tensor grad, Tensor image, Tensor weight, Tensor bias) {
  return affine_backward([](const auto& kernels) { return kernels.image_head; }, grad, image, weight, bias, as_int(weight.size(3)));
}

std::tuple<Tensor, Tensor, TailWeights> image_tail_backward(Tensor grad, Tensor x, Tensor skip, TailWeights weights,
                                                            int64_t upscale) {
  Tensor dx = new_like(x), dskip = new_like(skip);
  const TailWeights wide = weights.map(kWiden), dweights = wide.map(kNewLike);
  const int outputs = as_int(weights.up_weight.size(3)), scale = upscale_for(outputs, upscale);
  differentiate(x, [&](const auto& kernels, const auto& in, const auto& out_of) {
    kernels.image_tail(kThreads, shape_of(x), in(grad), in(x), in(skip), wide.as<Tail>(kData, outputs, scale), out_of(dx),
                       out_of(dskip), dweights.as<TailOf<float>>(kOut, outputs, scale));
  });
  return {dx, dskip, dweights.map(in_type_of(weights.up_bias))};
}

Tensor function(std::string name, Tensor x) {
  Tensor y = new_like(x);
  level().function(name.c_str(), data(x), out<float>(y), x.numel());
  return y;
}

// On any device, a dense copy of what may have any strides: compiled programs assume those that they were traced with.
Tensor dense(Tensor x) {
  const auto sizes = x.sizes();
  Tensor y = new_tensor(x, {sizes.begin(), sizes.end()});
  return torch::stable::copy_(y, x);
}

// On any device.
Tensor run_prepared(int64_t handle, Tensor x, Tensor skip) { return reinterpret_cast<Handle*>(handle)->run(x, skip); }

void release(int64_t handle) { delete reinterpret_cast<Handle*>(handle); }

int64_t fma_loop(int64_t units) { return level().fma_loop(kThreads, units); }

#include "torch_cpp.h"

}  // namespace

STABLE_TORCH_LIBRARY(ditn_native, m) {
  define_operators(m);
  m.def("dense(Tensor x) -> Tensor");
  m.def("function(str name, Tensor x) -> Tensor");
  m.def("fma_loop(int units) -> int");
  m.def("run_prepared(int handle, Tensor x, Tensor skip) -> Tensor");
  m.def("release(int handle) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(ditn_native, CompositeExplicitAutograd, m) {
  m.impl("dense", TORCH_BOX(&dense));
  m.impl("fma_loop", TORCH_BOX(&fma_loop));
  m.impl("run_prepared", TORCH_BOX(&run_prepared));
  m.impl("release", TORCH_BOX(&release));
}

STABLE_TORCH_LIBRARY_IMPL(ditn_native, CPU, m) {
  implement_operators(m);
  m.impl("function", TORCH_BOX(&function));
}
