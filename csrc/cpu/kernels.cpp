// SPDX-License-Identifier: Apache-2.0
// The kernels of one instruction-set level. Compiled once per level, with its flags and DITN_LEVEL as its name.
#include <cstring>

#include "dilated_gate.h"
#include "gated_ffn.h"
#include "image_head.h"
#include "image_tail.h"
#include "inner_patch_attention.h"
#include "layer_norm2d.h"
#include "tanh_affine.h"

// The level whose gradients this one has. None are written for AMX's tiles, and on its chips the vector instruction for pairs
// of bfloat16 takes longer than that for floats.
#if defined(__AMX_BF16__)
#define DITN_BACKWARD ditn::avx512
#else
#define DITN_BACKWARD ditn::DITN_LEVEL
#endif

namespace DITN_BACKWARD {
extern const ditn::Backward<float> backward_of_float;
extern const ditn::Backward<ditn::bfloat16> backward_of_bfloat16;
}  // namespace DITN_BACKWARD

namespace ditn::DITN_LEVEL {

// A patch is read once, goes through all layers in L1 and L2, and is written once.
template <class T>
class InnerPatch {
 public:
  InnerPatch(int channels, const Attention* attentions, const Ffn* ffns, int layers, Norm norm, int patch)
      : rows_(channels),
        layers_(layers),
        patch_(patch),
        expanded_(ffns && layers ? ffns[0].expanded : 0),
        norm_(norm),
        attentions_(attentions ? layers : 0, [&](int i) { return new PatchAttention<P>(attentions[i], channels, patch * patch); }),
        ffns_(ffns ? layers : 0, [&](int i) { return new GatedFfn<P>(ffns[i], channels); }) {}

  void run(Threads threads, Shape shape, const T* x, const T*, T* y) const {
    const int64_t across = shape.width / patch_, down = shape.height / patch_;
    const int pixels = patch_ * patch_;
    share(threads, shape.batch * down * across, [&](Units& units) {
      Buffer stream(static_cast<int64_t>(pixels) * rows_.stride);
      typename PatchAttention<P>::Scratch attention_scratch(rows_, pixels);
      typename GatedFfn<P>::Patch ffn_scratch(rows_, expanded_, patch_);
      // A patch asks for the next one's pixels before it is computed.
      int64_t unit, following;
      for (bool more = units.next(unit); more; unit = following) {
        const auto pixel = [&](int64_t number, int i) {  // number / across counts patches through the batch
          const int64_t row = number / across * patch_ + i / patch_, column = number % across * patch_ + i % patch_;
          return (row * shape.width + column) * static_cast<int64_t>(shape.channels);
        };
        more = units.next(following);
        for (int i = 0; i < pixels; ++i) {
          if (more) prefetch(x + pixel(following, i), rows_);
          copy_in(x + pixel(unit, i), rows_, stream + i * rows_.stride);
        }
        for (int layer = 0; layer < layers_; ++layer) {
          if (attentions_.count()) attentions_[layer].run(stream, norm_, attention_scratch);
          if (ffns_.count()) ffns_[layer].run_patch(stream, norm_, ffn_scratch);
        }
        for (int i = 0; i < pixels; ++i) copy_out(stream + i * rows_.stride, rows_, y + pixel(unit, i));
      }
    });
  }

 private:
  using P = typename Multiplied<T>::As;

  Rows rows_;
  int layers_, patch_, expanded_;
  Norm norm_;
  Several<PatchAttention<P>> attentions_;
  Several<GatedFfn<P>> ffns_;
};

template <class T>
class Spatial {
 public:
  Spatial(int channels, const Gate* gates, const Ffn* ffns, int layers, Norm norm)
      : layers_(layers),
        norm_(norm),
        gates_(gates ? layers : 0, [&](int i) { return new MapGate<P>(gates[i], channels); }),
        ffns_(ffns ? layers : 0, [&](int i) { return new GatedFfn<P>(ffns[i], channels); }) {}

  void run(Threads threads, Shape shape, const T* x, const T*, T* y) const {
    const bool gated = gates_.count(), fed = ffns_.count();
    const int64_t elements = shape.batch * shape.height * shape.width * shape.channels;
    if (!gated && !fed) std::memcpy(y, x, sizeof(T) * static_cast<size_t>(elements));
    // Gate and FFN cannot work in place: each pixel needs its neighbours as they were.
    Array<T> between(gated && fed ? elements : 0, false);
    for (int i = 0; i < layers_; ++i) {
      const T* in = i ? y : x;
      T* result = fed ? static_cast<T*>(between) : y;
      if (gated) gates_[i].run(threads, shape, in, result, norm_);
      if (fed) ffns_[i].run_map(threads, shape, gated ? result : in, y, norm_);
    }
  }

 private:
  using P = typename Multiplied<T>::As;

  int layers_;
  Norm norm_;
  Several<MapGate<P>> gates_;
  Several<GatedFfn<P>> ffns_;
};

static void function(const char* name, const float* x, float* y, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const int n = count - i < kLanes ? static_cast<int>(count - i) : kLanes;
    const Vec v = load_first(x + i, n);
    store_first(y + i, *name == 't' ? tanh(v) : name[1] == 'x' ? exp(v) : erf(v), n);
  }
}

// As many independent sums as hide the latency of two FMA units in the registers of any level.
static int64_t fma_loop(Threads threads, int64_t units) {
  constexpr int kSums = 12, kSteps = 1 << 17;
  Buffer sink(units * kLanes);
  share(threads, units, [&](Units& mine) {
    for (int64_t unit; mine.next(unit);) {
      const Vec factor = load(sink + unit * kLanes);
      Vec sums[kSums];
#pragma GCC unroll 12
      for (int i = 0; i < kSums; ++i) sums[i] = splat(static_cast<float>(i));  // all different, else one is computed for all
      for (int step = 0; step < kSteps; ++step) {
#pragma GCC unroll 12
        for (int i = 0; i < kSums; ++i) sums[i] = fma(sums[i], factor, factor);
      }
#pragma GCC unroll 12
      for (int i = 0; i < kSums; ++i) store(sink + unit * kLanes, load(sink + unit * kLanes) + sums[i]);
    }
  });
  return units * kSteps * kSums * kLanes * 2;
}

// An Operator for activations of type T, which is made of these arguments.
template <class T, class Operator, class... Arguments>
static Prepared prepared(Arguments... arguments) {
  return {new Operator(arguments...),
          [](const void* weights, Threads threads, Shape shape, const void* x, const void* skip, void* y) {
            static_cast<const Operator*>(weights)->run(threads, shape, static_cast<const T*>(x), static_cast<const T*>(skip),
                                                       static_cast<T*>(y));
          },
          [](const void* weights) { delete static_cast<const Operator*>(weights); }};
}

template <class T>
constexpr Kernels kKernels = {prepared<T, InnerPatch<T>>, prepared<T, Spatial<T>>,    prepared<T, ImageHead<T>>,
                              prepared<T, ImageTail<T>>,  prepared<T, TanhAffine<T>>, prepared<T, LayerNorm2d<T>>};

#define DITN_TEXT(name) #name
#define DITN_NAME(name) DITN_TEXT(name)

extern const Level level;
const Level level = {DITN_NAME(DITN_LEVEL),
                     kKernels<float>,
                     kKernels<bfloat16>,
                     kKernels<float16>,
                     &DITN_BACKWARD::backward_of_float,
                     &DITN_BACKWARD::backward_of_bfloat16,
                     function,
                     fma_loop};

}  // namespace ditn::DITN_LEVEL
