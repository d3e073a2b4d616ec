// Runs CUDA kernels on the CPU, compiled by the host compiler: takes the place of csrc/cuda/launch.cuh, and is included
// ahead of the source (-include) so that primitives are declared. One block at a time, its threads as coroutines that
// switch only at primitives of a warp and barriers of the block. Numerics and indexing are those of the source, and a
// barrier that some threads miss is an error. Memory ordering is not modelled, but between two barriers whole warps run
// one after the other, in an order that turns around from block to block: a missing barrier gives other results.
//
// Blocks before `emulator_first_block` (counted from the end if negative) are skipped, so that the end of an array of more
// than 2^31 elements can be tested alone.
#pragma once

#include <cuda_runtime.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
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

using btr::cuda::kThreads;
using btr::cuda::kWarps;

// Words that a lane publishes at a time: the operands of the largest instruction of a warp.
constexpr int kWords = 8;

enum class State { ready, at_warp, at_block, done };

struct Block {
  static constexpr size_t kStack = 64 << 10;
  ucontext_t scheduler, contexts[kThreads];
  std::unique_ptr<char[]> stacks{new char[kThreads * kStack]};
  State states[kThreads];
  // Two sets of words: a lane may publish for the next primitive before another has read for this one.
  uint32_t published[kWarps][2][32][kWords];
  int phase[kThreads], current;
  const std::function<void()>* body;

  void wait(State at) {
    states[current] = at;
    swapcontext(&contexts[current], &scheduler);
  }

  // Runs the body on all threads; false if only some of a warp or block reached a primitive, which hangs or worse on a
  // GPU.
  bool run(bool last_first);
};

inline Block block;
inline uint3 thread, block_index;
inline dim3 grid;
inline char* shared = nullptr;

inline int lane() { return block.current % 32; }

// Publishes words to the warp and returns once all lanes have; then the words of every lane can be read.
inline const uint32_t (*exchange(const uint32_t* words, int count))[kWords] {
  const int warp = block.current / 32, phase = block.phase[block.current]++ % 2;
  std::copy_n(words, count, block.published[warp][phase][lane()]);
  block.wait(State::at_warp);
  return block.published[warp][phase];
}

inline void thread_main() {
  (*block.body)();
  block.states[block.current] = State::done;
}

inline bool Block::run(bool last_first) {
  for (int i = 0; i < kThreads; ++i) {
    phase[i] = 0, states[i] = State::ready;
    getcontext(&contexts[i]);
    contexts[i].uc_stack.ss_sp = stacks.get() + i * kStack;
    contexts[i].uc_stack.ss_size = kStack;
    contexts[i].uc_link = &scheduler;
    makecontext(&contexts[i], thread_main, 0);
  }
  for (;;) {
    for (int i = 0; i < kWarps; ++i) {
      const int warp = last_first ? kWarps - 1 - i : i;
      State* lanes = states + 32 * warp;
      while (lanes[0] == State::ready) {
        for (int l = 0; l < 32; ++l) {
          current = 32 * warp + l;
          thread = {static_cast<unsigned>(current), 0, 0};
          swapcontext(&scheduler, &contexts[current]);
        }
        if (!std::all_of(lanes, lanes + 32, [&](State s) { return s == lanes[0]; })) return false;
        if (lanes[0] == State::at_warp) std::fill_n(lanes, 32, State::ready);
      }
    }
    if (!std::all_of(states, states + kThreads, [&](State s) { return s == states[0]; })) return false;
    if (states[0] == State::done) return true;
    std::fill_n(states, kThreads, State::ready);
  }
}

// A block's shared memory, ending where memory ends: reading or writing past it crashes. Holds arbitrary values.
class Shared {
 public:
  explicit Shared(int64_t bytes) : bytes_(btr::cuda::divide_up(bytes, 16) * 16) {
    constexpr int64_t kPage = 4096;
    mapped_ = (bytes_ + kPage - 1) / kPage * kPage;
    base_ = static_cast<char*>(mmap(nullptr, mapped_ + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mprotect(base_ + mapped_, kPage, PROT_NONE);
    shared = base_ + mapped_ - bytes_;
  }
  ~Shared() { munmap(base_, mapped_ + 4096); }
  void scramble() { std::memset(shared, 0xa5, bytes_); }

 private:
  int64_t bytes_, mapped_;
  char* base_;
};

}  // namespace emulator

#define __launch_bounds__(...)
#define threadIdx emulator::thread
#define blockIdx emulator::block_index
#define gridDim emulator::grid

inline void __syncthreads() { emulator::block.wait(emulator::State::at_block); }

inline void __syncwarp(unsigned = 0xffffffffu) {
  const uint32_t none = 0;
  emulator::exchange(&none, 1);
}

template <typename T>
T emulated_shuffle(T value, int from) {
  static_assert(sizeof(T) % 4 == 0 && sizeof(T) / 4 <= emulator::kWords);
  uint32_t words[sizeof(T) / 4];
  std::memcpy(words, &value, sizeof(T));
  const auto* published = emulator::exchange(words, sizeof(T) / 4);
  std::memcpy(&value, published[from], sizeof(T));
  return value;
}

template <typename T>
T __shfl_sync(unsigned, T value, int from) {
  return emulated_shuffle(value, from % 32);
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return emulated_shuffle(value, emulator::lane() ^ mask);
}
template <typename T>
T __shfl_up_sync(unsigned, T value, int distance) {
  return emulated_shuffle(value, emulator::lane() < distance ? emulator::lane() : emulator::lane() - distance);
}

inline unsigned __ballot_sync(unsigned, bool predicate) {
  const uint32_t word = predicate;
  const auto* published = emulator::exchange(&word, 1);
  unsigned ballot = 0;
  for (int i = 0; i < 32; ++i) ballot |= published[i][0] << i;
  return ballot;
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(x); }
inline void __threadfence() {}

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
int launch_shared(void (*kernel)(Parameters...), int64_t blocks, int64_t shared_bytes, cudaStream_t,
                  Arguments... arguments) {
  if (blocks < 1 || blocks > 0x7fffffff) return cudaErrorInvalidConfiguration;
  const std::function<void()> body = [&] { kernel(arguments...); };
  emulator::block.body = &body;
  emulator::grid = dim3(static_cast<unsigned>(blocks));
  emulator::Shared shared(shared_bytes);
  const int64_t first = emulator_first_block < 0 ? blocks + emulator_first_block : emulator_first_block;
  for (int64_t b = first < 0 ? 0 : first; b < blocks; ++b) {
    emulator::block_index = {static_cast<unsigned>(b), 0, 0};
    shared.scramble();
    if (!emulator::block.run(b % 2 == 1)) return cudaErrorLaunchFailure;
  }
  return cudaSuccess;
}

template <typename... Parameters, typename... Arguments>
int launch(void (*kernel)(Parameters...), int64_t blocks, cudaStream_t stream, Arguments... arguments) {
  return launch_shared(kernel, blocks, 0, stream, arguments...);
}

}  // namespace btr::cuda
