// SPDX-License-Identifier: Apache-2.0
// Gradients of x + W_out (g * (W_mix far + b_mix)) + b_out with a, g = W_in norm(x) + b_in, far = dw7x7(dw5x5(a)).
//
// As in the forward pass, what convolutions reach across goes through memory once, in maps with a border of zeros: a,
// its 5x5, and the gradients of both results on the way back, which meet the same taps turned around. A few images at a
// time, so that the four maps stay in L3; everything else is done for 64 pixels at a time.
#pragma once

#include "bordered_map.h"
#include "depthwise.h"
#include "depthwise_backward.h"
#include "gemm.h"
#include "norm_backward.h"
#include "sums.h"

namespace ditn::DITN_LEVEL {

template <class P>
class MapGateBackward {
 public:
  MapGateBackward(const Gate& w, int channels)
      : rows_(channels), a_(forth(w.in_weight, 2 * channels)), g_(forth(w.in_weight + channels, 2 * channels)),
        mix_(forth(w.mix_weight, channels)), a_back_(back(w.in_weight, 2 * channels)),
        g_back_(back(w.in_weight + channels, 2 * channels)), mix_back_(back(w.mix_weight, channels)),
        out_back_(back(w.out_weight, channels)), a_bias_(padded(w.in_bias, channels)),
        g_bias_(padded(w.in_bias + channels, channels)), mix_bias_(padded(w.mix_bias, channels)),
        dw5_bias_(padded(w.dw5_bias, channels)), dw7_bias_(padded(w.dw7_bias, channels)), zeros_(rows_.stride),
        dw5_(taps(w.dw5_weight, 25, false)), dw7_(taps(w.dw7_weight, 49, false)),
        dw5_turned_(taps(w.dw5_weight, 25, true)), dw7_turned_(taps(w.dw7_weight, 49, true)) {}

  struct Maps {
    Maps(const Shape& shape, const Rows& rows)
        : a(shape, rows, 2), near(shape, rows, 9), dfar(shape, rows, 9), dnear(shape, rows, 2) {}
    BorderedMap a, near, dfar, dnear;
  };

  int64_t sums() const { return where_.end; }

  // The maps' borders are zero and stay so.
  template <class T>
  void run(const Threads& threads, const Shape& shape, const T* grad, const T* x, Norm norm, Maps& maps, Sums& sums,
           T* dx) const {
    const int64_t count = Runs(shape).count();
    each_run(threads, shape, [&](Units& units, const Runs& runs) {
      Scratch s(rows_);
      for (Run run; runs.next(units, run);) {
        normalized(x, run, norm, s);
        multiply(s.u, run, a_, a_bias_, s, s.v);
        put(s.v, run, maps.a);
      }
    });
    each_run(threads, shape, [&](Units& units, const Runs& runs) {
      Scratch s(rows_);
      for (Run run; runs.next(units, run);) {
        depthwise<5, 1>(maps.a, run, dw5_, dw5_bias_, s.v);
        put(s.v, run, maps.near);
      }
    });
    sums.add(threads, count, [&](SharedUnits& units) {
      const Runs runs(shape);
      Scratch s(rows_);
      for (Run run; runs.next(units, run);) {
        gate_backward(grad, x, run, norm, maps.near, s, units.sums(), dx);
        put(s.v, run, maps.dfar);
      }
    });
    sums.add(threads, count, [&](SharedUnits& units) {
      const Runs runs(shape);
      Scratch s(rows_);
      for (Run run; runs.next(units, run);) {
        const float* d = maps.dfar.at(run.b, run.row, run.left);
        depthwise_taps<7, 3>(maps.near.at(run.b, run.row - 9, run.left - 9), maps.near.row(), rows_, d, run.count,
                             units.sums() + where_.dw7);
        add_rows(d, run.count, rows_.stride, rows_.vecs, units.sums() + where_.dw7_bias);
        depthwise<7, 3>(maps.dfar, run, dw7_turned_, zeros_, s.v);
        put(s.v, run, maps.dnear);
      }
    });
    sums.add(threads, count, [&](SharedUnits& units) {
      const Runs runs(shape);
      Scratch s(rows_);
      for (Run run; runs.next(units, run);) {
        const float* d = maps.dnear.at(run.b, run.row, run.left);
        depthwise_taps<5, 1>(maps.a.at(run.b, run.row - 2, run.left - 2), maps.a.row(), rows_, d, run.count,
                             units.sums() + where_.dw5);
        add_rows(d, run.count, rows_.stride, rows_.vecs, units.sums() + where_.dw5_bias);
        depthwise<5, 1>(maps.dnear, run, dw5_turned_, zeros_, s.v);
        input_backward(grad, x, run, norm, s, units.sums(), dx);
      }
    });
  }

  void write(const float* sums, const GateOf<float>& gradient) const {
    const int channels = rows_.channels, stride = rows_.stride;
    const auto matrix = [&](const Affine& from, float* weight, float* bias, int pitch) {
      write_rows(sums + from.weight, channels, stride, channels, weight, pitch);
      write_rows(sums + from.bias, 1, 0, channels, bias, 0);
    };
    matrix(where_.a, gradient.in_weight, gradient.in_bias, 2 * channels);
    matrix(where_.g, gradient.in_weight + channels, gradient.in_bias + channels, 2 * channels);
    matrix(where_.mix, gradient.mix_weight, gradient.mix_bias, channels);
    matrix(where_.out, gradient.out_weight, gradient.out_bias, channels);
    write_rows(sums + where_.dw5, 25, stride, channels, gradient.dw5_weight, channels);
    write_rows(sums + where_.dw5_bias, 1, 0, channels, gradient.dw5_bias, 0);
    write_rows(sums + where_.dw7, 49, stride, channels, gradient.dw7_weight, channels);
    write_rows(sums + where_.dw7_bias, 1, 0, channels, gradient.dw7_bias, 0);
  }

 private:
  // Rows of one run.
  struct Scratch {
    explicit Scratch(const Rows& rows)
        : u(kRun * rows.stride), g(kRun * rows.stride), grad(kRun * rows.stride), far(kRun * rows.stride),
          mixed(kRun * rows.stride), v(kRun * rows.stride), w(kRun * rows.stride), scales(kRun), left(words<P>(kRun * rows.stride)),
          right(words<P>(kRun * rows.stride)) {}
    Buffer u, g, grad, far, mixed, v, w;
    Buffer scales;       // of u, as normalize() returned them
    Buffer left, right;  // the operands of one product
  };

  // Where each gradient lies in the sums.
  struct Affine {
    Affine(const Rows& rows, int64_t start)
        : weight(start), bias(start + static_cast<int64_t>(round_up(rows.channels, 4)) * rows.stride),
          end(bias + rows.stride) {}
    int64_t weight, bias, end;
  };
  struct Where {
    explicit Where(const Rows& rows)
        : a(rows, 0), g(rows, a.end), mix(rows, g.end), out(rows, mix.end), dw5(out.end),
          dw5_bias(dw5 + 25 * rows.stride), dw7(dw5_bias + rows.stride), dw7_bias(dw7 + 49 * rows.stride),
          end(dw7_bias + rows.stride) {}
    Affine a, g, mix, out;
    int64_t dw5, dw5_bias, dw7, dw7_bias, end;
  };

  // From the gradient of the result to that of far, in s.v; dx takes what reaches u through g.
  template <class T>
  void gate_backward(const T* grad, const T* x, const Run& run, Norm norm, BorderedMap& near, Scratch& s, float* sums,
                     T* dx) const {
    const int64_t floats = static_cast<int64_t>(round_up(run.count, 4)) * rows_.stride;
    normalized(x, run, norm, s);
    multiply(s.u, run, g_, g_bias_, s, s.g);
    depthwise<7, 3>(near, run, dw7_, dw7_bias_, s.far);
    multiply(s.far, run, mix_, mix_bias_, s, s.mixed);
    read(grad, run, s.grad);
    multiply(s.grad, run, out_back_, zeros_, s, s.v);
    for (int64_t i = 0; i < floats; i += kLanes) {
      const Vec g = load(s.g + i), mixed = load(s.mixed + i), d = load(s.v + i);
      store(s.v + i, g * mixed);
      store(s.g + i, d * mixed);
      store(s.mixed + i, d * g);
    }
    add_up(s.v, s.grad, run, where_.out, s, sums);
    add_up(s.far, s.mixed, run, where_.mix, s, sums);
    add_up(s.u, s.g, run, where_.g, s, sums);
    multiply(s.g, run, g_back_, zeros_, s, s.w);
    for (int i = 0; i < run.count; ++i) copy_out(s.w + i * rows_.stride, rows_, dx + (run.pixel + i) * rows_.channels);
    multiply(s.mixed, run, mix_back_, zeros_, s, s.v);
  }

  // From the gradient of a, in s.v, and what dx has already.
  template <class T>
  void input_backward(const T* grad, const T* x, const Run& run, Norm norm, Scratch& s, float* sums, T* dx) const {
    normalized(x, run, norm, s);
    add_up(s.u, s.v, run, where_.a, s, sums);
    multiply(s.v, run, a_back_, zeros_, s, s.w);
    for (int i = 0; i < run.count; ++i) {
      const int64_t at = (run.pixel + i) * rows_.channels;
      float* du = s.w + i * rows_.stride;
      copy_in(dx + at, rows_, s.v);
      for (int j = 0; j < rows_.stride; j += kLanes) store(du + j, load(du + j) + load(s.v + j));
      normalize_backward(s.u + i * rows_.stride, rows_, norm, s.scales[i], du);
      add_out(du, grad + at, rows_, dx + at);
    }
  }

  template <class T>
  void read(const T* map, const Run& run, float* rows) const {
    for (int i = 0; i < run.count; ++i) copy_in(map + (run.pixel + i) * rows_.channels, rows_, rows + i * rows_.stride);
  }

  template <class T>
  void normalized(const T* x, const Run& run, Norm norm, Scratch& s) const {
    read(x, run, s.u);
    for (int i = 0; i < run.count; ++i) {
      s.scales[i] = normalize(s.u + i * rows_.stride, rows_, norm, s.u + i * rows_.stride);
    }
  }

  void multiply(const float* from, const Run& run, const PackedAs<P>& weight, const float* bias, Scratch& s,
                float* to) const {
    product<P>(along<P>(from, run.count, rows_.stride, rows_.stride, s.left), round_up(run.count, 4), weight.right(),
               rows_.vecs, bias, false, {to, rows_.stride});
  }

  // The gradients of an affine map's weight and bias, from its input u and the gradient d of its result.
  void add_up(const float* u, const float* d, const Run& run, const Affine& to, Scratch& s, float* sums) const {
    const int stride = rows_.stride;
    product<P>(across<P>(u, run.count, stride, stride, s.left), round_up(rows_.channels, 4),
               down<P>(d, run.count, stride, stride, s.right), rows_.vecs, zeros_, true, {sums + to.weight, stride});
    add_rows(d, run.count, rows_.stride, rows_.vecs, sums + to.bias);
  }

  template <int kSize, int kDilation>
  void depthwise(BorderedMap& map, const Run& run, const float* weights, const float* bias, float* to) const {
    constexpr int kReach = kSize / 2 * kDilation;
    depthwise_row<kSize, kDilation>(map.at(run.b, run.row - kReach, run.left - kReach), map.row(), rows_, weights, bias,
                                    run.count, to);
  }

  void put(const float* rows, const Run& run, BorderedMap& map) const {
    std::memcpy(map.at(run.b, run.row, run.left), rows, sizeof(float) * static_cast<size_t>(run.count * rows_.stride));
  }

  PackedAs<P> forth(const float* weight, int pitch) const {
    return PackedAs<P>(rows_.channels, rows_.vecs,
                  [&](int k, int n) { return n < rows_.channels ? weight[k * pitch + n] : 0.0f; });
  }

  PackedAs<P> back(const float* weight, int pitch) const {
    return PackedAs<P>(rows_.channels, rows_.vecs,
                  [&](int k, int n) { return n < rows_.channels ? weight[n * pitch + k] : 0.0f; });
  }

  Buffer taps(const float* weight, int count, bool turned) const {
    Buffer whole(static_cast<int64_t>(count) * rows_.stride);
    for (int i = 0; i < count; ++i) {
      copy_in(weight + (turned ? count - 1 - i : i) * rows_.channels, rows_, whole + i * rows_.stride);
    }
    return whole;
  }

  Rows rows_;
  PackedAs<P> a_, g_, mix_, a_back_, g_back_, mix_back_, out_back_;
  Buffer a_bias_, g_bias_, mix_bias_, dw5_bias_, dw7_bias_, zeros_;
  Buffer dw5_, dw7_, dw5_turned_, dw7_turned_;
  Where where_{rows_};
};

template <class T>
static void dilated_gate_backward(Threads threads, Shape shape, const T* grad, const T* x, const Gate& w, Norm norm, T* dx,
                                  const GateOf<float>& gradient) {
  using Gradients = MapGateBackward<typename Multiplied<T>::As>;
  const Gradients gate(w, shape.channels);
  const Shape most = group_of_images(shape);
  Sums sums(Runs(most).count(), gate.sums());
  typename Gradients::Maps maps(most, Rows(shape.channels));
  each_group(shape, [&](const Shape& group, int64_t first) {
    const int64_t at = first * shape.height * shape.width * shape.channels;
    gate.run(threads, group, grad + at, x + at, norm, maps, sums, dx + at);
  });
  gate.write(sums.total(threads), gradient);
}

}  // namespace ditn::DITN_LEVEL
