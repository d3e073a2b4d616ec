// Distances of all rows of a to all rows of b, a block at a time and never all in memory, for the hamming and
// merging families.
#pragma once

#include "core/scratch.h"
#include "core/tuning.h"
#include "hamming/pair.inl"

namespace btr::BTR_ISA_NAMESPACE {

// `count` tokens, `stride` bytes apart.
struct Rows {
  const uint8_t* data;
  int64_t count, stride;
  const uint8_t* row(int64_t i) const { return data + i * stride; }
};

}  // namespace btr::BTR_ISA_NAMESPACE

#if defined(__AVX512VPOPCNTDQ__)
#include "hamming/counts.inl"
#elif defined(__AVX2__)
#include "hamming/tables.inl"
#endif

namespace btr::BTR_ISA_NAMESPACE {

#ifndef __AVX512VPOPCNTDQ__
// Bit j: block[j] < bound, for j < count <= 64.
inline uint64_t below(const int32_t* block, int64_t count, int64_t bound) {
  uint64_t bits = 0;
  for (int64_t j = 0; j < count; ++j) bits |= uint64_t(block[j] < bound) << j;
  return bits;
}

inline int64_t least_of(const int32_t* block, int64_t count) {
  int32_t least = block[0];
  for (int64_t j = 1; j < count; ++j) least = block[j] < least ? block[j] : least;
  return least;
}

inline void write_distances(const int32_t* block, int64_t count, int32_t* to, bool) {
  for (int64_t j = 0; j < count; ++j) to[j] = block[j];
}
#endif

// use(i, j, count, distances) for every row i of a and blocks of 1 <= count <= 64 rows of b from row j on: distances
// of 16 or of 32 bits, for which there are `below`, `least_of` and `write_distances`. For one i, j ascends.
template <class Use>
inline void for_each_block(const Rows& a, const Rows& b, int64_t w, Use&& use) {
#ifdef __AVX2__
  if (a.count >= tuning().hamming_table_rows && b.count >= tuning().hamming_table_columns && w <= kBlockBytes)
    return distances_by_blocks(a, b, w, use);
#endif
  // Rows of b that stay in L1 while all rows of a pass over them.
  constexpr int64_t kMost = 64, kBytes = 16 * 1024;
  const int64_t fit = kBytes / w / 4 * 4, block = fit < 4 ? 4 : fit < kMost ? fit : kMost;
  alignas(64) int32_t distances[kMost] = {};  // whole registers are read
  for (int64_t j = 0; j < b.count; j += block) {
    const int64_t count = b.count - j < block ? b.count - j : block;
    for (int64_t i = 0; i < a.count; ++i) {
      distances_of(a.row(i), b.row(j), b.stride, count, w, distances);
      use(i, j, count, static_cast<const int32_t*>(distances));
    }
  }
}

}  // namespace btr::BTR_ISA_NAMESPACE
