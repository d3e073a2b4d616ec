// How much is launched: one-dimensional grids of kThreads threads, if nothing else is said, that stride over their work.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace btr::cuda {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

__host__ __device__ constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline bool aligned(const void* pointer, int64_t bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }

// What a launch takes of the device: blocks, shared memory and threads of each. A number of blocks alone is one too.
struct Shape {
  int64_t blocks, shared_bytes;
  int threads;
  Shape(int64_t blocks, int64_t shared_bytes = 0, int threads = kThreads)
      : blocks(blocks), shared_bytes(shared_bytes), threads(threads) {}
};

// Streaming multiprocessors of the current device; 1 if it cannot be asked (the launch then reports why).
inline int64_t multiprocessors() {
  int device = 0, count = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 1;
  if (cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) return 1;
  return count;
}

// Blocks for `warps` warps of work, up to a few times what the device holds at once: enough to even out blocks that end
// at different times; more would only cost their start.
inline int64_t blocks_for_warps(int64_t warps) {
  const int64_t wanted = divide_up(warps, kWarps), most = multiprocessors() * 32;
  return wanted < most ? wanted : most;
}

}  // namespace btr::cuda
