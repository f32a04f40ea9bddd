// SPDX-License-Identifier: Apache-2.0
// Small kernels with a fault each, which the shim has to find, and the same without it.
#include <hopper/instructions.cuh>

#include <stdexcept>
#include <string>

namespace {

using namespace ditn::cuda;

alignas(16) const unsigned char kSource[1024] = {};

// Two warps exchange a word.
void exchange_words(bool barrier) {
  const unsigned mine = threadIdx.x * 4, other = (threadIdx.x ^ 32) * 4;
  store_word(mine, threadIdx.x);
  if (barrier) meet(1, 64);
  store_word(256 + mine, hopper_shim::load<unsigned>(other));
}

// A tile of ones, multiplied by itself.
void multiply(bool fence) {
  for (unsigned i = threadIdx.x; i < 2048; i += 128) store_word(4 * i, 0x3c003c00);
  if (fence) publish();
  meet(1, 128);
  float sums[32];
  begin_products();
  for (int k = 0; k < 4; ++k) multiply_tile<__half, false>(sums, tile_descriptor(0) + 2 * k, tile_descriptor(0) + 2 * k, k);
  if (sums[0] == sums[0]) shim::fail("a sum is there before it was waited for");
  finish_products();
  if (sums[0] != 64 || sums[31] != 64) shim::fail("a sum is wrong");
}

// Planes [2][72 rows] of 16 bytes, where row r is r in the first plane and r / 128 in the second; the products of 64 rows, of
// which eight are 9 * 16 bytes behind the eight before, from the second row on, with 16 ones.
void multiply_planes(bool wait) {
  constexpr unsigned kPlane = 73 * 16, kOnes = 4096;
  static _Float16 rows[2][72][8];
  for (unsigned i = threadIdx.x; i < 144; i += 128) {
    for (auto& element : rows[i / 72][i % 72]) element = static_cast<_Float16>(i % 72 / (i < 72 ? 1.0f : 128.0f));
    start_async_copy<16>(i / 72 * kPlane + i % 72 * 16, rows[i / 72][i % 72], true);
  }
  for (unsigned i = threadIdx.x; i < 1024; i += 128) store_word(kOnes + 4 * i, 0x3c003c00);
  if (wait) wait_for_async_copies();
  publish();
  meet(1, 128);
  float sums[8];
  begin_products();
  multiply_tile<__half, false>(sums, planes_descriptor(16, kPlane, 9 * 16), tile_descriptor(kOnes), false);
  finish_products();
  for (int i = 0; i < 8; ++i) {
    const unsigned outer = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4 + i / 2 % 2 * 8, row = 1 + outer / 8 * 9 + outer % 8;
    if (sums[i] != row * 8.0625f) shim::fail("a sum is wrong");
  }
}

// The first warp replaces what the second has read.
void copy(bool barrier, bool wait) {
  if (threadIdx.x == 0) prepare_arrival(1024);
  __syncthreads();
  if (threadIdx.x == 32) hopper_shim::load<unsigned>(0);
  if (barrier) meet(1, 64);
  if (threadIdx.x == 0) start_bulk_copy(0, kSource, sizeof kSource, 1024);
  meet(2, 64);
  if (wait) wait_for_arrival(1024, 0);
  if (hopper_shim::load<unsigned>(4 * threadIdx.x)) shim::fail("what was copied is not there");
}

}  // namespace

extern "C" const char* fault(const char* name) {
  static std::string message;
  const std::string which = name;
  try {
    shim::run(1, which.starts_with("wgmma") ? 128 : 64, 8192, [&] {
      if (which == "words") exchange_words(true);
      if (which == "words without a barrier") exchange_words(false);
      if (which == "wgmma") multiply(true);
      if (which == "wgmma without a fence") multiply(false);
      if (which == "wgmma of planes") multiply_planes(true);
      if (which == "wgmma of planes without a wait") multiply_planes(false);
      if (which == "copy") copy(true, true);
      if (which == "copy without a barrier") copy(false, true);
      if (which == "copy without a wait") copy(true, false);
    });
    return "";
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}
