// SPDX-License-Identifier: Apache-2.0
// Finds races in shared memory, for kernels whose accesses the shim sees one by one (hopper/instructions.cuh): two accesses of
// which one writes, by different warps or a copy, and nothing that makes one happen before the other. Each warp has a vector
// clock, each word the times of its accesses; barriers and arrivals join clocks. The order in which warps were run plays no role.
#pragma once

#include <array>
#include <vector>

#include "block.h"

namespace shim::races {

constexpr unsigned kMostWarps = 32, kCopies = kMostWarps;  // the last clock is that of copies
using Clock = std::array<unsigned, kMostWarps + 1>;

// A block starts.
void start(unsigned warps);
// The threads of these numbers were at a barrier.
void meet(const std::vector<unsigned>& threads);

// A warp has seen what was done before `clock` was joined, and others that join it will see what the warp did.
void release(unsigned warp, Clock& clock);
void acquire(unsigned warp, const Clock& clock);

// Bytes of shared memory, from a multiple of four on. `agent`: a warp or kCopies. Return what is wrong, or null.
const char* read(unsigned agent, unsigned address, unsigned bytes);
// A read by wgmma, which wants a fence between stores and it.
const char* read_by_tensor_cores(unsigned agent, unsigned address, unsigned bytes);
// A store by a thread.
const char* write(unsigned agent, unsigned thread, unsigned address, unsigned bytes);
// A fence.proxy.async of a thread.
void fence(unsigned thread);
// A copy that a warp has started, which is done when its clock has been acquired.
const char* copy(unsigned warp, unsigned address, unsigned bytes, Clock& done);

}  // namespace shim::races
