// Distance of one pair of tokens, for the hamming and merging families.
#pragma once

#include <cstdint>
#include <cstring>

namespace btr::BTR_ISA_NAMESPACE {

inline int count_ones(uint64_t v) {
#ifdef __POPCNT__
  return __builtin_popcountll(v);
#else
  v -= (v >> 1) & 0x5555555555555555;
  v = (v & 0x3333333333333333) + ((v >> 2) & 0x3333333333333333);
  v = (v + (v >> 4)) & 0x0f0f0f0f0f0f0f0f;
  return int(v * 0x0101010101010101 >> 56);
#endif
}

// Eight bytes, or the `count` that are left.
inline uint64_t load_word(const uint8_t* p, int64_t count) {
  uint64_t v = 0;
  std::memcpy(&v, p, size_t(count < 8 ? count : 8));
  return v;
}

// Distances of one a to four rows of b: a's words are loaded once, and the four counts are independent.
inline void distance_1x4(const uint8_t* a, const uint8_t* b, int64_t stride, int64_t w, int32_t out[4]) {
  int64_t sum[4] = {};
  int64_t i = 0;
  for (; i + 8 <= w; i += 8) {
    uint64_t va, vb;
    std::memcpy(&va, a + i, 8);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      std::memcpy(&vb, b + j * stride + i, 8);
      sum[j] += count_ones(va ^ vb);
    }
  }
  for (int j = 0; j < 4; ++j) {
    if (i < w) sum[j] += count_ones(load_word(a + i, w - i) ^ load_word(b + j * stride + i, w - i));
    out[j] = int32_t(sum[j]);
  }
}

inline int32_t distance_1x1(const uint8_t* a, const uint8_t* b, int64_t w) {
  int64_t sum = 0, i = 0;
  for (; i + 8 <= w; i += 8) {
    uint64_t va, vb;
    std::memcpy(&va, a + i, 8);
    std::memcpy(&vb, b + i, 8);
    sum += count_ones(va ^ vb);
  }
  if (i < w) sum += count_ones(load_word(a + i, w - i) ^ load_word(b + i, w - i));
  return int32_t(sum);
}

// Distances of one a to n rows of b, which come from memory when a is one of few: four short rows at a time are too
// many streams for the hardware to follow, so they are fetched ahead.
inline void distances_of(const uint8_t* a, const uint8_t* b, int64_t stride, int64_t n, int64_t w, int32_t* out) {
  constexpr int64_t kAhead = 4096, kLine = 64;
  int64_t j = 0;
  for (; j + 4 <= n; j += 4) {
    const uint8_t* rows = b + j * stride;
    for (int64_t i = 0; i < 4 * stride; i += kLine) __builtin_prefetch(rows + kAhead + i);
    distance_1x4(a, rows, stride, w, out + j);
  }
  for (; j < n; ++j) out[j] = distance_1x1(a, b + j * stride, w);
}

}  // namespace btr::BTR_ISA_NAMESPACE
