// Runs CUDA kernels on the CPU, compiled by the host compiler: takes the place of csrc/cuda/launch.cuh, and is included
// ahead of the source (-include) so that primitives are declared. One block at a time, its threads as coroutines
// (`coroutines.h`). Numerics and indexing are those of the source, and a barrier that some threads miss is an error. Memory
// ordering is not modelled.
//
// Blocks before `emulator_first_block` (counted from the end if negative) are skipped, so that the end of an array of more
// than 2^31 elements can be tested alone.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>

#include "coroutines.h"
#include "cuda/grid.cuh"

extern "C" {
inline int emulator_multiprocessors = 1;  // a single one, so that grids are small and kernels stride
inline int emulator_capability = 90;
inline int64_t emulator_first_block = 0;

// The CUDA runtime, as far as the launchers use it.
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount: return *value = emulator_multiprocessors, cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor: return *value = emulator_capability / 10, cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor: return *value = emulator_capability % 10, cudaSuccess;
    default: return cudaErrorInvalidValue;
  }
}
inline cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  return std::memset(memory, value, bytes), cudaSuccess;
}
}

#define __launch_bounds__(...)
#define threadIdx emulator::thread
#define blockIdx emulator::block_index
#define gridDim emulator::grid

inline void __syncthreads() { emulator::whole_block.wait(); }
inline void __syncwarp(unsigned = 0xffffffffu) { emulator::warp().wait(); }

template <typename T>
T __shfl_sync(unsigned, T value, int from) {
  return emulator::warp().exchange(value)[from % 32];
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return emulator::warp().exchange(value)[emulator::lane() ^ mask];
}
template <typename T>
T __shfl_up_sync(unsigned, T value, int distance) {
  return emulator::warp().exchange(value)[emulator::lane() < distance ? emulator::lane() : emulator::lane() - distance];
}

inline unsigned __ballot_sync(unsigned, bool predicate) {
  const auto values = emulator::warp().exchange(static_cast<uint32_t>(predicate));
  unsigned ballot = 0;
  for (int i = 0; i < 32; ++i) ballot |= values[i] << i;
  return ballot;
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(x); }
inline void __threadfence() {}

// Memory accesses with a cache hint.
template <typename T>
T __ldcg(const T* address) {
  return *address;
}
template <typename T>
void __stcg(T* address, T value) {
  *address = value;
}

// One thread runs at a time.
template <typename T>
T atomicAdd(T* address, T value) {
  const T old = *address;
  *address = static_cast<T>(old + value);
  return old;
}
template <typename T>
T atomicMin(T* address, T value) {
  const T old = *address;
  *address = std::min(old, value);
  return old;
}

namespace btr::cuda {

inline char* shared_memory() { return emulator::shared; }

template <typename... Parameters, typename... Arguments>
int launch(void (*kernel)(Parameters...), const Shape& shape, cudaStream_t, Arguments... arguments) {
  if (shape.blocks < 1 || shape.blocks > 0x7fffffff || shape.threads % 32) return cudaErrorInvalidConfiguration;
  const std::function<void()> body = [&] { kernel(arguments...); };
  emulator::grid = dim3(static_cast<unsigned>(shape.blocks));
  emulator::Shared shared(shape.shared_bytes);
  emulator::shared = shared.begin();
  const int64_t first = emulator_first_block < 0 ? shape.blocks + emulator_first_block : emulator_first_block;
  for (int64_t b = first < 0 ? 0 : first; b < shape.blocks; ++b) {
    emulator::block_index = {static_cast<unsigned>(b), 0, 0};
    shared.scramble();
    if (!emulator::run_block(body, shape.threads, b % 2 == 1)) return cudaErrorLaunchFailure;
  }
  return cudaSuccess;
}

}  // namespace btr::cuda
