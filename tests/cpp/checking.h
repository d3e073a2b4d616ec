// What the programs that check kernels share: counting, exact buffers, random values.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <random>
#include <string>

namespace btr {

inline int passed = 0, failed = 0;
inline std::mt19937_64 random_bits(20231);

inline void expect(bool ok, const std::string& what) {
  ok ? ++passed : ++failed;
  if (!ok) std::printf("FAILED %s\n", what.c_str());
}

// A heap block without slack, so that one element too far is an error.
template <typename T>
std::unique_ptr<T[]> exact(int64_t count) {
  return std::unique_ptr<T[]>(new T[size_t(count)]);
}

inline std::unique_ptr<uint8_t[]> random_bytes(int64_t count) {
  auto bytes = exact<uint8_t>(count);
  for (int64_t i = 0; i < count; ++i) bytes[size_t(i)] = uint8_t(random_bits());
  return bytes;
}

inline std::unique_ptr<float[]> random_floats(int64_t count) {
  std::normal_distribution<float> normal;
  auto values = exact<float>(count);
  for (int64_t i = 0; i < count; ++i) values[size_t(i)] = normal(random_bits);
  return values;
}

inline bool bit(const uint8_t* bits, int64_t c) { return bits[c / 8] >> (c % 8) & 1; }

inline bool close(float a, double b, double tolerance) { return std::fabs(a - b) <= tolerance * (1 + std::fabs(b)); }

// Of the projections, in check_matmul.cpp, on the instruction set in use.
void check_projections(const std::string& isa);

}  // namespace btr
