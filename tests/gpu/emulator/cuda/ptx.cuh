// csrc/cuda/ptx.cuh for the CPU, by the PTX documentation. What a GPU does in its own time is done as late as it may be:
// copies of a thread when they are waited for, copies of boxes a round later or more. A wait that is missing then gives
// other results, and one that cannot end is an error of the launch.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <deque>
#include <vector>

#include "core/types.h"
#include "coroutines.h"
#include "cuda/tensor_map.cuh"

#define BTR_AMPERE 1
#define BTR_HOPPER 1

namespace emulator {

inline char* shared_origin() { return shared - reinterpret_cast<uintptr_t>(shared) % 1024; }
template <typename T>
T* at_shared(uint32_t address) {
  return reinterpret_cast<T*>(shared_origin() + address);
}

// One value of an operand.
template <btr::DType kType>
float value_of(const void* element) {
  using btr::DType;
  if constexpr (kType == DType::i8) {
    return *static_cast<const int8_t*>(element);
  } else if constexpr (kType == DType::e4m3) {
    const uint8_t u = *static_cast<const uint8_t*>(element);
    const int exponent = u >> 3 & 15, fraction = u & 7;
    if (exponent == 15 && fraction == 7) return std::nanf("");
    const float size = exponent ? std::ldexp(8.0f + fraction, exponent - 10) : std::ldexp(static_cast<float>(fraction), -9);
    return u & 0x80 ? -size : size;
  } else {
    uint16_t u;
    std::memcpy(&u, element, 2);
    if constexpr (kType == DType::f16) return __half2float(__half(__half_raw{u}));
    const uint32_t wide = static_cast<uint32_t>(u) << 16;
    float f;
    std::memcpy(&f, &wide, 4);
    return f;
  }
}

// The values of a lane's words of an operand: words w, each 4 bytes of a row.
template <btr::DType kType>
void values_of(uint32_t word, float* values) {
  constexpr int kBytes = btr::size_of(kType);
  for (int i = 0; i < 4 / kBytes; ++i) values[i] = value_of<kType>(reinterpret_cast<const char*>(&word) + i * kBytes);
}

struct Copy {
  uint32_t to;
  const void* from;
  int bytes;
};
struct Copies {
  std::vector<Copy> open;
  std::deque<std::vector<Copy>> groups;
};
inline Copies& copies() {
  static std::vector<Copies> of_threads(1024);
  return of_threads[thread.x];
}

struct Barrier {
  uint8_t phase, arrivals;
  int16_t pending;
  int32_t bytes;

  void advance() {
    if (pending == 0 && bytes == 0) phase ^= 1, pending = arrivals;
  }
};
static_assert(sizeof(Barrier) == 8);

}  // namespace emulator

namespace btr::cuda {

inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(static_cast<const char*>(pointer) - emulator::shared_origin());
}

inline uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) result |= static_cast<uint32_t>(bytes >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
  return result;
}

template <int kBytes>
void copy_bytes(uint32_t to, const void* from, bool exists) {
  emulator::copies().open.push_back({to, exists ? from : nullptr, kBytes});
}
inline void commit_copies() {
  auto& copies = emulator::copies();
  copies.groups.push_back(std::move(copies.open));
  copies.open.clear();
}
template <int kLeft>
void wait_copies() {
  auto& groups = emulator::copies().groups;
  for (; static_cast<int>(groups.size()) > kLeft; groups.pop_front()) {
    for (const auto& copy : groups.front()) {
      char* to = emulator::at_shared<char>(copy.to);
      if (copy.from) std::memcpy(to, copy.from, copy.bytes);
      else std::memset(to, 0, copy.bytes);
    }
  }
}

inline void load_matrices(uint32_t (&words)[4], uint32_t row) {
  const auto rows = emulator::warp().exchange(row);
  const int lane = emulator::lane();
  for (int i = 0; i < 4; ++i) {
    std::memcpy(&words[i], emulator::at_shared<char>(rows[8 * i + lane / 4]) + 4 * (lane % 4), 4);
  }
  emulator::warp().wait();  // no lane may go on to write what others still read
}

template <DType kType, typename T>
void multiply_tile(T (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  struct Operands {
    uint32_t a[4], b[2];
  } mine;
  std::memcpy(mine.a, a, sizeof(a)), std::memcpy(mine.b, b, sizeof(b));
  const auto all = emulator::warp().exchange(mine);
  const int row = emulator::lane() / 4, column = emulator::lane() % 4 * 2;
  constexpr int kValues = 4 / static_cast<int>(size_of(kType));
  for (int i = 0; i < 4; ++i) {
    double sum = 0;
    for (int t = 0; t < 4; ++t) {
      const Operands of_row = all[row * 4 + t], of_column = all[(column + i % 2) * 4 + t];
      for (int half = 0; half < 2; ++half) {
        float x[4], y[4];
        emulator::values_of<kType>(of_row.a[2 * half + i / 2], x);
        emulator::values_of<kType>(of_column.b[half], y);
        for (int v = 0; v < kValues; ++v) sum += static_cast<double>(x[v]) * y[v];
      }
    }
    sums[i] = static_cast<T>(sums[i] + sum);
  }
}

inline uint32_t halves_of(uint16_t pair) {
  const uint8_t bytes[2] = {static_cast<uint8_t>(pair), static_cast<uint8_t>(pair >> 8)};
  const __half2_raw halves = __floats2half2_rn(emulator::value_of<DType::e4m3>(&bytes[0]), emulator::value_of<DType::e4m3>(&bytes[1]));
  return halves.x | static_cast<uint32_t>(halves.y) << 16;
}

inline void initialise_barrier(uint32_t barrier, int arrivals) {
  *emulator::at_shared<emulator::Barrier>(barrier) = {0, static_cast<uint8_t>(arrivals), static_cast<int16_t>(arrivals), 0};
}
inline void publish_barriers() {}
inline void arrive_expecting(uint32_t barrier, int bytes) {
  auto* b = emulator::at_shared<emulator::Barrier>(barrier);
  b->bytes += bytes, b->pending -= 1;
  b->advance();
}
inline void arrive(uint32_t barrier) { arrive_expecting(barrier, 0); }
inline void wait_for(uint32_t barrier, int parity) {
  emulator::wait_until([=] { return emulator::at_shared<emulator::Barrier>(barrier)->phase != parity; });
}

inline void prefetch_map(const TensorMap&) {}
inline void copy_box(uint32_t to, const TensorMap& map, uint32_t barrier, int x, int y, int z) {
  emulator::beside.push_back([=] {
    write_box(map, emulator::at_shared<char>(to), to, x, y, z);
    auto* b = emulator::at_shared<emulator::Barrier>(barrier);
    b->bytes -= map.box_rows * kBoxBytes;
    b->advance();
  });
}

template <int kEach>
void give_registers() {}
template <int kEach>
void take_registers() {}

}  // namespace btr::cuda
