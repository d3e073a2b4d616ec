// Where passages lie among rows, and the walk over the tokens of a slot. Values in memory are not trusted: whatever
// offsets, lengths and slots hold, rows stay within their tensor.
#pragma once

#include <cstdint>

#include "cuda/grid.cuh"
#include "cuda/launchers.h"

namespace btr::cuda {

constexpr unsigned kAllLanes = 0xffffffffu;

__host__ __device__ __forceinline__ int64_t clamped(int64_t value, int64_t low, int64_t high) {
  return value < low ? low : value > high ? high : value;
}

__device__ __forceinline__ int64_t integer(const BtrIntegers& values, int64_t i) {
  return values.wide ? static_cast<const int64_t*>(values.data)[i] : static_cast<const int32_t*>(values.data)[i];
}

struct Range {
  int64_t begin, rows;
};

// Rows of a passage: `rows_each` of them, or those between its offsets among `total`.
__device__ __forceinline__ Range passage_rows(const BtrIntegers& offsets, int64_t rows_each, int64_t total,
                                              int64_t passage) {
  if (!offsets.data) return {passage * rows_each, rows_each};
  const int64_t begin = clamped(integer(offsets, passage), 0, total);
  return {begin, clamped(integer(offsets, passage + 1), begin, total) - begin};
}

// The last number below `count` that holds(i), as all before it do; 0 if none does.
template <typename Holds>
__device__ __forceinline__ int64_t last_that(int64_t count, Holds holds) {
  int64_t low = 0, high = count;
  while (low + 1 < high) {
    const int64_t middle = (low + high) / 2;
    if (holds(middle)) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

// Calls use(token) for the tokens of a passage that go to a slot, in order. The lanes of a warp call it together.
template <typename Use>
__device__ __forceinline__ void tokens_of_slot(const int32_t* slots, int64_t tokens, int64_t slot, Use use) {
  constexpr int kLoads = 4;  // under way at a time
  const int lane = threadIdx.x % 32;
  for (int64_t first = 0; first < tokens; first += 32 * kLoads) {
    bool here[kLoads];
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      const int64_t token = first + 32 * u + lane;
      here[u] = token < tokens && slots[token] == slot;
    }
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      for (unsigned found = __ballot_sync(kAllLanes, here[u]); found; found &= found - 1) {
        use(first + 32 * u + __ffs(static_cast<int>(found)) - 1);
      }
    }
  }
}

// The majority of a slot's tokens as packed bits, by one warp: each token counts size times, a tie takes the bit of the
// first one. W, uint32_t or uint8_t, is what a lane holds of a row: its channels are counted in registers. Null sizes
// count as 1.
template <typename W>
__device__ __forceinline__ void vote(const W* bits, int64_t words, const int32_t* slots, const int32_t* sizes,
                                     int64_t tokens, int64_t slot, W* out) {
  constexpr int kChannels = 8 * sizeof(W);
  const int lane = threadIdx.x % 32;
  for (int64_t first_word = 0; first_word < words; first_word += 32) {
    const int64_t word = first_word + lane;
    int32_t ones[kChannels], total = 0;
    uint32_t tie = 0;
    bool any = false;
#pragma unroll
    for (int i = 0; i < kChannels; ++i) ones[i] = 0;
    tokens_of_slot(slots, tokens, slot, [&](int64_t token) {
      const uint32_t held = word < words ? bits[token * words + word] : 0;
      const int32_t size = sizes ? sizes[token] : 1;
      if (!any) tie = held;
      any = true;
      total += size;
#pragma unroll
      for (int i = 0; i < kChannels; ++i) ones[i] += held >> i & 1 ? size : 0;
    });
    uint32_t majority = 0;
#pragma unroll
    for (int i = 0; i < kChannels; ++i) {
      const int32_t zeros = total - ones[i];
      majority |= (ones[i] == zeros ? tie >> i & 1 : ones[i] > zeros ? 1u : 0u) << i;
    }
    if (word < words) out[word] = static_cast<W>(total > 0 ? majority : 0);
  }
}

}  // namespace btr::cuda
