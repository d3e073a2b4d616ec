// The threads of a block as coroutines that switch only where they wait: what they wait for, how they exchange values,
// and their shared memory.
//
// Between two waits for the block whole warps run one after the other as far as they get, in an order that turns around
// from block to block: a missing barrier gives other results.
#pragma once

#include <cuda_runtime.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

namespace emulator {

inline uint3 thread, block_index;
inline dim3 grid;

// Started as a context; later switches are jumps, which need no call of the system.
struct Coroutine {
  static constexpr size_t kStack = 64 << 10;
  ucontext_t context;
  jmp_buf place;
  std::unique_ptr<char[]> stack{new char[kStack]};
  bool started, done;
};

inline jmp_buf scheduler;
inline std::deque<Coroutine> coroutines;  // does not move its elements
inline const std::function<void()>* body;
// Whether anything happened lately: if nothing did in a round through all threads, they wait for each other for ever.
inline bool progress;
// What goes on beside the threads, such as copies, in order: one of them between two rounds, so that a thread that does
// not wait for it is ahead of it.
inline std::deque<std::function<void()>> beside;

[[gnu::noinline]] inline void resume(Coroutine& c) {
  if (_setjmp(scheduler) != 0) return;
  if (c.started) _longjmp(c.place, 1);
  c.started = true;
  setcontext(&c.context);
}

[[gnu::noinline]] inline void suspend(Coroutine& c) {
  if (_setjmp(c.place) == 0) _longjmp(scheduler, 1);
}

template <typename Condition>
void wait_until(const Condition& holds) {
  while (!holds()) suspend(coroutines[thread.x]);
  progress = true;
}

// Threads that wait for each other: a warp, a warp group, a block.
class Group {
 public:
  static constexpr int kBytes = 64;

  void reset(int first, int size) { first_ = first, size_ = size, arrived_ = 0, generation_ = 0; }

  // What each thread gave, by its number within the group.
  template <typename T>
  class Values {
   public:
    explicit Values(const char* slots) : slots_(slots) {}
    T operator[](int i) const {
      T value;
      std::memcpy(&value, slots_ + i * kBytes, sizeof(T));
      return value;
    }

   private:
    const char* slots_;
  };

  // Gives a value and returns once all threads have. Two sets of slots: a thread may give for the next exchange before
  // another has read for this one, but not for the one after that.
  template <typename T>
  Values<T> exchange(const T& value) {
    static_assert(sizeof(T) <= kBytes, "too large for a slot");
    auto& slots = slots_[generation_ % 2];
    slots.resize(size_ * kBytes);
    std::memcpy(&slots[(thread.x - first_) * kBytes], &value, sizeof(T));
    const uint64_t generation = generation_;
    if (++arrived_ == size_) arrived_ = 0, ++generation_;
    wait_until([&] { return generation_ != generation; });
    return Values<T>(slots.data());
  }

  void wait() { exchange(0); }

 private:
  int first_, size_, arrived_;
  uint64_t generation_;
  std::vector<char> slots_[2];
};

inline std::vector<Group> warps, warp_groups;
inline Group whole_block;

inline int lane() { return thread.x % 32; }
inline Group& warp() { return warps[thread.x / 32]; }
inline Group& warp_group() { return warp_groups[thread.x / 128]; }

// A block's shared memory, ending where memory ends: reading or writing past it crashes. Holds arbitrary values.
class Shared {
 public:
  explicit Shared(int64_t bytes) : bytes_((bytes + 15) / 16 * 16) {
    constexpr int64_t kPage = 4096;
    mapped_ = (bytes_ + kPage - 1) / kPage * kPage;
    base_ = static_cast<char*>(mmap(nullptr, mapped_ + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mprotect(base_ + mapped_, kPage, PROT_NONE);
  }
  ~Shared() { munmap(base_, mapped_ + 4096); }
  char* begin() const { return base_ + mapped_ - bytes_; }
  void scramble() { std::memset(begin(), 0xa5, bytes_); }

 private:
  int64_t bytes_, mapped_;
  char* base_;
};

inline char* shared = nullptr;

inline void coroutine_main() {
  (*body)();
  coroutines[thread.x].done = progress = true;
  _longjmp(scheduler, 1);
}

// Runs the body on all threads of a block; false if they wait for each other for ever, as where a primitive is reached by
// some of a warp only, which hangs or worse on a GPU, or if the block ends before what goes on beside it.
inline bool run_block(const std::function<void()>& kernel, int threads, bool last_first) {
  const int count = threads / 32;
  body = &kernel;
  coroutines.resize(threads), warps.resize(count), warp_groups.resize(count / 4);
  for (int i = 0; i < count; ++i) warps[i].reset(32 * i, 32);
  for (int i = 0; i < count / 4; ++i) warp_groups[i].reset(128 * i, 128);
  whole_block.reset(0, threads);
  beside.clear();
  for (Coroutine& c : coroutines) {
    c.started = c.done = false;
    getcontext(&c.context);
    c.context.uc_stack.ss_sp = c.stack.get();
    c.context.uc_stack.ss_size = Coroutine::kStack;
    c.context.uc_link = nullptr;
    makecontext(&c.context, coroutine_main, 0);
  }
  for (int finished = 0; finished != threads;) {
    finished = 0;
    bool any = false;
    for (int i = 0; i < count; ++i) {
      const int first = 32 * (last_first ? count - 1 - i : i);
      int done;
      do {
        done = 0, progress = false;
        for (int l = 0; l < 32; ++l) {
          thread = {static_cast<unsigned>(first + l), 0, 0};
          if (!coroutines[first + l].done) resume(coroutines[first + l]);
          done += coroutines[first + l].done;
        }
        any |= progress;
      } while (progress && done < 32);
      finished += done;
    }
    if (!beside.empty()) {
      beside.front()();
      beside.pop_front();
      any = true;
    }
    if (!any) return false;
  }
  return beside.empty();
}

}  // namespace emulator
