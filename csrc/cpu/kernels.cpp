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
  const Window window{patch, patch, patch + 2};
  const int pixels = window.pixels();
  using P = typename Multiplied<T>::As;
  const Several<PatchAttention<P>> attention(attentions ? layers : 0, [&](int i) {
    return new PatchAttention<P>(attentions[i], shape.channels, pixels);
  });
  const Several<WindowFfn<P>> ffn(ffns ? layers : 0, [&](int i) { return new WindowFfn<P>(ffns[i], shape.channels); });
  const int64_t across = shape.width / patch, down = shape.height / patch;
  share(threads, shape.batch * down * across, [&](Units& units) {
    Buffer stream(static_cast<int64_t>(pixels) * rows.stride);
    typename PatchAttention<P>::Scratch attention_scratch(rows, pixels);
    typename WindowFfn<P>::Scratch ffn_scratch(rows, window);
    for (int64_t unit; units.next(unit);) {
      const int64_t top = unit / across * patch, left = unit % across * patch;  // top counts through the batch
      const auto pixel = [&](int i) {
        return ((top + i / patch) * shape.width + left + i % patch) * static_cast<int64_t>(shape.channels);
      };
      for (int i = 0; i < pixels; ++i) copy_in(x + pixel(i), rows, stream + i * rows.stride);
      for (int layer = 0; layer < layers; ++layer) {
        if (attentions) attention[layer].run(stream, norm, attention_scratch);
        if (!ffns) continue;
        for (int i = 0; i < pixels; ++i) normalize(stream + i * rows.stride, rows, norm, ffn_scratch.u + i * rows.stride);
        P::pack_along(ffn_scratch.u, pixels, rows.stride, rows.stride);
        ffn[layer].run_patch(window, ffn_scratch);
        for (int i = 0; i < pixels * rows.stride; i += kLanes) store(stream + i, load(stream + i) + load(ffn_scratch.y + i));
      }
      for (int i = 0; i < pixels; ++i) copy_out(stream + i * rows.stride, rows, y + pixel(i));
    }
  });
}

// Tiles of 16 x 30 pixels: with their border 18 x 32, a multiple of four in every row.
template <class P, class T>
static void map_ffn(const Threads& threads, const Shape& shape, const T* x, T* y, const WindowFfn<P>& ffn, Norm norm) {
  constexpr int kHeight = 16, kWidth = 30, kPitch = 32;
  const Rows rows(shape.channels);
  const int64_t across = (shape.width + kWidth - 1) / kWidth, down = (shape.height + kHeight - 1) / kHeight;
  share(threads, shape.batch * down * across, [&](Units& units) {
    typename WindowFfn<P>::Scratch s(rows, {kHeight, kWidth, kPitch});
    for (int64_t unit; units.next(unit);) {
      const int64_t b = unit / (down * across), top = unit / across % down * kHeight, left = unit % across * kWidth;
      const int64_t below = shape.height - top, right = shape.width - left;
      const Window window{static_cast<int>(below < kHeight ? below : kHeight), static_cast<int>(right < kWidth ? right : kWidth),
                          kPitch};
      const auto pixel = [&](int64_t r, int64_t c) {
        return ((b * shape.height + top + r) * shape.width + left + c) * shape.channels;
      };
      const auto outside = [&](int r, int c) {
        return top + r - 1 < 0 || top + r - 1 >= shape.height || left + c - 1 < 0 || left + c - 1 >= shape.width;
      };
      for (int r = 0; r < window.height + 2; ++r) {
        for (int c = 0; c < window.width + 2; ++c) {
          if (outside(r, c)) continue;
          float* u = s.u + (r * kPitch + c) * rows.stride;
          copy_in(x + pixel(r - 1, c - 1), rows, u);
          normalize(u, rows, norm, u);
        }
        P::pack_along(s.u + r * kPitch * rows.stride, kPitch, rows.stride, rows.stride);
      }
      ffn.run_tile(window, outside, s);
      for (int i = 0; i < window.pixels(); ++i) {
        const int64_t at = pixel(i / window.width, i % window.width);
        add_out(s.y + i * rows.stride, x + at, rows, y + at);
      }
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
  Array<T> between(gates && ffns ? shape.batch * shape.height * shape.width * shape.channels : 0);
  const Shape nothing{0, 0, 0, shape.channels};
  typename MapGate<P>::Maps maps(gates ? shape : nothing, Rows(shape.channels));
  for (int i = 0; i < layers; ++i) {
    const T* in = i ? y : x;
    T* gated = ffns ? static_cast<T*>(between) : y;
    if (gates) MapGate<P>(gates[i], shape.channels).run(threads, shape, in, gated, norm, maps);
    if (ffns) map_ffn(threads, shape, gates ? gated : in, y, WindowFfn<P>(ffns[i], shape.channels), norm);
  }
}

static void function(const char* name, const float* x, float* y, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const int n = count - i < kLanes ? static_cast<int>(count - i) : kLanes;
    const Vec v = load_first(x + i, n);
    store_first(y + i, *name == 't' ? tanh(v) : name[1] == 'x' ? exp(v) : erf(v), n);
  }
}

template <class T>
constexpr Kernels<T> kKernels = {inner_patch<T>, spatial<T>, image_head<T>, image_tail<T>, tanh_affine<T>, layer_norm2d<T>};

#define DITN_TEXT(name) #name
#define DITN_NAME(name) DITN_TEXT(name)

extern const Backward backward;
extern const Level level;
const Level level = {DITN_NAME(DITN_LEVEL), kKernels<float>, kKernels<bfloat16>, kKernels<float16>, &backward, function};

}  // namespace ditn::DITN_LEVEL
