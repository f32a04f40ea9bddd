// SPDX-License-Identifier: Apache-2.0
// The operators' launch functions for the tests, which call them with ctypes: tensors are the operator's in the order of
// its arguments, then the result; null or what went wrong is returned.
#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "../../csrc/cuda/kernels.h"

namespace {

using namespace ditn;

using Memory = std::vector<std::unique_ptr<void, decltype(&std::free)>>;

void* allocate_in(Memory& memory, size_t bytes) {
  memory.emplace_back(std::aligned_alloc(256, (bytes + 255) / 256 * 256), &std::free);
  return std::memset(memory.back().get(), 0xff, bytes);
}

// Weights that stay packed from one call to the next, of the same operator with the same weights; by kernels_in_use().
struct Packed {
  Memory memory;
  bool there = false;
};
std::map<unsigned, Packed> all_packed;
bool kept = false;
int64_t scratch = 0;  // bytes that the last operator asked for, besides weights

class Host : public cuda::Device {
 public:
  Host() : Device(nullptr) {}
  void* allocate(size_t bytes) override {
    scratch += bytes;
    return allocate_in(memory_, bytes);
  }
  void* allocate_weights(size_t bytes) override {
    if (!kept) return allocate_in(memory_, bytes);
    return packed.there ? packed.memory.at(next_++).get() : allocate_in(packed.memory, bytes);
  }
  bool has_weights() const override { return packed.there; }

  Packed& packed = all_packed[cuda::kernels_in_use()];

 private:
  Memory memory_;
  size_t next_ = 0;
};

// work(device, tensors) with those of the type: 0 is float, 1 __half, 2 __nv_bfloat16. The kernels for sm_90a know the last one.
template <class... Types, class Work>
const char* attempt(int64_t type, void** tensors, const Work& work) {
  static std::string message;
  shim::launches.clear();
  scratch = 0;
  try {
    Host device;
    if (type == 0) {
      work(device, reinterpret_cast<float**>(tensors));
    } else if (type == 1) {
      work(device, reinterpret_cast<__half**>(tensors));
    } else {
      (work(device, reinterpret_cast<Types**>(tensors)), ...);
    }
    device.packed.there = kept;
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}

}  // namespace

extern "C" {

// From here on, weights that were packed once serve all calls; or each call packs its own again.
void keep_packed_weights(bool kept) {
  all_packed.clear();
  ::kept = kept;
}

// What follows runs warps and lanes from the last to the first, or from the first to the last again.
void reverse(bool reversed) { shim::reversed = reversed; }

// The compute capability of the device that what follows finds: 90 for 9.0.
void capability(int number) { shim::capability = number; }

// Bytes that the last operator that ran asked for, besides its result and packed weights.
int64_t scratch_bytes() { return scratch; }

// The launches of the last operator that ran: their number, and each one's threads, bytes of shared memory and blocks.
int64_t launches(const shim::Launch** found) {
  *found = shim::launches.data();
  return static_cast<int64_t>(shim::launches.size());
}

const char* inner_patch_attention(int64_t type, const Shape* shape, void** tensors, int64_t norm, int64_t patch) {
  return attempt(type, tensors, [&](cuda::Device& device, auto** t) {
    cuda::inner_patch_attention(device, *shape, t[0], t[6], {t[1], t[2], t[3], t[4], t[5]}, static_cast<Norm>(norm),
                                static_cast<int>(patch));
  });
}

const char* inner_patch_stage(int64_t type, const Shape* shape, void** tensors, int64_t layers, int64_t expanded, int64_t norm,
                              int64_t patch) {
  return attempt<__nv_bfloat16>(type, tensors, [&]<class T>(cuda::Device& device, T** t) {
    const FfnOf<const T> ffn{t[6], t[7], t[8], t[9], t[10], t[11], static_cast<int>(expanded)};
    cuda::inner_patch_stage<T>(device, *shape, t[0], t[12], {t[1], t[2], t[3], t[4], t[5]}, ffn, static_cast<int>(layers),
                               static_cast<Norm>(norm), static_cast<int>(patch));
  });
}

const char* spatial_stage(int64_t type, const Shape* shape, void** tensors, int64_t layers, int64_t expanded, int64_t norm) {
  return attempt<__nv_bfloat16>(type, tensors, [&]<class T>(cuda::Device& device, T** t) {
    const GateOf<const T> gate{t[1], t[2], t[3], t[4], t[5], t[6], t[7], t[8], t[9], t[10]};
    const FfnOf<const T> ffn{t[11], t[12], t[13], t[14], t[15], t[16], static_cast<int>(expanded)};
    cuda::spatial_stage<T>(device, *shape, t[0], t[17], gate, ffn, static_cast<int>(layers), static_cast<Norm>(norm));
  });
}

const char* tanh_affine(int64_t type, const Shape* shape, void** tensors, int64_t outputs) {
  return attempt(type, tensors, [&](cuda::Device& device, auto** t) {
    cuda::tanh_affine(device, *shape, t[0], t[3], t[1], t[2], static_cast<int>(outputs));
  });
}

const char* layer_norm2d(int64_t type, const Shape* shape, void** tensors, double eps) {
  return attempt(type, tensors, [&](cuda::Device& device, auto** t) {
    cuda::layer_norm2d(device, *shape, t[0], t[3], t[1], t[2], static_cast<float>(eps));
  });
}

const char* gated_ffn(int64_t type, const Shape* shape, void** tensors, int64_t expanded, int64_t norm, int64_t patch) {
  return attempt<__nv_bfloat16>(type, tensors, [&]<class T>(cuda::Device& device, T** t) {
    const FfnOf<const T> weights{t[1], t[2], t[3], t[4], t[5], t[6], static_cast<int>(expanded)};
    cuda::gated_ffn<T>(device, *shape, t[0], t[7], weights, static_cast<Norm>(norm), static_cast<int>(patch));
  });
}

const char* image_head(int64_t type, const Shape* shape, void** tensors, int64_t outputs) {
  return attempt<__nv_bfloat16>(type, tensors, [&](cuda::Device& device, auto** t) {
    cuda::image_head(device, *shape, t[0], t[3], t[1], t[2], static_cast<int>(outputs));
  });
}

const char* image_tail(int64_t type, const Shape* shape, void** tensors, int64_t outputs, int64_t upscale) {
  return attempt<__nv_bfloat16>(type, tensors, [&]<class T>(cuda::Device& device, T** t) {
    const TailOf<const T> weights{t[2], t[3], t[4], t[5], static_cast<int>(outputs), static_cast<int>(upscale)};
    cuda::image_tail<T>(device, *shape, t[0], t[1], t[6], weights);
  });
}

const char* dilated_gate(int64_t type, const Shape* shape, void** tensors, int64_t norm) {
  return attempt<__nv_bfloat16>(type, tensors, [&]<class T>(cuda::Device& device, T** t) {
    const GateOf<const T> weights{t[1], t[2], t[3], t[4], t[5], t[6], t[7], t[8], t[9], t[10]};
    cuda::dilated_gate<T>(device, *shape, t[0], t[11], weights, static_cast<Norm>(norm));
  });
}

}  // extern "C"
