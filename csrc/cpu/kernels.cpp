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

namespace ditn::DITN_LEVEL {

// A patch is read once, goes through all layers in L1 and L2, and is written once.
template <class T>
static void inner_patch(Threads threads, Shape shape, const T* x, T* y, const Attention* attentions, const Ffn* ffns,
                        int layers, Norm norm, int patch) {
  const Rows rows(shape.channels);
  const int pixels = patch * patch;
  using P = typename Multiplied<T>::As;
  const Several<PatchAttention<P>> attention(attentions ? layers : 0, [&](int i) {
    return new PatchAttention<P>(attentions[i], shape.channels, pixels);
  });
  const Several<GatedFfn<P>> ffn(ffns ? layers : 0, [&](int i) { return new GatedFfn<P>(ffns[i], shape.channels); });
  const int64_t across = shape.width / patch, down = shape.height / patch;
  share(threads, shape.batch * down * across, [&](Units& units) {
    Buffer stream(static_cast<int64_t>(pixels) * rows.stride);
    typename PatchAttention<P>::Scratch attention_scratch(rows, pixels);
    typename GatedFfn<P>::Patch ffn_scratch(rows, ffns ? ffns[0].expanded : 0, patch);
    // A patch asks for the next one's pixels before it is computed.
    int64_t unit, following;
    for (bool more = units.next(unit); more; unit = following) {
      const auto pixel = [&](int64_t number, int i) {  // number / across counts patches through the batch
        const int64_t row = number / across * patch + i / patch, column = number % across * patch + i % patch;
        return (row * shape.width + column) * static_cast<int64_t>(shape.channels);
      };
      more = units.next(following);
      for (int i = 0; i < pixels; ++i) {
        if (more) prefetch(x + pixel(following, i), rows);
        copy_in(x + pixel(unit, i), rows, stream + i * rows.stride);
      }
      for (int layer = 0; layer < layers; ++layer) {
        if (attentions) attention[layer].run(stream, norm, attention_scratch);
        if (ffns) ffn[layer].run_patch(stream, norm, ffn_scratch);
      }
      for (int i = 0; i < pixels; ++i) copy_out(stream + i * rows.stride, rows, y + pixel(unit, i));
    }
  });
}

template <class T>
static void spatial(Threads threads, Shape shape, const T* x, T* y, const Gate* gates, const Ffn* ffns, int layers,
                    Norm norm) {
  using P = typename Multiplied<T>::As;
  if (layers == 0) {
    std::memcpy(y, x, sizeof(T) * static_cast<size_t>(shape.batch * shape.height * shape.width * shape.channels));
    return;
  }
  // Gate and FFN cannot work in place: each pixel needs its neighbours as they were.
  Array<T> between(gates && ffns ? shape.batch * shape.height * shape.width * shape.channels : 0, false);
  for (int i = 0; i < layers; ++i) {
    const T* in = i ? y : x;
    T* gated = ffns ? static_cast<T*>(between) : y;
    if (gates) MapGate<P>(gates[i], shape.channels).run(threads, shape, in, gated, norm);
    if (ffns) GatedFfn<P>(ffns[i], shape.channels).run_map(threads, shape, gates ? gated : in, y, norm);
  }
}

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

template <class T>
constexpr Kernels<T> kKernels = {inner_patch<T>, spatial<T>, image_head<T>, image_tail<T>, tanh_affine<T>, layer_norm2d<T>};

#define DITN_TEXT(name) #name
#define DITN_NAME(name) DITN_TEXT(name)

extern const Backward backward;
extern const Level level;
const Level level = {DITN_NAME(DITN_LEVEL), kKernels<float>, kKernels<bfloat16>, kKernels<float16>, &backward, function,
                     fma_loop};

}  // namespace ditn::DITN_LEVEL
