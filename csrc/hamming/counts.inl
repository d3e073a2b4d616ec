// Distances by AVX-512's population count (VPOPCNTDQ), 16 pairs a register: for every 4 bytes of 16 pairs an xor with
// memory, a count and an add, one of each a cycle at best, so 1.5 cycles where two ports take them. No sum ever
// crosses lanes: blocks of b are transposed, word by word, and a's words are broadcast. Transposing costs about as much
// as ten rows of a.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "core/scratch.h"

namespace btr::BTR_ISA_NAMESPACE {

constexpr int kCountedRows = 64, kCountedBytes = 4, kRegisterRows = 16;

// The widest token: a block of wider ones would leave L2.
constexpr int64_t kCountBytes = 4096;

// words[i][row] = the i-th 4 bytes of row `row` of b; 0 where there are none.
inline void transpose_words(const Rows& b, int64_t first, int64_t count, int64_t w, uint32_t* words) {
  const int64_t whole = w / kCountedBytes, rest = w % kCountedBytes;
  for (int64_t r = 0; r < kCountedRows; ++r) {
    if (r >= count) {
      for (int64_t i = 0; i < whole + (rest != 0); ++i) words[i * kCountedRows + r] = 0;
      continue;
    }
    const uint8_t* row = b.row(first + r);
    for (int64_t i = 0; i < whole; ++i) std::memcpy(words + i * kCountedRows + r, row + i * kCountedBytes, kCountedBytes);
    if (rest == 0) continue;
    uint32_t last = 0;
    std::memcpy(&last, row + whole * kCountedBytes, size_t(rest));
    words[whole * kCountedRows + r] = last;
  }
}

// Distances of one row of a to the first 16 * kRegisters rows of a block.
template <int kRegisters>
inline void count_block(const uint8_t* a, const uint32_t* words, int64_t w, int32_t* distances) {
  __m512i sum[kRegisters];
#pragma GCC unroll 4
  for (int r = 0; r < kRegisters; ++r) sum[r] = _mm512_setzero_si512();
  for (int64_t i = 0; i < w; i += kCountedBytes, words += kCountedRows) {
    uint32_t word = 0;
    std::memcpy(&word, a + i, size_t(w - i < kCountedBytes ? w - i : kCountedBytes));
    const __m512i ours = _mm512_set1_epi32(int32_t(word));
#pragma GCC unroll 4
    for (int r = 0; r < kRegisters; ++r) {
      const __m512i theirs = _mm512_load_si512(words + r * kRegisterRows);
      sum[r] = _mm512_add_epi32(sum[r], _mm512_popcnt_epi32(_mm512_xor_si512(ours, theirs)));
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRegisters; ++r) _mm512_storeu_si512(distances + r * kRegisterRows, sum[r]);
}

inline __mmask16 first_of(int64_t count) {
  return count >= kRegisterRows ? __mmask16(0xffff) : __mmask16((1u << count) - 1);
}

// Bit j: block[j] < bound, for j < count <= 64.
inline uint64_t below(const int32_t* block, int64_t count, int64_t bound) {
  const __m512i limit = _mm512_set1_epi32(int32_t(bound));
  uint64_t bits = 0;
  for (int64_t j = 0; j < count; j += kRegisterRows) {
    const __mmask16 held = first_of(count - j);
    bits |= uint64_t(_mm512_mask_cmplt_epi32_mask(held, _mm512_maskz_loadu_epi32(held, block + j), limit)) << j;
  }
  return bits;
}

inline int64_t least_of(const int32_t* block, int64_t count) {
  __m512i least = _mm512_set1_epi32(INT32_MAX);
  for (int64_t j = 0; j < count; j += kRegisterRows) {
    const __mmask16 held = first_of(count - j);
    least = _mm512_mask_min_epi32(least, held, least, _mm512_maskz_loadu_epi32(held, block + j));
  }
  return _mm512_reduce_min_epi32(least);
}

// for_each_block (block.inl), whose distances are of 32 bits here.
template <class Use>
inline void distances_by_counts(const Rows& a, const Rows& b, int64_t w, Use&& use) {
  Scratch scratch;
  uint32_t* words = scratch.get<uint32_t>((w + kCountedBytes - 1) / kCountedBytes * kCountedRows);
  alignas(64) int32_t distances[kCountedRows];
  for (int64_t j = 0; j < b.count; j += kCountedRows) {
    const int64_t count = b.count - j < kCountedRows ? b.count - j : kCountedRows;
    transpose_words(b, j, count, w, words);
    const auto block = count > 48   ? count_block<4>
                       : count > 32 ? count_block<3>
                       : count > 16 ? count_block<2>
                                    : count_block<1>;
    for (int64_t i = 0; i < a.count; ++i) {
      block(a.row(i), words, w, distances);
      use(i, j, count, static_cast<const int32_t*>(distances));
    }
  }
}

}  // namespace btr::BTR_ISA_NAMESPACE
