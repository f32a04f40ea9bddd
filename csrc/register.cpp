// SPDX-License-Identifier: Apache-2.0
// The only file that knows torch: `ditn_native::*` on LibTorch's stable ABI. Tensors are dense on the CPU, activations
// [B, H, W, C]; shapes and types were checked by whoever calls (ditn_kernels/_library.py).
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <exception>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/kernels.h"
#include "pages.h"

namespace {

using torch::stable::Tensor;
using namespace ditn;

using torch::headeronly::ScalarType;

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
const float* data(const Tensor& t, int64_t layer) { return data(t) + layer * (t.numel() / t.size(0)); }

// Weights become float32, as the kernels take them.
template <class... Weights>
void widen(Weights&... weights) {
  const auto one = [](Tensor& t) {
    if (t.scalar_type() != ScalarType::Float) t = torch::stable::to(t, ScalarType::Float);
  };
  (one(weights), ...);
}

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

Tensor inner_patch_stage(Tensor x, Tensor qkv_weight, Tensor qkv_bias, Tensor temperature, Tensor attn_out_weight,
                         Tensor attn_out_bias, Tensor in_weight, Tensor in_bias, Tensor dw_weight, Tensor dw_bias,
                         Tensor ffn_out_weight, Tensor ffn_out_bias, int64_t norm, int64_t patch_size) {
  widen(qkv_weight, qkv_bias, temperature, attn_out_weight, attn_out_bias, in_weight, in_bias, dw_weight, dw_bias,
        ffn_out_weight, ffn_out_bias);
  Tensor y = new_like(x);
  std::vector<Attention> attentions;
  std::vector<Ffn> ffns;
  const int64_t layers = qkv_weight.size(0);
  for (int64_t i = 0; i < layers; ++i) {
    attentions.push_back({data(qkv_weight, i), data(qkv_bias, i), data(temperature, i), data(attn_out_weight, i),
                          data(attn_out_bias, i)});
    ffns.push_back({data(in_weight, i), data(in_bias, i), data(dw_weight, i), data(dw_bias, i), data(ffn_out_weight, i),
                    data(ffn_out_bias, i), static_cast<int>(ffn_out_weight.size(1))});
  }
  with_kernels(x, [&]<class T>(const Kernels<T>& kernels) {
    kernels.inner_patch(kThreads, shape_of(x), data<T>(x), out<T>(y), attentions.data(), ffns.data(),
                        static_cast<int>(layers), static_cast<Norm>(norm), static_cast<int>(patch_size));
  });
  return y;
}

Tensor inner_patch_attention(Tensor x, Tensor qkv_weight, Tensor qkv_bias, Tensor temperature, Tensor out_weight,
                             Tensor out_bias, int64_t norm, int64_t patch_size) {
  widen(qkv_weight, qkv_bias, temperature, out_weight, out_bias);
  Tensor y = new_like(x);
  const Attention attention{data(qkv_weight), data(qkv_bias), data(temperature), data(out_weight), data(out_bias)};
  with_kernels(x, [&]<class T>(const Kernels<T>& kernels) {
    kernels.inner_patch(kThreads, shape_of(x), data<T>(x), out<T>(y), &attention, nullptr, 1, static_cast<Norm>(norm),
                        static_cast<int>(patch_size));
  });
  return y;
}

Tensor gated_ffn(Tensor x, Tensor in_weight, Tensor in_bias, Tensor dw_weight, Tensor dw_bias, Tensor out_weight,
                 Tensor out_bias, int64_t norm, int64_t patch_size) {
  widen(in_weight, in_bias, dw_weight, dw_bias, out_weight, out_bias);
  Tensor y = new_like(x);
  const Ffn ffn{data(in_weight), data(in_bias), data(dw_weight), data(dw_bias), data(out_weight), data(out_bias),
                static_cast<int>(out_weight.size(0))};
  with_kernels(x, [&]<class T>(const Kernels<T>& kernels) {
    if (patch_size) {
      kernels.inner_patch(kThreads, shape_of(x), data<T>(x), out<T>(y), nullptr, &ffn, 1, static_cast<Norm>(norm),
                          static_cast<int>(patch_size));
    } else {
      kernels.spatial(kThreads, shape_of(x), data<T>(x), out<T>(y), nullptr, &ffn, 1, static_cast<Norm>(norm));
    }
  });
  return y;
}

Tensor spatial_stage(Tensor x, Tensor gate_in_weight, Tensor gate_in_bias, Tensor dw5_weight, Tensor dw5_bias,
                     Tensor dw7_weight, Tensor dw7_bias, Tensor mix_weight, Tensor mix_bias, Tensor gate_out_weight,
                     Tensor gate_out_bias, Tensor in_weight, Tensor in_bias, Tensor dw_weight, Tensor dw_bias,
                     Tensor ffn_out_weight, Tensor ffn_out_bias, int64_t norm) {
  widen(gate_in_weight, gate_in_bias, dw5_weight, dw5_bias, dw7_weight, dw7_bias, mix_weight, mix_bias, gate_out_weight,
        gate_out_bias, in_weight, in_bias, dw_weight, dw_bias, ffn_out_weight, ffn_out_bias);
  Tensor y = new_like(x);
  std::vector<Gate> gates;
  std::vector<Ffn> ffns;
  const int64_t layers = in_weight.size(0);
  for (int64_t i = 0; i < layers; ++i) {
    gates.push_back({data(gate_in_weight, i), data(gate_in_bias, i), data(dw5_weight, i), data(dw5_bias, i),
                     data(dw7_weight, i), data(dw7_bias, i), data(mix_weight, i), data(mix_bias, i), data(gate_out_weight, i),
                     data(gate_out_bias, i)});
    ffns.push_back({data(in_weight, i), data(in_bias, i), data(dw_weight, i), data(dw_bias, i), data(ffn_out_weight, i),
                    data(ffn_out_bias, i), static_cast<int>(ffn_out_weight.size(1))});
  }
  with_kernels(x, [&]<class T>(const Kernels<T>& kernels) {
    kernels.spatial(kThreads, shape_of(x), data<T>(x), out<T>(y), gates.data(), ffns.data(), static_cast<int>(layers),
                    static_cast<Norm>(norm));
  });
  return y;
}

Tensor dilated_gate(Tensor x, Tensor in_weight, Tensor in_bias, Tensor dw5_weight, Tensor dw5_bias, Tensor dw7_weight,
                    Tensor dw7_bias, Tensor mix_weight, Tensor mix_bias, Tensor out_weight, Tensor out_bias, int64_t norm) {
  widen(in_weight, in_bias, dw5_weight, dw5_bias, dw7_weight, dw7_bias, mix_weight, mix_bias, out_weight, out_bias);
  Tensor y = new_like(x);
  const Gate gate{data(in_weight),  data(in_bias),    data(dw5_weight), data(dw5_bias),   data(dw7_weight),
                  data(dw7_bias),   data(mix_weight), data(mix_bias),   data(out_weight), data(out_bias)};
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
  widen(weight, bias);
  const int64_t outputs = weight.size(3);
  Tensor y = map_like(image, image.size(1), image.size(2), outputs);
  with_kernels(image, [&]<class T>(const Kernels<T>& kernels) {
    kernels.image_head(kThreads, shape_of(image), data<T>(image), out<T>(y), data(weight), data(bias),
                       static_cast<int>(outputs));
  });
  return y;
}

Tensor image_tail(Tensor x, Tensor skip, Tensor body_weight, Tensor body_bias, Tensor up_weight, Tensor up_bias,
                  int64_t upscale) {
  widen(body_weight, body_bias, up_weight, up_bias);
  const int64_t outputs = up_weight.size(3);
  Tensor y = map_like(x, x.size(1) * upscale, x.size(2) * upscale, outputs / (upscale * upscale));
  const Tail tail{data(body_weight), data(body_bias),           data(up_weight),
                  data(up_bias),     static_cast<int>(outputs), static_cast<int>(upscale)};
  with_kernels(x, [&]<class T>(const Kernels<T>& kernels) {
    kernels.image_tail(kThreads, shape_of(x), data<T>(x), data<T>(skip), out<T>(y), tail);
  });
  return y;
}

Tensor tanh_affine(Tensor x, Tensor weight, Tensor bias) {
  widen(weight, bias);
  const int64_t outputs = weight.size(1);
  Tensor y = map_like(x, x.size(1), x.size(2), outputs);
  with_kernels(x, [&]<class T>(const Kernels<T>& kernels) {
    kernels.tanh_affine(kThreads, shape_of(x), data<T>(x), out<T>(y), data(weight), data(bias), static_cast<int>(outputs));
  });
  return y;
}

Tensor layer_norm2d(Tensor x, Tensor weight, Tensor bias, double eps) {
  widen(weight, bias);
  Tensor y = new_like(x);
  with_kernels(x, [&]<class T>(const Kernels<T>& kernels) {
    kernels.layer_norm2d(kThreads, shape_of(x), data<T>(x), out<T>(y), data(weight), data(bias), static_cast<float>(eps));
  });
  return y;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> inner_patch_attention_backward(
    Tensor grad, Tensor x, Tensor qkv_weight, Tensor qkv_bias, Tensor temperature, Tensor out_weight, Tensor out_bias,
    int64_t norm, int64_t patch_size) {
  Tensor dx = new_like(x), dqkv_weight = new_like(qkv_weight), dqkv_bias = new_like(qkv_bias),
         dtemperature = new_like(temperature), dout_weight = new_like(out_weight), dout_bias = new_like(out_bias);
  level().backward->inner_patch_attention(
      kThreads, shape_of(x), data(grad), data(x),
      {data(qkv_weight), data(qkv_bias), data(temperature), data(out_weight), data(out_bias)}, static_cast<Norm>(norm),
      static_cast<int>(patch_size), out(dx),
      {out(dqkv_weight), out(dqkv_bias), out(dtemperature), out(dout_weight), out(dout_bias)});
  return {dx, dqkv_weight, dqkv_bias, dtemperature, dout_weight, dout_bias};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> gated_ffn_backward(
    Tensor grad, Tensor x, Tensor in_weight, Tensor in_bias, Tensor dw_weight, Tensor dw_bias, Tensor out_weight,
    Tensor out_bias, int64_t norm, int64_t patch_size) {
  Tensor dx = new_like(x), din_weight = new_like(in_weight), din_bias = new_like(in_bias),
         ddw_weight = new_like(dw_weight), ddw_bias = new_like(dw_bias), dout_weight = new_like(out_weight),
         dout_bias = new_like(out_bias);
  const int expanded = static_cast<int>(out_weight.size(0));
  level().backward->gated_ffn(
      kThreads, shape_of(x), data(grad), data(x),
      {data(in_weight), data(in_bias), data(dw_weight), data(dw_bias), data(out_weight), data(out_bias), expanded},
      static_cast<Norm>(norm), static_cast<int>(patch_size), out(dx),
      {out(din_weight), out(din_bias), out(ddw_weight), out(ddw_bias), out(dout_weight), out(dout_bias), expanded});
  return {dx, din_weight, din_bias, ddw_weight, ddw_bias, dout_weight, dout_bias};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> dilated_gate_backward(
    Tensor grad, Tensor x, Tensor in_weight, Tensor in_bias, Tensor dw5_weight, Tensor dw5_bias, Tensor dw7_weight,
    Tensor dw7_bias, Tensor mix_weight, Tensor mix_bias, Tensor out_weight, Tensor out_bias, int64_t norm) {
  Tensor dx = new_like(x), din_weight = new_like(in_weight), din_bias = new_like(in_bias),
         ddw5_weight = new_like(dw5_weight), ddw5_bias = new_like(dw5_bias), ddw7_weight = new_like(dw7_weight),
         ddw7_bias = new_like(dw7_bias), dmix_weight = new_like(mix_weight), dmix_bias = new_like(mix_bias),
         dout_weight = new_like(out_weight), dout_bias = new_like(out_bias);
  level().backward->dilated_gate(
      kThreads, shape_of(x), data(grad), data(x),
      {data(in_weight), data(in_bias), data(dw5_weight), data(dw5_bias), data(dw7_weight), data(dw7_bias), data(mix_weight),
       data(mix_bias), data(out_weight), data(out_bias)},
      static_cast<Norm>(norm), out(dx),
      {out(din_weight), out(din_bias), out(ddw5_weight), out(ddw5_bias), out(ddw7_weight), out(ddw7_bias), out(dmix_weight),
       out(dmix_bias), out(dout_weight), out(dout_bias)});
  return {dx,        din_weight,  din_bias,  ddw5_weight, ddw5_bias, ddw7_weight,
          ddw7_bias, dmix_weight, dmix_bias, dout_weight, dout_bias};
}

std::tuple<Tensor, Tensor, Tensor> tanh_affine_backward(Tensor grad, Tensor x, Tensor weight, Tensor bias) {
  Tensor dx = new_like(x), dweight = new_like(weight), dbias = new_like(bias);
  level().backward->tanh_affine(kThreads, shape_of(x), data(grad), data(x), data(weight), static_cast<int>(weight.size(1)),
                                out(dx), out(dweight), out(dbias));
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
  level().backward->image_head(kThreads, shape_of(image), data(grad), data(image), data(weight),
                               static_cast<int>(weight.size(3)), out(dimage), out(dweight), out(dbias));
  return {dimage, dweight, dbias};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> image_tail_backward(Tensor grad, Tensor x, Tensor skip,
                                                                               Tensor body_weight, Tensor body_bias,
                                                                               Tensor up_weight, Tensor up_bias,
                                                                               int64_t upscale) {
  Tensor dx = new_like(x), dskip = new_like(skip), dbody_weight = new_like(body_weight),
         dbody_bias = new_like(body_bias), dup_weight = new_like(up_weight), dup_bias = new_like(up_bias);
  const int outputs = static_cast<int>(up_weight.size(3)), scale = static_cast<int>(upscale);
  level().backward->image_tail(kThreads, shape_of(x), data(grad), data(x), data(skip),
                               {data(body_weight), data(body_bias), data(up_weight), data(up_bias), outputs, scale}, out(dx),
                               out(dskip), {out(dbody_weight), out(dbody_bias), out(dup_weight), out(dup_bias), outputs, scale});
  return {dx, dskip, dbody_weight, dbody_bias, dup_weight, dup_bias};
}

Tensor function(std::string name, Tensor x) {
  Tensor y = new_like(x);
  level().function(name.c_str(), data(x), out<float>(y), x.numel());
  return y;
}

int64_t fma_loop(int64_t units) { return level().fma_loop(kThreads, units); }

}  // namespace

STABLE_TORCH_LIBRARY(ditn_native, m) {
  m.def(
      "inner_patch_attention(Tensor x, Tensor qkv_weight, Tensor qkv_bias, Tensor temperature, Tensor out_weight, "
      "Tensor out_bias, int norm, int patch_size) -> Tensor");
  m.def(
      "gated_ffn(Tensor x, Tensor in_weight, Tensor in_bias, Tensor dw_weight, Tensor dw_bias, Tensor out_weight, "
      "Tensor out_bias, int norm, int patch_size) -> Tensor");
  m.def(
      "dilated_gate(Tensor x, Tensor in_weight, Tensor in_bias, Tensor dw5_weight, Tensor dw5_bias, Tensor dw7_weight, "
      "Tensor dw7_bias, Tensor mix_weight, Tensor mix_bias, Tensor out_weight, Tensor out_bias, int norm) -> Tensor");
  m.def(
      "inner_patch_stage(Tensor x, Tensor qkv_weight, Tensor qkv_bias, Tensor temperature, Tensor attn_out_weight, "
      "Tensor attn_out_bias, Tensor in_weight, Tensor in_bias, Tensor dw_weight, Tensor dw_bias, Tensor ffn_out_weight, "
      "Tensor ffn_out_bias, int norm, int patch_size) -> Tensor");
  m.def(
      "spatial_stage(Tensor x, Tensor gate_in_weight, Tensor gate_in_bias, Tensor dw5_weight, Tensor dw5_bias, "
      "Tensor dw7_weight, Tensor dw7_bias, Tensor mix_weight, Tensor mix_bias, Tensor gate_out_weight, "
      "Tensor gate_out_bias, Tensor in_weight, Tensor in_bias, Tensor dw_weight, Tensor dw_bias, Tensor ffn_out_weight, "
      "Tensor ffn_out_bias, int norm) -> Tensor");
  m.def("image_head(Tensor image, Tensor weight, Tensor bias) -> Tensor");
  m.def(
      "image_tail(Tensor x, Tensor skip, Tensor body_weight, Tensor body_bias, Tensor up_weight, Tensor up_bias, int upscale) "
      "-> Tensor");
  m.def("tanh_affine(Tensor x, Tensor weight, Tensor bias) -> Tensor");
  m.def("layer_norm2d(Tensor x, Tensor weight, Tensor bias, float eps) -> Tensor");
  m.def(
      "inner_patch_attention_backward(Tensor grad, Tensor x, Tensor qkv_weight, Tensor qkv_bias, Tensor temperature, "
      "Tensor out_weight, Tensor out_bias, int norm, int patch_size) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "gated_ffn_backward(Tensor grad, Tensor x, Tensor in_weight, Tensor in_bias, Tensor dw_weight, Tensor dw_bias, "
      "Tensor out_weight, Tensor out_bias, int norm, int patch_size) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "dilated_gate_backward(Tensor grad, Tensor x, Tensor in_weight, Tensor in_bias, Tensor dw5_weight, Tensor dw5_bias, "
      "Tensor dw7_weight, Tensor dw7_bias, Tensor mix_weight, Tensor mix_bias, Tensor out_weight, Tensor out_bias, int norm) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("tanh_affine_backward(Tensor grad, Tensor x, Tensor weight, Tensor bias) -> (Tensor, Tensor, Tensor)");
  m.def("layer_norm2d_backward(Tensor grad, Tensor x, Tensor weight, Tensor bias, float eps) -> (Tensor, Tensor, Tensor)");
  m.def("image_head_backward(Tensor grad, Tensor image, Tensor weight, Tensor bias) -> (Tensor, Tensor, Tensor)");
  m.def(
      "image_tail_backward(Tensor grad, Tensor x, Tensor skip, Tensor body_weight, Tensor body_bias, Tensor up_weight, "
      "Tensor up_bias, int upscale) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("function(str name, Tensor x) -> Tensor");
  m.def("fma_loop(int units) -> int");
}

STABLE_TORCH_LIBRARY_IMPL(ditn_native, CompositeExplicitAutograd, m) { m.impl("fma_loop", TORCH_BOX(&fma_loop)); }

STABLE_TORCH_LIBRARY_IMPL(ditn_native, CPU, m) {
  m.impl("inner_patch_attention", TORCH_BOX(&inner_patch_attention));
  m.impl("gated_ffn", TORCH_BOX(&gated_ffn));
  m.impl("dilated_gate", TORCH_BOX(&dilated_gate));
  m.impl("inner_patch_stage", TORCH_BOX(&inner_patch_stage));
  m.impl("spatial_stage", TORCH_BOX(&spatial_stage));
  m.impl("image_head", TORCH_BOX(&image_head));
  m.impl("image_tail", TORCH_BOX(&image_tail));
  m.impl("tanh_affine", TORCH_BOX(&tanh_affine));
  m.impl("layer_norm2d", TORCH_BOX(&layer_norm2d));
  m.impl("inner_patch_attention_backward", TORCH_BOX(&inner_patch_attention_backward));
  m.impl("gated_ffn_backward", TORCH_BOX(&gated_ffn_backward));
  m.impl("dilated_gate_backward", TORCH_BOX(&dilated_gate_backward));
  m.impl("tanh_affine_backward", TORCH_BOX(&tanh_affine_backward));
  m.impl("layer_norm2d_backward", TORCH_BOX(&layer_norm2d_backward));
  m.impl("image_head_backward", TORCH_BOX(&image_head_backward));
  m.impl("image_tail_backward", TORCH_BOX(&image_tail_backward));
  m.impl("function", TORCH_BOX(&function));
}
