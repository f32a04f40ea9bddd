// SPDX-License-Identifier: Apache-2.0
// The only file that knows torch: `ditn_native::*` on LibTorch's stable ABI. Tensors are dense on the CPU, activations
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

#include "cpu/kernels.h"
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

Tensor new_like(const Tensor& x) { return result(torch::stable::empty_like(x)); }

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

// Calls work with the kernels for the type of x.
template <class Work>
void with_kernels(const Tensor& x, const Work& work) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return work(level().for_float);
    case ScalarType::BFloat16:
      return work(level().for_bfloat16);
    case ScalarType::Half:
      return work(level().for_float16);
    default:
      throw std::runtime_error("ditn_native computes float32, bfloat16 and float16, not scalar type " +
                               std::to_string(static_cast<int>(x.scalar_type())));
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

Tensor inner_patch_stage(Tensor x, InnerPatchStageWeights weights, int64_t norm, int64_t patch_size) {
  weights = weights.map(kWiden);
  Tensor y = new_like(x);
  std::vector<Attention> attentions;
  std::vector<Ffn> ffns;
  const int64_t layers = weights.ffn.out_weight.size(0);
  for (int64_t i = 0; i < layers; ++i) {
    const auto of_layer = [i](const Tensor& t) { return data_of_layer(t, i); };
    attentions.push_back(weights.attention.as<Attention>(of_layer));
    ffns.push_back(weights.ffn.as<Ffn>(of_layer, as_int(weights.ffn.out_weight.size(1))));
  }
  with_kernels(x, [&]<class T>(const Kernels<T>& kernels) {
    kernels.inner_patch(kThreads, shape_of(x), data<T>(x), out<T>(y), attentions.data(), ffns.data(), as_int(layers),
                        static_cast<Norm>(norm), as_int(patch_size));
  });
  return y;
}

Tensor inner_patch_attention(Tensor x, AttentionWeights weights, int64_t norm, int64_t patch_size) {
  weights = weights.map(kWiden);
  Tensor y = new_like(x);
  const auto attention = weights.as<Attention>(kData);
  with_kernels(x, [&]<class T>(const Kernels<T>& kernels) {
    kernels.inner_patch(kThreads, shape_of(x), data<T>(x), out<T>(y), &attention, nullptr, 1, static_cast<Norm>(norm),
                        as_int(patch_size));
  });
  return y;
}

Tensor gated_ffn(Tensor x, FfnWeights weights, int64_t norm, int64_t patch_size) {
  weights = weights.map(kWiden);
  Tensor y = new_like(x);
  const auto ffn = weights.as<Ffn>(kData, as_int(weights.out_weight.size(0)));
  with_kernels(x, [&]<class T>(const Kernels<T>& kernels) {
    if (patch_size) {
      kernels.inner_patch(kThreads, shape_of(x), data<T>(x), out<T>(y), nullptr, &ffn, 1, static_cast<Norm>(norm),
                          as_int(patch_size));
    } else {
      kernels.spatial(kThreads, shape_of(x), data<T>(x), out<T>(y), nullptr, &ffn, 1, static_cast<Norm>(norm));
    }
  });
  return y;
}

Tensor spatial_stage(Tensor x, SpatialStageWeights weights, int64_t norm) {
  weights = weights.map(kWiden);
  Tensor y = new_like(x);
  std::vector<Gate> gates;
  std::vector<Ffn> ffns;
  const int64_t layers = weights.ffn.out_weight.size(0);
  for (int64_t i = 0; i < layers; ++i) {
    const auto of_layer = [i](const Tensor& t) { return data_of_layer(t, i); };
    gates.push_back(weights.gate.as<Gate>(of_layer));
    ffns.push_back(weights.ffn.as<Ffn>(of_layer, as_int(weights.ffn.out_weight.size(1))));
  }
  with_kernels(x, [&]<class T>(const Kernels<T>& kernels) {
    kernels.spatial(kThreads, shape_of(x), data<T>(x), out<T>(y), gates.data(), ffns.data(), as_int(layers),
                    static_cast<Norm>(norm));
  });
  return y;
}

Tensor dilated_gate(Tensor x, GateWeights weights, int64_t norm) {
  weights = weights.map(kWiden);
  Tensor y = new_like(x);
  const auto gate = weights.as<Gate>(kData);
  with_kernels(x, [&]<class T>(const Kernels<T>& kernels) {
    kernels.spatial(kThreads, shape_of(x), data<T>(x), out<T>(y), &gate, nullptr, 1, static_cast<Norm>(norm));
  });
  return y;
}

// A new map [B, H, W, channels] of the kind of x.
Tensor map_like(const Tensor& x, int64_t height, int64_t width, int64_t channels) {
  return result(torch::stable::new_empty(x, {x.size(0), height, width, channels}));
}

Tensor image_head(Tensor image, Tensor weight, Tensor bias) {
  weight = kWiden(weight), bias = kWiden(bias);
  const int64_t outputs = weight.size(3);
  Tensor y = map_like(image, image.size(1), image.size(2), outputs);
  with_kernels(image, [&]<class T>(const Kernels<T>& kernels) {
    kernels.image_head(kThreads, shape_of(image), data<T>(image), out<T>(y), data(weight), data(bias), as_int(outputs));
  });
  return y;
}

Tensor image_tail(Tensor x, Tensor skip, TailWeights weights, int64_t upscale) {
  weights = weights.map(kWiden);
  const int64_t outputs = weights.up_weight.size(3);
  Tensor y = map_like(x, x.size(1) * upscale, x.size(2) * upscale, outputs / (upscale * upscale));
  const auto tail = weights.as<Tail>(kData, as_int(outputs), as_int(upscale));
  with_kernels(x, [&]<class T>(const Kernels<T>& kernels) {
    kernels.image_tail(kThreads, shape_of(x), data<T>(x), data<T>(skip), out<T>(y), tail);
  });
  return y;
}

Tensor tanh_affine(Tensor x, Tensor weight, Tensor bias) {
  weight = kWiden(weight), bias = kWiden(bias);
  const int64_t outputs = weight.size(1);
  Tensor y = map_like(x, x.size(1), x.size(2), outputs);
  with_kernels(x, [&]<class T>(const Kernels<T>& kernels) {
    kernels.tanh_affine(kThreads, shape_of(x), data<T>(x), out<T>(y), data(weight), data(bias), as_int(outputs));
  });
  return y;
}

Tensor layer_norm2d(Tensor x, Tensor weight, Tensor bias, double eps) {
  weight = kWiden(weight), bias = kWiden(bias);
  Tensor y = new_like(x);
  with_kernels(x, [&]<class T>(const Kernels<T>& kernels) {
    kernels.layer_norm2d(kThreads, shape_of(x), data<T>(x), out<T>(y), data(weight), data(bias), static_cast<float>(eps));
  });
  return y;
}

std::tuple<Tensor, AttentionWeights> inner_patch_attention_backward(Tensor grad, Tensor x, AttentionWeights weights, int64_t norm,
                                                                    int64_t patch_size) {
  Tensor dx = new_like(x);
  const AttentionWeights dweights = weights.map(kNewLike);
  level().backward->inner_patch_attention(kThreads, shape_of(x), data(grad), data(x), weights.as<Attention>(kData),
                                          static_cast<Norm>(norm), as_int(patch_size), out(dx),
                                          dweights.as<AttentionOf<float>>(kOut));
  return {dx, dweights};
}

std::tuple<Tensor, FfnWeights> gated_ffn_backward(Tensor grad, Tensor x, FfnWeights weights, int64_t norm, int64_t patch_size) {
  Tensor dx = new_like(x);
  const FfnWeights dweights = weights.map(kNewLike);
  const int expanded = as_int(weights.out_weight.size(0));
  level().backward->gated_ffn(kThreads, shape_of(x), data(grad), data(x), weights.as<Ffn>(kData, expanded),
                              static_cast<Norm>(norm), as_int(patch_size), out(dx), dweights.as<FfnOf<float>>(kOut, expanded));
  return {dx, dweights};
}

std::tuple<Tensor, GateWeights> dilated_gate_backward(Tensor grad, Tensor x, GateWeights weights, int64_t norm) {
  Tensor dx = new_like(x);
  const GateWeights dweights = weights.map(kNewLike);
  level().backward->dilated_gate(kThreads, shape_of(x), data(grad), data(x), weights.as<Gate>(kData), static_cast<Norm>(norm),
                                 out(dx), dweights.as<GateOf<float>>(kOut));
  return {dx, dweights};
}

std::tuple<Tensor, Tensor, Tensor> tanh_affine_backward(Tensor grad, Tensor x, Tensor weight, Tensor bias) {
  Tensor dx = new_like(x), dweight = new_like(weight), dbias = new_like(bias);
  level().backward->tanh_affine(kThreads, shape_of(x), data(grad), data(x), data(weight), as_int(weight.size(1)), out(dx),
                                out(dweight), out(dbias));
  return {dx, dweight, dbias};
}

std::tuple<Tensor, Tensor, Tensor> layer_norm2d_backward(Tensor grad, Tensor x, Tensor weight, Tensor bias, double eps) {
  Tensor dx = new_like(x), dweight = new_like(weight), dbias = new_like(bias);
  level().backward->layer_norm2d(kThreads, shape_of(x), data(grad), data(x), data(weight), static_cast<float>(eps), out(dx),
                                 out(dweight), out(dbias));
  return {dx, dweight, dbias};
}

std::tuple<Tensor, Tensor, Tensor> image_head_backward(Tensor grad, Tensor image, Tensor weight, Tensor bias) {
  Tensor dimage = new_like(image), dweight = new_like(weight), dbias = new_like(bias);
  level().backward->image_head(kThreads, shape_of(image), data(grad), data(image), data(weight), as_int(weight.size(3)),
                               out(dimage), out(dweight), out(dbias));
  return {dimage, dweight, dbias};
}

std::tuple<Tensor, Tensor, TailWeights> image_tail_backward(Tensor grad, Tensor x, Tensor skip, TailWeights weights,
                                                            int64_t upscale) {
  Tensor dx = new_like(x), dskip = new_like(skip);
  const TailWeights dweights = weights.map(kNewLike);
  const int outputs = as_int(weights.up_weight.size(3)), scale = as_int(upscale);
  level().backward->image_tail(kThreads, shape_of(x), data(grad), data(x), data(skip), weights.as<Tail>(kData, outputs, scale),
                               out(dx), out(dskip), dweights.as<TailOf<float>>(kOut, outputs, scale));
  return {dx, dskip, dweights};
}

Tensor function(std::string name, Tensor x) {
  Tensor y = new_like(x);
  level().function(name.c_str(), data(x), out<float>(y), x.numel());
  return y;
}

int64_t fma_loop(int64_t units) { return level().fma_loop(kThreads, units); }

#include "torch_cpp.h"

}  // namespace

STABLE_TORCH_LIBRARY(ditn_native, m) {
  define_operators(m);
  m.def("function(str name, Tensor x) -> Tensor");
  m.def("fma_loop(int units) -> int");
}

STABLE_TORCH_LIBRARY_IMPL(ditn_native, CompositeExplicitAutograd, m) { m.impl("fma_loop", TORCH_BOX(&fma_loop)); }

STABLE_TORCH_LIBRARY_IMPL(ditn_native, CPU, m) {
  implement_operators(m);
  m.impl("function", TORCH_BOX(&function));
}
