// SPDX-License-Identifier: Apache-2.0
// Gradients of x + W_o (softmax(t qn kn^T) v) + b_o for one patch, from its x and the gradient g of its result.
//
// [C, C] products come first where there is a choice: with A the softmax, dv = g (W_o^T A), dA = W_o (g^T v) and
// dW_o = A (v^T g). The softmax is kept transposed, [channel of k, channel of q], so that its sums run down the
// columns. The part of dq along q needs no pixels either: q_i dq_i is row i of dcosines times row i of the cosines.
#pragma once

#include "gemm.h"
#include "norm_backward.h"
#include "sums.h"

namespace ditn::DITN_LEVEL {

template <class P>
class PatchAttentionBackward {
 public:
  PatchAttentionBackward(const Attention& w, int channels, int pixels)
      : rows_(channels), padded_(round_up(channels, 4)), pixels_(pixels), temperature_(*w.temperature),
        qkv_(channels, 3 * rows_.vecs, [&](int k, int n) { return third(w.qkv_weight + k * 3 * channels, n); }),
        qkv_transposed_(3 * rows_.stride, rows_.vecs,
                        [&](int k, int n) { return n < channels ? third(w.qkv_weight + n * 3 * channels, k) : 0.0f; }),
        out_transposed_(channels, rows_.vecs,
                        [&](int k, int n) { return n < channels ? w.out_weight[n * channels + k] : 0.0f; }),
        out_(static_cast<int64_t>(channels) * rows_.stride), qkv_bias_(3 * rows_.stride) {
    for (int k = 0; k < channels; ++k) copy_in(w.out_weight + k * channels, rows_, out_ + k * rows_.stride);
    P::across(out_, channels, rows_.stride, rows_.stride, out_);
    for (int n = 0; n < 3 * rows_.stride; ++n) qkv_bias_[n] = third(w.qkv_bias, n);
  }

  struct Scratch {
    Scratch(const Rows& rows, int pixels)
        : g(static_cast<int64_t>(pixels) * rows.stride),
          u(static_cast<int64_t>(pixels) * rows.stride), qkv(static_cast<int64_t>(pixels) * 3 * rows.stride),
          dqkv(static_cast<int64_t>(pixels) * 3 * rows.stride),
          cosines(static_cast<int64_t>(rows.stride) * rows.stride),
          softmax(static_cast<int64_t>(rows.stride) * rows.stride),
          values(static_cast<int64_t>(rows.stride) * rows.stride),
          dscores(static_cast<int64_t>(rows.stride) * rows.stride),
          turned(static_cast<int64_t>(rows.stride) * rows.stride), inverse_lengths(2 * rows.stride),
          along(2 * rows.stride), scales(pixels), zeros(3 * rows.stride),
          left(words<P>(most(rows, pixels) * 3 * rows.stride)), right(words<P>(most(rows, pixels) * 3 * rows.stride)) {}
    static int64_t most(const Rows& rows, int pixels) { return pixels > rows.stride ? pixels : rows.stride; }
    Buffer g, u, qkv, dqkv;                            // [pixels, ..]
    Buffer cosines, softmax, values, dscores, turned;  // [channels, stride]
    Buffer inverse_lengths, along;                     // of q and k
    Buffer scales;                                     // of u, as normalize() returned them
    Buffer zeros;
    Buffer left, right;  // the operands of one product
  };

  int64_t sums() const { return parts_.end; }

  // s.u is x and s.g the gradient, [pixels, stride]. Afterwards s.g is the gradient of x less that through the identity.
  void run(Norm norm, Scratch& s, float* sums) const {
    const int stride = rows_.stride, channels = rows_.channels, row = 3 * stride;
    const float *q = s.qkv, *k = s.qkv + stride, *v = s.qkv + 2 * stride;
    for (int t = 0; t < pixels_; ++t) s.scales[t] = normalize(s.u + t * stride, rows_, norm, s.u + t * stride);
    product<P>(along<P>(s.u, pixels_, stride, stride, s.left), pixels_, qkv_.right(), 3 * rows_.vecs, qkv_bias_, false,
               {s.qkv, row});
    measure(q, s.inverse_lengths);
    measure(k, s.inverse_lengths + stride);
    over_pixels(k, q, row, s, s.cosines);
    over_pixels(v, s.g, stride, s, s.values);
    softmax(s);
    add_rows(s.g, pixels_, stride, rows_.vecs, sums + parts_.out_bias);
    // Of [C, C]: rows, columns, and a right side.
    const auto along_channels = [&](const float* t) { return along<P>(t, channels, stride, stride, s.left); };
    const auto across_channels = [&](const float* t) { return across<P>(t, channels, stride, stride, s.left); };
    const auto down_channels = [&](const float* t) { return down<P>(t, channels, stride, stride, s.right); };
    // Of [pixels, C] in rows of q, k and v.
    const auto along_pixels = [&](const float* t, int pitch) { return along<P>(t, pixels_, pitch, stride, s.left); };
    product<P>(across_channels(s.softmax), padded_, down_channels(s.values), rows_.vecs, s.zeros, true,
               {sums + parts_.out, stride});
    product<P>(along_channels(s.values), padded_, out_transposed_.right(), rows_.vecs, s.zeros, false,
               {s.dscores, stride});
    softmax_backward(s, sums + parts_.temperature);

    product<P>(along_pixels(k, row), pixels_, down_channels(s.dscores), rows_.vecs, s.zeros, false, {s.dqkv, row});
    turn(s.dscores, s.turned);
    product<P>(along_pixels(q, row), pixels_, down_channels(s.turned), rows_.vecs, s.zeros, false,
               {s.dqkv + stride, row});
    turn(s.softmax, s.turned);
    product<P>(columns_of(out_, stride), padded_, down_channels(s.turned), rows_.vecs, s.zeros, false,
               {s.values, stride});
    product<P>(along_pixels(s.g, stride), pixels_, down_channels(s.values), rows_.vecs, s.zeros, false,
               {s.dqkv + 2 * stride, row});
    for (int j = 0; j < 2 * stride; j += kLanes) {
      const Vec along = load(s.along + j);
      for (int t = 0; t < pixels_; ++t) {
        float* at = s.dqkv + t * row + j;
        store(at, load(at) - load(s.qkv + t * row + j) * along);
      }
    }

    add_rows(s.dqkv, pixels_, row, 3 * rows_.vecs, sums + parts_.qkv_bias);
    product<P>(across<P>(s.u, pixels_, stride, stride, s.left), padded_, down<P>(s.dqkv, pixels_, row, row, s.right),
               3 * rows_.vecs, s.zeros, true, {sums + parts_.qkv, row});
    product<P>(along<P>(s.dqkv, pixels_, row, row, s.left), pixels_, qkv_transposed_.right(), rows_.vecs, s.zeros, false,
               {s.g, stride});
    for (int t = 0; t < pixels_; ++t) {
      normalize_backward(s.u + t * stride, rows_, norm, s.scales[t], s.g + t * stride);
    }
  }

  void write(const float* sums, const AttentionOf<float>& gradient) const {
    const int channels = rows_.channels, stride = rows_.stride;
    for (int i = 0; i < 3; ++i) {
      write_rows(sums + parts_.qkv + i * stride, channels, 3 * stride, channels, gradient.qkv_weight + i * channels,
                 3 * channels);
      write_rows(sums + parts_.qkv_bias + i * stride, 1, 0, channels, gradient.qkv_bias + i * channels, 0);
    }
    *gradient.temperature = sum(load(sums + parts_.temperature));
    write_rows(sums + parts_.out, channels, stride, channels, gradient.out_weight, channels);
    write_rows(sums + parts_.out_bias, 1, 0, channels, gradient.out_bias, 0);
  }

 private:
  // Where each gradient lies in the sums.
  struct Parts {
    explicit Parts(const Rows& rows)
        : qkv_bias(static_cast<int64_t>(round_up(rows.channels, 4)) * 3 * rows.stride), out(qkv_bias + 3 * rows.stride),
          out_bias(out + static_cast<int64_t>(round_up(rows.channels, 4)) * rows.stride),
          temperature(out_bias + rows.stride), end(temperature + kLanes) {}
    int64_t qkv = 0, qkv_bias, out, out_bias, temperature, end;
  };

  // Element n of [q | k | v], each in whole vectors, of one row [3C].
  float third(const float* row, int n) const {
    const int channel = n % rows_.stride;
    return channel < rows_.channels ? row[n / rows_.stride * rows_.channels + channel] : 0.0f;
  }

  // 1 / max(|t|, 1e-12) of each channel over the pixels.
  void measure(const float* t, float* inverse_lengths) const {
    for (int j = 0; j < rows_.stride; j += kLanes) {
      const Vec squares = summed(pixels_, [&](int64_t p) {
        const Vec v = load(t + p * 3 * rows_.stride + j);
        return v * v;
      });
      store(inverse_lengths + j, splat(1.0f) / max(splat(kShortest), sqrt(squares)));
    }
  }

  // to = a^T b, 64 pixels at a time: a patch of 16 x 16 in one chain of roundings would lose a digit.
  void over_pixels(const float* a, const float* b, int b_row, Scratch& s, float* to) const {
    const int row = 3 * rows_.stride;
    for (int p = 0; p < pixels_; p += 64) {
      const int count = pixels_ < 64 ? pixels_ : 64;
      product<P>(across<P>(a + p * row, count, row, rows_.stride, s.left), padded_,
                 down<P>(b + p * b_row, count, b_row, rows_.stride, s.right), rows_.vecs, s.zeros, false,
                 {p ? static_cast<float*>(s.turned) : to, rows_.stride});
      for (int i = 0; p && i < padded_ * rows_.stride; i += kLanes) store(to + i, load(to + i) + load(s.turned + i));
    }
  }

  // s.cosines: k^T q becomes the cosines; s.softmax from them.
  void softmax(Scratch& s) const {
    const float* of_k = s.inverse_lengths + rows_.stride;
    for (int i = 0; i < rows_.stride; i += kLanes) {
      const Vec of_q = load(s.inverse_lengths + i), temperature = splat(temperature_);
      Vec largest = splat(-__builtin_inff());
      for (int j = 0; j < rows_.channels; ++j) {
        const Vec cosine = load(s.cosines + j * rows_.stride + i) * of_q * splat(of_k[j]);
        store(s.cosines + j * rows_.stride + i, cosine);
        largest = max(temperature * cosine, largest);
      }
      Vec total = splat(0.0f);
      for (int j = 0; j < rows_.channels; ++j) {
        const Vec e = exp(temperature * load(s.cosines + j * rows_.stride + i) - largest);
        store(s.softmax + j * rows_.stride + i, e);
        total = total + e;
      }
      const Vec share = splat(1.0f) / total;
      for (int j = 0; j < rows_.channels; ++j) {
        store(s.softmax + j * rows_.stride + i, load(s.softmax + j * rows_.stride + i) * share);
      }
    }
  }

  // s.dscores: the gradient of the softmax becomes that of k^T q with the lengths held; s.along: what q and k lose of
  // it along themselves, per unit of q and k, because their lengths are divided out.
  void softmax_backward(Scratch& s, float* dtemperature) const {
    const int stride = rows_.stride, channels = rows_.channels;
    const float* of_k = s.inverse_lengths + stride;
    for (int i = 0; i < stride; i += kLanes) {
      Vec mean = splat(0.0f);
      for (int j = 0; j < channels; ++j) {
        mean = fma(load(s.softmax + j * stride + i), load(s.dscores + j * stride + i), mean);
      }
      const Vec of_q = load(s.inverse_lengths + i);
      Vec along = splat(0.0f), total = along;
      for (int j = 0; j < channels; ++j) {
        float *cosine = s.cosines + j * stride + i, *dscore = s.dscores + j * stride + i;
        const Vec d = load(s.softmax + j * stride + i) * (load(dscore) - mean);
        const Vec product = splat(temperature_) * d * load(cosine);
        total = fma(d, load(cosine), total);
        along = along + product;
        store(cosine, product);
        store(dscore, splat(temperature_) * d * of_q * splat(of_k[j]));
      }
      store(s.along + i, along);
      store(dtemperature, load(dtemperature) + total);
    }
    for (int j = 0; j < channels; ++j) {
      Vec along = splat(0.0f);
      for (int i = 0; i < stride; i += kLanes) along = along + load(s.cosines + j * stride + i);
      s.along[stride + j] = sum(along);
    }
    // Where 1e-12 took the place of a length, there is none to divide out.
    for (int n = 0; n < 2 * stride; ++n) {
      const float inverse = s.inverse_lengths[n];
      s.along[n] = inverse < 1.0f / kShortest ? s.along[n] * inverse * inverse : 0.0f;
    }
  }

  void turn(const float* from, float* to) const {
    for (int i = 0; i < rows_.channels; ++i) {
      for (int j = 0; j < rows_.channels; ++j) to[i * rows_.stride + j] = from[j * rows_.stride + i];
    }
  }

  static constexpr float kShortest = 1e-12f;
  Rows rows_;
  int padded_, pixels_;
  float temperature_;
  PackedAs<P> qkv_, qkv_transposed_, out_transposed_;
  Buffer out_;  // words down the channels
  Buffer qkv_bias_;
  Parts parts_{rows_};
};

template <class T>
static void inner_patch_attention_backward(Threads threads, Shape shape, const T* grad, const T* x, const Attention& w,
                                           Norm norm, int patch, T* dx, const AttentionOf<float>& gradient) {
  using Gradients = PatchAttentionBackward<typename Multiplied<T>::As>;
  const Rows rows(shape.channels);
  const int pixels = patch * patch;
  const Gradients attention(w, shape.channels, pixels);
  const int64_t across = shape.width / patch, down = shape.height / patch;
  const int64_t patches = shape.batch * down * across;
  Sums sums(patches, attention.sums());
  sums.add(threads, patches, [&](SharedUnits& units) {
    typename Gradients::Scratch s(rows, pixels);
    const int64_t row = shape.width * shape.channels, width = static_cast<int64_t>(patch) * shape.channels;
    for (int64_t unit; units.next(unit);) {
      const auto corner = [&](int64_t u) { return u / across * patch * row + u % across * width; };
      const auto pixel = [&](int i) {
        return corner(unit) + i / patch * row + i % patch * static_cast<int64_t>(shape.channels);
      };
      for (int i = 0; i < pixels; ++i) {
        copy_in(x + pixel(i), rows, s.u + i * rows.stride);
        copy_in(grad + pixel(i), rows, s.g + i * rows.stride);
      }
      if (unit + 1 < patches) {
        prefetch(x + corner(unit + 1), row, patch, width);
        prefetch(grad + corner(unit + 1), row, patch, width);
      }
      attention.run(norm, s, units.sums());
      for (int i = 0; i < pixels; ++i) add_out(s.g + i * rows.stride, grad + pixel(i), rows, dx + pixel(i));
    }
  });
  attention.write(sums.total(threads), gradient);
}

}  // namespace ditn::DITN_LEVEL
