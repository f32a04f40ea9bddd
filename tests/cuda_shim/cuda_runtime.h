// SPDX-License-Identifier: Apache-2.0
// What the kernels use of the CUDA runtime, on the host. See block.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <map>

#include "block.h"

#define __device__
#define __host__
#define __global__
#define __shared__
#define __forceinline__ inline
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)
#define __restrict__ __restrict

using std::fabs;
using std::fmaf;
using std::max;
using std::min;

struct float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

template <class T>
T __ldg(const T* address) {
  return *address;
}

template <class T>
void __stwb(T* address, T value) {
  *address = value;
}

inline void __syncthreads() { shim::barrier(0, blockDim.x); }
inline void __syncwarp() { shim::exchange("__syncwarp", 0); }

template <class T>
T __shfl_sync(unsigned, T value, int from) {
  return shim::of_lane<T>(shim::exchange("__shfl_sync", value), from % shim::kWarp);
}

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return shim::of_lane<T>(shim::exchange("__shfl_xor_sync", value), shim::lane() ^ mask);
}

inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float __expf(float x) { return std::exp(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
using cudaStream_t = void*;

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

inline const char* cudaGetErrorString(cudaError_t) { return "invalid argument"; }

// What a block may ask for at most (CUDA C++ Programming Guide, technical specifications per compute capability).
inline int most_shared() {
  const int chip = shim::capability;
  return (chip == 75 ? 64 : chip == 70 ? 96 : chip == 90 ? 227 : 163) << 10;
}

// What launches of a function may ask for. To lower it is an error here: it would take it from another thread's launch.
inline int& granted(const void* function) {
  static std::map<const void*, int> bytes;
  return bytes[function];
}

inline cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute, int bytes) {
  if (bytes < granted(function) || bytes > most_shared()) return cudaErrorInvalidValue;
  granted(function) = bytes;
  return cudaSuccess;
}

enum cudaDeviceAttr {
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrComputeCapabilityMinor,
  cudaDevAttrMultiProcessorCount,
};

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

// There are five multiprocessors, so that persistent blocks go round their loops where a map is larger.
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const int chip = shim::capability;
  *value = attribute == cudaDevAttrMultiProcessorCount ? 5 : attribute == cudaDevAttrComputeCapabilityMajor ? chip / 10 : chip % 10;
  return cudaSuccess;
}

enum cudaMemcpyKind { cudaMemcpyDeviceToDevice };
inline cudaError_t cudaMemcpyAsync(void* target, const void* source, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  std::memcpy(target, source, bytes);
  return cudaSuccess;
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), const Arguments&... arguments) {
  const int most = std::min(granted(reinterpret_cast<const void*>(kernel)), most_shared());
  if (config->dynamicSmemBytes > static_cast<size_t>(most)) return cudaErrorInvalidValue;
  shim::run(config->gridDim, config->blockDim, config->dynamicSmemBytes, [&] { kernel(arguments...); });
  return cudaSuccess;
}
