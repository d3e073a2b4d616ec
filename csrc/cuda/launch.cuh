// The one place with launch syntax, so that a host compiler can read the kernels with another version of this file
// (tests/gpu/emulator runs them on the CPU).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/grid.cuh"

namespace btr::cuda {

// Shared memory that a launch gives to each block, beyond which every GPU has to be asked for it.
constexpr int64_t kSharedUnasked = 48 << 10;

// What a launch gave of shared memory, aligned to 16 bytes. Kernels have no other: the emulator would not know it.
__device__ __forceinline__ char* shared_memory() {
  extern __shared__ __align__(16) char memory[];
  return memory;
}

// Enqueues `kernel`; returns the cudaError_t of the launch.
template <typename... Parameters, typename... Arguments>
int launch(void (*kernel)(Parameters...), const Shape& shape, cudaStream_t stream, Arguments... arguments) {
  const int bytes = static_cast<int>(shape.shared_bytes);
  if (shape.shared_bytes > kSharedUnasked) {
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error != cudaSuccess) return static_cast<int>(error);
  }
  kernel<<<static_cast<unsigned>(shape.blocks), shape.threads, bytes, stream>>>(arguments...);
  return static_cast<int>(cudaGetLastError());
}

}  // namespace btr::cuda
