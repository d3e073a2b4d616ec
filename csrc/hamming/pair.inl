// Distance of one pair of tokens, for the hamming and merging families.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __ARM_NEON
#include <arm_neon.h>
#endif

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

#ifdef __ARM_NEON

// Sixteen bytes, or the `count` that are left.
inline uint8x16_t load_bytes(const uint8_t* p, int64_t count) {
  if (count >= 16) return vld1q_u8(p);
  uint8_t bytes[16] = {};
  std::memcpy(bytes, p, size_t(count));
  return vld1q_u8(bytes);
}

// Distances of one a to kRows rows of b, which share the loads of a: an xor, a count of each byte and a pairwise sum
// for every 16 bytes of a pair.
template <int kRows>
inline void distance_to_rows(const uint8_t* a, const uint8_t* b, int64_t stride, int64_t w, int32_t* out) {
  constexpr int64_t kUntilOverflow = 16 * 4000;  // bytes: each 16 add at most 16 to a lane of 16 bits
  int64_t total[kRows] = {};
  for (int64_t begin = 0; begin < w; begin += kUntilOverflow) {
    const int64_t end = w - begin < kUntilOverflow ? w : begin + kUntilOverflow;
    uint16x8_t sum[kRows];
    for (int j = 0; j < kRows; ++j) sum[j] = vdupq_n_u16(0);
    for (int64_t i = begin; i < end; i += 16) {
      const uint8x16_t ours = load_bytes(a + i, end - i);
#pragma GCC unroll 4
      for (int j = 0; j < kRows; ++j)
        sum[j] = vpadalq_u8(sum[j], vcntq_u8(veorq_u8(ours, load_bytes(b + j * stride + i, end - i))));
    }
    for (int j = 0; j < kRows; ++j) total[j] += vaddlvq_u16(sum[j]);
  }
  for (int j = 0; j < kRows; ++j) out[j] = int32_t(total[j]);
}

inline void distance_1x4(const uint8_t* a, const uint8_t* b, int64_t stride, int64_t w, int32_t out[4]) {
  distance_to_rows<4>(a, b, stride, w, out);
}

inline int32_t distance_1x1(const uint8_t* a, const uint8_t* b, int64_t w) {
  int32_t distance;
  distance_to_rows<1>(a, b, w, w, &distance);
  return distance;
}

#else

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

#endif

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
