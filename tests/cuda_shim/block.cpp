// SPDX-License-Identifier: Apache-2.0
#include "block.h"

#include "races.h"

#include <memory>
#include <stdexcept>
#include <string>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size)
#define ASAN_UNPOISON_MEMORY_REGION(address, size)
#endif

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace ditn::cuda {
alignas(1024) unsigned char memory[kMostShared];  // what a kernel declares as its dynamic shared memory
}  // namespace ditn::cuda

namespace shim {

bool reversed = false;
int capability = __CUDA_ARCH__ / 10;
size_t shared_size;
unsigned block_number = 0;
std::vector<Launch> launches;

namespace {

constexpr size_t kStack = 256 << 10;
constexpr int kMostPolls = 8;  // of all waiting threads, while no barrier is passed

enum class State { kReady, kAtCollective, kAtBarrier, kPolling, kDone };

struct Fiber {
  std::unique_ptr<char[]> stack{new char[kStack]};
  ucontext_t context;
  State state;
  const char* instruction;
  unsigned collectives, barrier, expected;
};

struct Warp {
  alignas(64) Operands operands[2];
};

std::vector<Fiber> fibers;
std::vector<Warp> warps;
ucontext_t scheduler;
unsigned running;
const std::function<void()>* work;
const char* failure;

void start() {
  (*work)();
  fibers[running].state = State::kDone;
  swapcontext(&fibers[running].context, &scheduler);
}

void wait(State state) {
  const unsigned self = running;
  fibers[self].state = state;
  swapcontext(&fibers[self].context, &scheduler);
}

unsigned in_order(unsigned i, unsigned count) { return reversed ? count - 1 - i : i; }

bool all(unsigned first, unsigned count, State state) {
  for (unsigned i = first; i < first + count; ++i) {
    if (fibers[i].state != state) return false;
  }
  return true;
}

// Lets threads go on that wait at a barrier where as many are as it expects, or for something else to happen. Returns whether
// any do, and `progress` whether that is because of a barrier.
bool release(unsigned threads, bool& progress) {
  static std::vector<unsigned> at[16];
  for (auto& waiting : at) waiting.clear();
  for (unsigned i = 0; i < threads; ++i) {
    if (fibers[i].state == State::kAtBarrier) at[fibers[i].barrier].push_back(i);
  }
  bool any = progress = false;
  for (const auto& waiting : at) {
    if (waiting.empty()) continue;
    for (unsigned i : waiting) {
      if (fibers[i].expected != fibers[waiting[0]].expected) throw std::runtime_error("threads disagree about a barrier");
    }
    if (waiting.size() != fibers[waiting[0]].expected) continue;
    any = progress = true;
    races::meet(waiting);
    for (unsigned i : waiting) fibers[i].state = State::kReady;
  }
  for (unsigned i = 0; i < threads; ++i) {
    if (fibers[i].state != State::kPolling) continue;
    any = true;
    fibers[i].state = State::kReady;
  }
  return any;
}

// Runs a warp until its lanes are all done or wait for other warps.
void run_warp(unsigned first) {
  for (;;) {
    for (unsigned i = 0; i < kWarp; ++i) {
      running = first + in_order(i, kWarp);
      if (fibers[running].state != State::kReady) continue;
      threadIdx = dim3(running, 0, 0);
      swapcontext(&scheduler, &fibers[running].context);
      if (failure) throw std::runtime_error(failure);
    }
    if (!all(first, kWarp, State::kAtCollective)) break;
    for (unsigned i = first; i < first + kWarp; ++i) {
      if (std::strcmp(fibers[i].instruction, fibers[first].instruction)) {
        throw std::runtime_error(std::string("lanes part: ") + fibers[i].instruction + ", " + fibers[first].instruction);
      }
      fibers[i].state = State::kReady;
    }
  }
  for (unsigned i = first; i < first + kWarp; ++i) {
    if (fibers[i].state == State::kAtCollective) {
      throw std::runtime_error(std::string("not all lanes of a warp are at ") + fibers[i].instruction);
    }
  }
}

void run_block(unsigned threads) {
  for (unsigned i = 0; i < threads; ++i) {
    Fiber& fiber = fibers[i];
    fiber.state = State::kReady;
    fiber.collectives = 0;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, start, 0);
  }
  ++block_number;
  races::start(threads / kWarp);
  for (int polls = 0; !all(0, threads, State::kDone);) {
    for (unsigned i = 0; i < threads / kWarp; ++i) run_warp(in_order(i, threads / kWarp) * kWarp);
    if (all(0, threads, State::kDone)) break;
    bool progress;
    if (!release(threads, progress)) throw std::runtime_error("not all threads of a block are at a barrier");
    polls = progress ? 0 : polls + 1;
    if (polls > kMostPolls) throw std::runtime_error("threads wait for what never happens");
  }
}

}  // namespace

const Operands& exchange(const char* instruction, const void* mine, size_t bytes) {
  const unsigned self = running;
  Fiber& fiber = fibers[self];
  Operands& operands = warps[self / kWarp].operands[fiber.collectives++ % 2];
  std::memcpy(operands[self % kWarp], mine, bytes);
  fiber.instruction = instruction;
  wait(State::kAtCollective);
  return operands;
}

void barrier(unsigned number, unsigned threads) {
  fibers[running].barrier = number;
  fibers[running].expected = threads;
  wait(State::kAtBarrier);
}

void poll() { wait(State::kPolling); }

void fail(const char* why) {
  failure = why;
  wait(State::kDone);
  __builtin_unreachable();
}

void run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel) {
  using ditn::cuda::kMostShared, ditn::cuda::memory;
  if (block.x % kWarp || block.y != 1 || block.z != 1) throw std::runtime_error("blocks are rows of whole warps");
  if (shared_bytes > kMostShared) throw std::runtime_error("no chip has so much shared memory");
  if (fibers.size() < block.x) fibers = std::vector<Fiber>(block.x);
  if (warps.size() < block.x / kWarp) warps.resize(block.x / kWarp);
  launches.push_back({block.x, static_cast<int64_t>(shared_bytes), int64_t{1} * grid.x * grid.y * grid.z});
  work = &kernel;
  failure = nullptr;
  shared_size = shared_bytes;
  gridDim = grid;
  blockDim = block;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = dim3(x, y, z);
        ASAN_UNPOISON_MEMORY_REGION(memory, kMostShared);
        std::memset(memory, 0xff, shared_bytes);  // NaN, of halves as of floats
        ASAN_POISON_MEMORY_REGION(memory + shared_bytes, kMostShared - shared_bytes);
        run_block(block.x);
      }
    }
  }
}

}  // namespace shim
