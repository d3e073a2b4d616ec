// The one place with launch syntax, so that a host compiler can read the kernels with another version of this file
// (tests/gpu/emulator runs them on the CPU).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/grid.cuh"

namespace btr::cuda {

// Enqueues `kernel` on `blocks` blocks of kThreads threads; returns the cudaError_t of the launch.
template <typename... Parameters, typename... Arguments>
int launch(void (*kernel)(Parameters...), int64_t blocks, cudaStream_t stream, Arguments... arguments) {
  kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(arguments...);
  return static_cast<int>(cudaGetLastError());
}

}  // namespace btr::cuda
