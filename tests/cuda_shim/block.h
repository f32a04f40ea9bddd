// SPDX-License-Identifier: Apache-2.0
// Runs a kernel on the host: every thread of a block is a fiber, and a fiber runs until it has to wait for its warp or its
// block. Shared memory starts as NaN and ends where the launch said. One block after the other, on one thread.
#pragma once

#include <ucontext.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

extern dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace ditn::cuda {
constexpr size_t kMostShared = 232448;
extern unsigned char memory[kMostShared];  // of a block, shared
}  // namespace ditn::cuda

namespace shim {

constexpr int kWarp = 32, kOperands = 64;

// What the lanes of a warp gave to a collective instruction.
using Operands = unsigned char[kWarp][kOperands];  // aligned to a cache line

// Waits until all lanes of the warp are at this instruction. They are those of the previous call until the next but one.
const Operands& exchange(const char* instruction, const void* mine, size_t bytes);

// Waits until `threads` of the block are at the barrier of this number.
void barrier(unsigned number, unsigned threads);

// Waits until other threads have had their turn.
void poll();

// Ends the launch with an error. To be called by a kernel's thread, which cannot throw to who launched it.
[[noreturn]] void fail(const char* why);

// Whether warps and lanes are run from the last to the first: what one order hides for want of a barrier, the other shows.
extern bool reversed;

// The compute capability that the kernels are told, 90 for 9.0, and the bytes of shared memory that the running kernel has.
extern int capability;
extern size_t shared_size;

// Of the running block, among all that were ever run.
extern unsigned block_number;

struct Launch {
  int64_t threads, shared_bytes, blocks;
};

// What was launched since this was cleared.
extern std::vector<Launch> launches;

// Throws std::runtime_error where lanes part before a collective instruction, or threads before a barrier.
void run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel);

template <class T>
T of_lane(const Operands& all, int lane) {
  T value;
  std::memcpy(&value, all[lane], sizeof value);
  return value;
}

template <class T>
const Operands& exchange(const char* instruction, const T& mine) {
  static_assert(sizeof(T) <= kOperands);
  return exchange(instruction, &mine, sizeof mine);
}

inline int lane() { return static_cast<int>(threadIdx.x) % kWarp; }

}  // namespace shim
