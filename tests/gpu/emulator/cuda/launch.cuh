// Runs CUDA kernels on the CPU, compiled by the host compiler: takes the place of csrc/cuda/launch.cuh, and is included
// ahead of the source (-include) so that warp primitives are declared. One warp at a time, its 32 lanes as coroutines
// that switch only at warp primitives. Numerics and indexing are those of the source; memory ordering, shared memory and
// block-wide synchronisation are not modelled.
//
// Blocks before `emulator_first_block` (counted from the end if negative) are skipped, so that the end of an array of more
// than 2^31 elements can be tested alone.
#pragma once

#include <cuda_runtime.h>
#include <ucontext.h>

#include <cstdint>
#include <functional>
#include <memory>

#include "cuda/grid.cuh"

extern "C" {
inline int emulator_multiprocessors = 1;  // a single one, so that grids are small and kernels stride
inline int64_t emulator_first_block = 0;

// The CUDA runtime, as far as the launchers use it.
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  return *value = emulator_multiprocessors, cudaSuccess;
}
}

namespace emulator {

struct Warp {
  static constexpr size_t kStack = 64 << 10;
  ucontext_t scheduler, lanes[32];
  std::unique_ptr<char[]> stacks{new char[32 * kStack]};
  // Two sets of values: a lane may publish for the next primitive before another has read for this one.
  uint32_t published[2][32];
  int phase[32], lane;
  bool done[32];
  const std::function<void()>* body;

  // Publishes a value for the warp and returns once all lanes have; then all 32 values can be read.
  const uint32_t* exchange(uint32_t value) {
    uint32_t* values = published[phase[lane]++ % 2];
    values[lane] = value;
    swapcontext(&lanes[lane], &scheduler);
    return values;
  }

  // Runs the body on all lanes; false if a primitive was reached by some of them only, which hangs or worse on a GPU.
  bool run();
};

inline Warp warp;
inline uint3 thread, block;
inline dim3 grid;
inline unsigned first_thread;

inline void lane_main() {
  (*warp.body)();
  warp.done[warp.lane] = true;
}

inline bool Warp::run() {
  for (int i = 0; i < 32; ++i) {
    phase[i] = 0, done[i] = false;
    getcontext(&lanes[i]);
    lanes[i].uc_stack.ss_sp = stacks.get() + i * kStack;
    lanes[i].uc_stack.ss_size = kStack;
    lanes[i].uc_link = &scheduler;
    makecontext(&lanes[i], lane_main, 0);
  }
  for (int finished = 0; finished == 0;) {
    for (lane = 0; lane < 32; ++lane) {
      thread = {first_thread + lane, 0, 0};
      swapcontext(&scheduler, &lanes[lane]);
      finished += done[lane];
    }
    if (finished != 0 && finished != 32) return false;
  }
  return true;
}

}  // namespace emulator

#define __launch_bounds__(...)
#define threadIdx emulator::thread
#define blockIdx emulator::block
#define gridDim emulator::grid

inline uint32_t __shfl_xor_sync(unsigned, uint32_t value, int mask) {
  const int lane = emulator::warp.lane;
  return emulator::warp.exchange(value)[lane ^ mask];
}

inline unsigned __ballot_sync(unsigned, bool predicate) {
  const uint32_t* values = emulator::warp.exchange(predicate);
  unsigned ballot = 0;
  for (int i = 0; i < 32; ++i) ballot |= values[i] << i;
  return ballot;
}

namespace btr::cuda {

template <typename... Parameters, typename... Arguments>
int launch(void (*kernel)(Parameters...), int64_t blocks, cudaStream_t, Arguments... arguments) {
  if (blocks < 1 || blocks > 0x7fffffff) return cudaErrorInvalidConfiguration;
  const std::function<void()> body = [&] { kernel(arguments...); };
  emulator::warp.body = &body;
  emulator::grid = dim3(static_cast<unsigned>(blocks));
  const int64_t first = emulator_first_block < 0 ? blocks + emulator_first_block : emulator_first_block;
  for (int64_t b = first < 0 ? 0 : first; b < blocks; ++b) {
    emulator::block = {static_cast<unsigned>(b), 0, 0};
    for (int w = 0; w < kWarps; ++w) {
      emulator::first_thread = 32 * w;
      if (!emulator::warp.run()) return cudaErrorLaunchFailure;
    }
  }
  return cudaSuccess;
}

}  // namespace btr::cuda
