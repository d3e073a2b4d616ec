// csrc/cuda/wgmma.cuh for the CPU, by the PTX documentation. Multiplications are done when they are waited for, with what
// their registers and their shared memory hold then: whoever touches these too early gets other results.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "core/types.h"
#include "cuda/ptx.cuh"

namespace btr::cuda {

constexpr uint64_t operand_at(uint32_t address) {
  // Start, offset between the halves of K (unused when swizzled), offset between 8 rows, swizzle of 128 bytes.
  return (address >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62;
}
constexpr uint64_t advanced(uint64_t operand, int bytes) { return operand + bytes / 16; }

}  // namespace btr::cuda

namespace emulator {

struct Multiplication {
  void* sums;
  const uint32_t* a;
  uint64_t b;
  bool adding;
  void (*run)(const std::vector<Multiplication>& of_threads);
};
struct Multiplications {
  std::vector<Multiplication> open;
  std::deque<std::vector<Multiplication>> groups;
};
inline Multiplications& multiplications() {
  static std::vector<Multiplications> of_threads(1024);
  return of_threads[thread.x];
}

template <btr::DType kType, int kSums, typename T>
void multiply(const std::vector<Multiplication>& of_threads) {
  constexpr int kBytes = btr::size_of(kType), kDepth = 32 / kBytes, kColumns = 2 * kSums, kInWord = 4 / kBytes;
  static float a[64][kDepth], b[kColumns][kDepth];
  for (int i = 0; i < 128; ++i) {
    const int row = i / 32 * 16 + i % 32 / 4, t = i % 4;
    for (int word = 0; word < 4; ++word) {
      values_of<kType>(of_threads[i].a[word], &a[row + word % 2 * 8][word / 2 * kDepth / 2 + t * kInWord]);
    }
  }
  const uint64_t descriptor = of_threads[0].b;
  const uint32_t start = (descriptor & 0x3fff) << 4, eight_rows = (descriptor >> 32 & 0x3fff) << 4;
  for (int n = 0; n < kColumns; ++n) {
    for (int k = 0; k < kDepth; ++k) {
      // Rows of 128 bytes in groups of 8; the swizzle takes bits of the address, so the start has to be that of a group
      // but for its distance along K.
      const uint32_t plain = start + n / 8 * eight_rows + n % 8 * 128 + k * kBytes;
      b[n][k] = value_of<kType>(at_shared<char>(plain ^ (plain >> 7 & 7) << 4));
    }
  }
  for (int i = 0; i < 128; ++i) {
    const int row = i / 32 * 16 + i % 32 / 4, t = i % 4;
    T* sums = static_cast<T*>(of_threads[i].sums);
    for (int s = 0; s < kSums; ++s) {
      const float* x = a[row + s % 4 / 2 * 8];
      const float* y = b[s / 4 * 8 + 2 * t + s % 2];
      double sum = 0;
      for (int k = 0; k < kDepth; ++k) sum += static_cast<double>(x[k]) * y[k];
      sums[s] = static_cast<T>(of_threads[i].adding ? sums[s] + sum : sum);
    }
  }
}

}  // namespace emulator

namespace btr::cuda {

inline void open_multiplications() {}
inline void commit_multiplications() {
  auto& mine = emulator::multiplications();
  mine.groups.push_back(std::move(mine.open));
  mine.open.clear();
}
template <int kLeft>
void wait_multiplications() {
  auto& groups = emulator::multiplications().groups;
  while (static_cast<int>(groups.size()) > kLeft) {
    const auto all = emulator::warp_group().exchange(&groups.front());
    if (emulator::thread.x % 128 == 0) {
      for (size_t i = 0; i < groups.front().size(); ++i) {
        std::vector<emulator::Multiplication> of_threads;
        for (int thread = 0; thread < 128; ++thread) of_threads.push_back((*all[thread])[i]);
        of_threads[0].run(of_threads);
      }
    }
    emulator::warp_group().wait();
    groups.pop_front();
  }
}

template <DType kType, typename T, int kSums>
void multiply_rows(T (&sums)[kSums], const uint32_t (&a)[4], uint64_t b, bool adding) {
  emulator::multiplications().open.push_back({sums, a, b, adding, emulator::multiply<kType, kSums, T>});
}

}  // namespace btr::cuda
