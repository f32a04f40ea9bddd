// SPDX-License-Identifier: Apache-2.0
// The instructions of csrc/cuda/hopper/instructions.cuh on the host, from the PTX ISA: which lane holds what, how descriptors
// and swizzles give places, and that wgmma and bulk copies happen later than they are started. What they write is NaN until
// it is waited for; accesses to shared memory are checked for races.
#pragma once

#include <instructions.cuh>

#include <map>

#include "../races.h"

namespace ditn::cuda {

namespace hopper_shim {

namespace races = shim::races;

inline unsigned this_warp() { return threadIdx.x / shim::kWarp; }

inline void must(const char* wrong) {
  if (wrong) shim::fail(wrong);
}

inline void must_be_aligned(unsigned address, unsigned bytes) {
  if (address % bytes) shim::fail("a place in shared memory is not aligned to what lies there");
}

template <class T>
T load(unsigned address) {
  must_be_aligned(address, sizeof(T));
  must(races::read(this_warp(), address, sizeof(T)));
  T value;
  std::memcpy(&value, memory + address, sizeof value);
  return value;
}

template <class T>
void store(unsigned address, const T& value) {
  must_be_aligned(address, sizeof(T));
  must(races::write(this_warp(), threadIdx.x, address, sizeof(T)));
  std::memcpy(memory + address, &value, sizeof value);
}

// A row of eight halves.
struct Row {
  uint16_t elements[8];
};

// "stmatrix": the rows of matrix i are given by lanes 8 i to 8 i + 7. Without .trans lane l has, of matrix i, row l / 4, columns
// 2 (l % 4) and the next; with it, those are of the transposed matrix.
inline void store_rows(unsigned address, const unsigned (&words)[4], bool transposed) {
  struct Words {
    unsigned words[4];
  } mine;
  std::memcpy(&mine, words, sizeof mine);
  const shim::Operands& all = shim::exchange(transposed ? "stmatrix.trans" : "stmatrix", mine);
  const int matrix = shim::lane() / 8, r = shim::lane() % 8;
  Row row;
  for (int c = 0; c < 8; ++c) {
    const int major = transposed ? c : r, minor = transposed ? r : c;
    row.elements[c] = static_cast<uint16_t>(shim::of_lane<Words>(all, major * 4 + minor / 2).words[matrix] >> minor % 2 * 16);
  }
  must_be_aligned(address, 16);
  store(address, row);
}

// "Matrix descriptor": bits 0-13 the address, 16-29 the leading dimension's byte offset, 32-45 the stride dimension's, all
// without their last four bits; bits 62-63 the swizzle, of which 1 is 128 bytes: bits 4-6 of a place are changed by bits 7-9;
// and 0 none.
struct Matrix {
  unsigned address, leading, stride;
  bool swizzled;
  explicit Matrix(uint64_t descriptor)
      : address(descriptor << 4 & 0x3fff0),
        leading(descriptor >> 12 & 0x3fff0),
        stride(descriptor >> 28 & 0x3fff0),
        swizzled(descriptor >> 62) {
    if (descriptor >> 62 > 1) shim::fail("wgmma: a descriptor's swizzle is neither that of 128 bytes nor none");
    if (descriptor >> 49 & 7) shim::fail("wgmma: a descriptor has a base offset, which is not emulated");
  }
  // "Canonical layouts": K-major, rows of 64 halves along the depth, eight of them in 1024 bytes, `stride` from eight to eight;
  // MN-major, rows of 64 halves along the outer axis, one for each depth, `stride` from eight depths to eight, `leading` from 64
  // outer to the next. Without a swizzle, K-major: rows of 8 halves, eight of them in 128 bytes, `stride` from eight to eight,
  // `leading` from 8 depths to the next.
  unsigned place(bool outer_major, int outer, int depth) const {
    if (!swizzled) {
      if (outer_major) shim::fail("wgmma: an MN-major matrix without a swizzle is not emulated");
      return address + outer / 8 * stride + outer % 8 * 16 + depth / 8 * leading + depth % 8 * 2;
    }
    const unsigned linear = outer_major ? address + outer / 64 * leading + depth / 8 * stride + depth % 8 * 128 + outer % 64 * 2
                                        : address + outer / 8 * stride + outer % 8 * 128 + depth * 2;
    return linear ^ (linear >> 7 & 7) << 4;
  }
  template <class T>
  float at(bool outer_major, int outer, int depth) const {
    uint16_t bits;
    std::memcpy(&bits, memory + place(outer_major, outer, depth), sizeof bits);
    return fragments::value_of<T>(bits);
  }
  // Rows of the outer axis and 16 of the depth are read by a warp.
  void read(bool outer_major, int first, int count) const {
    for (int outer = first; outer < first + count; outer += outer_major ? 8 : 1) {
      for (int depth = 0; depth < 16; depth += outer_major ? 1 : 8) {
        must(races::read_by_tensor_cores(this_warp(), place(outer_major, outer, depth), 16));
      }
    }
  }
};

// A product that a thread has started: its rows of a, and the descriptor of b, whose values are halves or bfloat16.
struct Product {
  float a[2][16];
  uint64_t b;
  bool halves;
  bool columns, kept;  // b is the transpose of a tile's rows; the sums are added to
};

// Those with the same sums, as many as `count`, which were `before` the first of them.
struct Products {
  float* sums;
  int count;
  std::vector<float> before;
  std::vector<Product> list;
};

struct Started {
  bool begun = false;
  std::vector<Products> all;
};
inline Started started_products[1024];

template <int COUNT>
void start(float (&sums)[COUNT], const Product& product) {
  Started& mine = started_products[threadIdx.x];
  if (!mine.begun) shim::fail("wgmma: no wgmma.fence before the first product");
  auto found = std::find_if(mine.all.begin(), mine.all.end(), [&](const Products& one) { return one.sums == sums; });
  if (found == mine.all.end()) {
    found = mine.all.insert(found, {sums, COUNT, {std::begin(sums), std::end(sums)}, {}});
    std::fill(std::begin(sums), std::end(sums), NAN);
  }
  found->list.push_back(product);
}

// "Register fragments for wgmma.mma_async.m64nNk16": warp w has rows 16 w on, as mma.m16n8k16 has them.
template <class T>
Product product_of(const unsigned (&a)[4], uint64_t b, bool columns, bool kept) {
  struct Words {
    unsigned words[4];
  } mine;
  std::memcpy(&mine, a, sizeof mine);
  const shim::Operands& all = shim::exchange("wgmma", mine);
  Product product{{}, b, std::is_same_v<T, __half>, columns, kept};
  for (int half = 0; half < 2; ++half) {
    for (int k = 0; k < 16; ++k) {
      const fragments::Place place = fragments::of_a(shim::lane() / 4 + 8 * half, k);
      product.a[half][k] = fragments::value_of<T>(shim::of_lane<Words>(all, place.lane).words[place.i / 2], place.i % 2);
    }
  }
  return product;
}

}  // namespace hopper_shim

inline unsigned shared_address(const void* place) {
  return static_cast<unsigned>(static_cast<const unsigned char*>(place) - memory);
}

inline uint64_t tile_descriptor(unsigned address) {
  return static_cast<uint64_t>((address & 0x3ffff) >> 4) | static_cast<uint64_t>(1) << 16 | static_cast<uint64_t>(1024 >> 4) << 32 |
         static_cast<uint64_t>(1) << 62;
}

inline uint64_t planes_descriptor(unsigned address, unsigned next_plane, unsigned next_rows) {
  hopper_shim::must_be_aligned(address | next_plane | next_rows, 16);
  return static_cast<uint64_t>((address & 0x3ffff) >> 4) | static_cast<uint64_t>((next_plane & 0x3ffff) >> 4) << 16 |
         static_cast<uint64_t>((next_rows & 0x3ffff) >> 4) << 32;
}

inline void begin_products() { hopper_shim::started_products[threadIdx.x].begun = true; }

template <class T>
void multiply_tile(float (&sums)[32], const unsigned (&a)[4], uint64_t b, bool kept) {
  hopper_shim::start(sums, hopper_shim::product_of<T>(a, b, false, kept));
}

template <class T, int COUNT>
void multiply_columns(float (&sums)[COUNT], const unsigned (&a)[4], uint64_t b, bool kept) {
  hopper_shim::start(sums, hopper_shim::product_of<T>(a, b, true, kept));
}

template <class T, bool COLUMNS, int COUNT>
void multiply_tile(float (&sums)[COUNT], uint64_t a, uint64_t b, bool kept) {
  shim::exchange("wgmma", 0);
  const hopper_shim::Matrix left(a);
  hopper_shim::Product product{{}, b, std::is_same_v<T, __half>, false, kept};
  const int first = static_cast<int>(threadIdx.x) % 128 / 32 * 16;
  if (shim::lane() == 0) left.read(COLUMNS, first, 16);
  for (int half = 0; half < 2; ++half) {
    for (int k = 0; k < 16; ++k) product.a[half][k] = left.at<T>(COLUMNS, first + shim::lane() / 4 + 8 * half, k);
  }
  hopper_shim::start(sums, product);
}

inline void commit_products() {}

// Groups are not told apart: sums that have not been waited for stay as they are, NaN.
inline void wait_for_earlier_products() { shim::exchange("wgmma.wait_group 1", 0); }

inline void wait_for_products() {
  shim::exchange("wgmma.wait_group", 0);
  hopper_shim::Started& mine = hopper_shim::started_products[threadIdx.x];
  for (hopper_shim::Products& products : mine.all) {
    for (const hopper_shim::Product& product : products.list) {
      const hopper_shim::Matrix right(product.b);
      if (shim::lane() == 0) right.read(product.columns, 0, 2 * products.count);
      for (int n = 0; n < products.count / 4; ++n) {
        for (int j = 0; j < 2; ++j) {
          float b[16];
          for (int k = 0; k < 16; ++k) {
            const int column = 8 * n + shim::lane() % 4 * 2 + j;
            b[k] = product.halves ? right.at<__half>(product.columns, column, k) : right.at<__nv_bfloat16>(product.columns, column, k);
          }
          for (int half = 0; half < 2; ++half) {
            float& sum = products.before[4 * n + 2 * half + j];
            float added = product.kept ? sum : 0;
            for (int k = 0; k < 16; ++k) added += product.a[half][k] * b[k];
            sum = added;
          }
        }
      }
    }
    std::copy(products.before.begin(), products.before.end(), products.sums);
  }
  mine = {};
}

inline void finish_products() {
  commit_products();
  wait_for_products();
}

inline void mma_m16n8k16_of_bfloats(float (&sum)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  fragments::multiply<16, __nv_bfloat16>("mma.m16n8k16.bf16", sum, a, {b0, b1});
}
inline void mma_m16n8k8_of_bfloats(float (&sum)[4], unsigned a0, unsigned a1, unsigned b) {
  fragments::multiply<8, __nv_bfloat16>("mma.m16n8k8.bf16", sum, {a0, a1}, {b});
}

// As wrong as the chip's may be, 2^-8 near 1: half of that one way or the other, and a rounding.
inline __nv_bfloat162 tanh_approx(__nv_bfloat162 x) {
  const auto one = [](__nv_bfloat16 value) {
    return std::tanh(__bfloat162float(value)) * (1.0f + (value.bits % 2 ? 0x1p-9f : -0x1p-9f));
  };
  return __floats2bfloat162_rn(one(x.x), one(x.y));
}

inline void load_matrices(unsigned (&words)[4], unsigned row) {
  hopper_shim::must_be_aligned(row, 16);
  hopper_shim::must(hopper_shim::races::read(hopper_shim::this_warp(), row, 16));
  fragments::load_matrices(words, reinterpret_cast<const __half*>(memory + row), false);
}
inline void store_matrices(unsigned row, const unsigned (&words)[4]) { hopper_shim::store_rows(row, words, false); }
inline void store_matrices_trans(unsigned row, const unsigned (&words)[4]) { hopper_shim::store_rows(row, words, true); }

inline uint4 load_piece(unsigned place) { return hopper_shim::load<uint4>(place); }
inline uint2 load_half_piece(unsigned place) { return hopper_shim::load<uint2>(place); }
inline void clear_piece(unsigned place) { hopper_shim::store(place, uint4{}); }
inline void store_piece(unsigned place, const uint4& piece) { hopper_shim::store(place, piece); }
inline void store_half_piece(unsigned place, const uint2& words) { hopper_shim::store(place, words); }
inline void store_word(unsigned place, unsigned word) { hopper_shim::store(place, word); }

namespace hopper_shim {

// Copies that every thread has started. Until they are waited for NaN is where they write, and they may write at any time.
struct AsyncCopy {
  unsigned target, bytes;
  const void* source;  // null: zeros
};
inline std::vector<AsyncCopy>& async_copies() {
  static struct {
    unsigned block;
    std::vector<AsyncCopy> copies;
  } of_threads[1024];
  auto& mine = of_threads[threadIdx.x];
  if (mine.block != shim::block_number) mine.copies.clear();  // of a block that ended in a failure
  mine.block = shim::block_number;
  return mine.copies;
}

}  // namespace hopper_shim

template <int BYTES>
void start_async_copy(unsigned target, const void* source, bool exists, bool wanted = true) {
  using namespace hopper_shim;
  if (!wanted) return;
  static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16);
  if (target % BYTES || (exists && reinterpret_cast<uintptr_t>(source) % BYTES)) {
    shim::fail("cp.async: a place is not aligned to what is copied");
  }
  must(races::write(this_warp(), threadIdx.x, target, BYTES));
  std::memset(memory + target, 0xff, BYTES);
  async_copies().push_back({target, BYTES, exists ? source : nullptr});
}

inline void wait_for_async_copies() {
  using namespace hopper_shim;
  for (const AsyncCopy& copy : async_copies()) {
    must(races::write(this_warp(), threadIdx.x, copy.target, copy.bytes));
    if (copy.source) {
      std::memcpy(memory + copy.target, copy.source, copy.bytes);
    } else {
      std::memset(memory + copy.target, 0, copy.bytes);
    }
  }
  async_copies().clear();
}

inline uint2 fetch_words(const void* source, bool wanted) { return wanted ? *static_cast<const uint2*>(source) : uint2{}; }
inline void write_words(void* target, const uint2& words, bool wanted) {
  if (wanted) *static_cast<uint2*>(target) = words;
}

inline void publish() { shim::races::fence(threadIdx.x); }

inline void meet(int barrier, int threads) {
  if (barrier < 1 || barrier > 15) shim::fail("there are the barriers 0 to 15, of which __syncthreads has 0");
  shim::barrier(barrier, threads);
}

namespace hopper_shim {

struct BulkCopy {
  unsigned target, bytes;
  const void* source;
};
struct Arrival {
  unsigned phase = 0;
  std::vector<BulkCopy> pending;
  races::Clock done;
};
inline std::map<unsigned, Arrival> arrivals;
inline std::map<unsigned, races::Clock> counters;

}  // namespace hopper_shim

inline bool arrives_last(unsigned counter, unsigned count) {
  using namespace hopper_shim;
  races::Clock& clock = counters[counter];
  races::acquire(this_warp(), clock);
  races::release(this_warp(), clock);
  unsigned before;
  std::memcpy(&before, memory + counter, sizeof before);
  const unsigned after = before >= count - 1 ? 0 : before + 1;
  std::memcpy(memory + counter, &after, sizeof after);
  return before == count - 1;
}

inline void prepare_arrival(unsigned arrival) {
  hopper_shim::must_be_aligned(arrival, 8);
  hopper_shim::arrivals[arrival] = {};
}

namespace hopper_shim {

// All that is waited for on an mbarrier at once.
inline void start_bulk_copies(unsigned arrival, std::initializer_list<BulkCopy> copies) {
  publish();
  Arrival& one = arrivals.at(arrival);
  if (!one.pending.empty()) shim::fail("cp.async.bulk: the copy before has not been waited for");
  one.pending = copies;
  for (const BulkCopy& copy : copies) {
    if (copy.target % 16 || copy.bytes % 16 || reinterpret_cast<uintptr_t>(copy.source) % 16) {
      shim::fail("cp.async.bulk: not a multiple of 16 bytes");
    }
    must(races::copy(this_warp(), copy.target, copy.bytes, one.done));
    std::memset(memory + copy.target, 0xff, copy.bytes);
  }
}

}  // namespace hopper_shim

inline void start_bulk_copy(unsigned target, const void* source, unsigned bytes, unsigned arrival) {
  hopper_shim::start_bulk_copies(arrival, {{target, bytes, source}});
}
inline void start_two_bulk_copies(unsigned target, const void* first, const void* second, unsigned bytes, unsigned arrival) {
  hopper_shim::start_bulk_copies(arrival, {{target, bytes, first}, {target + bytes, bytes, second}});
}

inline void wait_for_arrival(unsigned arrival, unsigned number) {
  using namespace hopper_shim;
  Arrival& one = arrivals.at(arrival);
  // "mbarrier.try_wait.parity": true once the phase of this parity is complete, hence while the current one has the other.
  while (one.phase % 2 == number % 2) {
    shim::poll();
    if (one.pending.empty()) continue;
    for (const BulkCopy& copy : one.pending) std::memcpy(memory + copy.target, copy.source, copy.bytes);
    one.pending.clear();
    ++one.phase;
  }
  races::acquire(this_warp(), one.done);
}

}  // namespace ditn::cuda
