// SPDX-License-Identifier: Apache-2.0
// How a kernel is launched, and the shared memory that it gets.
#pragma once

#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

#include "kernels.h"

namespace ditn::cuda {

// All of a block's shared memory: what was asked for at the launch. wgmma wants it at a multiple of 1024 bytes.
template <class T>
__device__ T* shared_memory() {
  extern __shared__ __align__(1024) unsigned char memory[];
  return reinterpret_cast<T*>(memory);
}

// What DITN-Real's layers are called with, for whoever counts the instructions that they take: DITN_NETWORK compiles the
// kernels for that alone.
__device__ __forceinline__ void assume_network([[maybe_unused]] bool so) {
#ifdef DITN_NETWORK
  __builtin_assume(so);
#endif
}
__device__ __forceinline__ void assume_network(bool quads, Norm norm) { assume_network(quads && norm == Norm::kTanh); }

constexpr size_t kTuringShared = 64 << 10;  // bytes of a multiprocessor of sm_75, the least that there is

// Blocks that a multiprocessor should hold at once: as many as its shared memory has room for, but no more than leave each
// thread `registers`. For __launch_bounds__, where the compiler would otherwise choose a number of registers by itself.
constexpr int blocks_at_once(size_t shared_bytes, int threads, int registers) {
#if __CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1200
  constexpr size_t kShared = 228 << 10;
#elif __CUDA_ARCH__ == 800 || __CUDA_ARCH__ == 870
  constexpr size_t kShared = 164 << 10;
#elif __CUDA_ARCH__ >= 800
  constexpr size_t kShared = 100 << 10;
#else
  constexpr size_t kShared = kTuringShared + 1024;  // all of which a block may have
#endif
  const int by_registers = (64 << 10) / (threads * registers), by_shared = static_cast<int>(kShared / (shared_bytes + 1024));
  const int blocks = by_registers < by_shared ? by_registers : by_shared;
  return blocks > 1 ? blocks : 1;
}

// Throws if the runtime reports an error, with the operator's name.
inline void check(cudaError_t error, const char* name) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(name) + ": " + cudaGetErrorString(error));
}

// Of the current device, 75 for 7.5.
inline int compute_capability(const char* name) {
  int device = 0, major = 0, minor = 0;
  check(cudaGetDevice(&device), name);
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), name);
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), name);
  return 10 * major + minor;
}

// Lets launches of a function on the current device have so much shared memory. The limit is the function's, whoever launches
// it, so it only grows: another thread may be about to launch with more.
inline void allow_shared(const void* function, size_t bytes, const char* name) {
  static std::mutex lock;
  static std::map<std::pair<const void*, int>, size_t> allowed;
  int device = 0;
  check(cudaGetDevice(&device), name);
  const std::lock_guard<std::mutex> guard(lock);
  size_t& most = allowed[{function, device}];
  if (bytes <= most) return;
  check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)), name);
  most = bytes;
}

// Blocks without threads to run are no error: an empty batch has nothing to do.
template <class... Parameters, class... Arguments>
void launch(const Device& device, const char* name, void (*kernel)(Parameters...), dim3 blocks, unsigned threads,
            size_t shared_bytes, const Arguments&... arguments) {
  if (!device.launches || !blocks.x || !blocks.y || !blocks.z) return;
  allow_shared(reinterpret_cast<const void*>(kernel), shared_bytes, name);
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = device.stream;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), name);
}

// As many blocks as there is work; more than a grid's side would be a map of 2^31 times what one block takes.
inline unsigned blocks_for(int64_t work, int64_t per_block, const char* name) {
  const int64_t blocks = (work + per_block - 1) / per_block;
  if (blocks > INT32_MAX) throw std::runtime_error(std::string(name) + ": the map is too large for one launch");
  return static_cast<unsigned>(blocks);
}

}  // namespace ditn::cuda
