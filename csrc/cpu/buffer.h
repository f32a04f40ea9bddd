// SPDX-License-Identifier: Apache-2.0
// Scratch memory and the sharing out of work: all that a kernel needs besides arithmetic.
#pragma once

#include <cstdlib>
#include <cstring>
#include <new>

#include "../pages.h"
#include "amx.h"
#include "kernels.h"
#include "vec.h"

namespace ditn::DITN_LEVEL {

DITN_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// 64-byte aligned, and zeroed unless whoever asks for it writes first. One allocation per purpose, so that
// AddressSanitizer guards each.
template <class T>
class Array {
 public:
  explicit Array(int64_t count, bool zeroed = true) {
    const int64_t bytes = (count * static_cast<int64_t>(sizeof(T)) + 127) / 64 * 64;
    data_ = static_cast<T*>(std::aligned_alloc(64, bytes));
    if (data_ == nullptr) throw std::bad_alloc();
    prefer_huge_pages(data_, static_cast<size_t>(bytes));
    if (zeroed) std::memset(data_, 0, bytes);
  }
  ~Array() { std::free(data_); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  Array(Array&& other) noexcept : data_(other.data_) { other.data_ = nullptr; }

  operator T*() { return data_; }
  operator const T*() const { return data_; }

 private:
  T* data_;
};

using Buffer = Array<float>;

// `count` objects that need not be movable, each from make(i).
template <class T>
class Several {
 public:
  template <class Make>
  Several(int count, const Make& make) : count_(count), all_(static_cast<T**>(std::calloc(count + 1, sizeof(T*)))) {
    if (all_ == nullptr) throw std::bad_alloc();
    for (int i = 0; i < count; ++i) all_[i] = make(i);
  }
  ~Several() {
    for (int i = 0; i < count_; ++i) delete all_[i];
    std::free(all_);
  }
  Several(const Several&) = delete;
  Several& operator=(const Several&) = delete;
  int count() const { return count_; }
  const T& operator[](int i) const { return *all_[i]; }

 private:
  int count_;
  T** all_;
};

// Hands out unit numbers to whichever worker asks next. A unit's result depends on its number alone, so the
// number of workers and the order of their asking change nothing.
class Units {
 public:
  explicit Units(int64_t count) : count_(count) {}
  bool next(int64_t& unit) { return (unit = __atomic_fetch_add(&taken_, 1, __ATOMIC_RELAXED)) < count_; }

 private:
  int64_t taken_ = 0;
  int64_t count_;
};

// Runs worker(units) on up to `count` threads at once; the worker allocates its scratch, then takes units.
template <class Worker>
static void share(const Threads& threads, int64_t count, const Worker& worker) {
  if (count <= 0) return;
  struct Job {
    const Worker& worker;
    Units units;
  } job{worker, Units(count)};
  threads.run(count, [](void* p) {
    Job& mine = *static_cast<Job*>(p);
#if defined(__AMX_BF16__)
    const TileUnit unit;
#endif
    mine.worker(mine.units);
  }, &job);
}

}  // namespace ditn::DITN_LEVEL
