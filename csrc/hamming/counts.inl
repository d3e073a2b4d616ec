// Distances of rows of a to 64 rows of b at once by AVX-512's population count (VPOPCNTDQ), a register of 64-bit words
// of 8 rows. No sum ever crosses lanes: blocks of b are transposed, word by word, and a's words are broadcast.
//
// What is counted. An xor, a count and an add for every word would be 3 operations for 512 pairs of channels. Two words
// x and y of a pair and the parity s of those before them are three bits a channel: their sum is the new parity and a
// carry of weight 2, so that one count does for two words, and one more for the last parity. Both tokens are stored as
// running xors A and B of their words; then s, x and y come from three of the values p = A ^ B, the new parity is the
// third of them, and the carry is a function of the three: one vpternlog. That makes 5 operations for 1024 pairs of
// channels, one of them on the two ports that count.
//
// Cost. On four vector ports 819 pairs of channels a cycle at best; the loads, 12 for 40 operations, keep up.
// Transposing b costs as much as about 3 rows of a and is paid once for up to 512.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "core/scratch.h"

namespace btr::BTR_ISA_NAMESPACE {

constexpr int64_t kBlockRows = 64, kLanes64 = 8;
constexpr int64_t kBlockBytes = 4096;  // the widest token: a block of wider ones would leave L2
constexpr int kRowsAtOnce = 2;         // rows of a that share the loads of b
constexpr int kStep = 4;               // words: after an even number of pairs the parities are back in their registers

// Words of a token, as they are stored: whole registers. The words behind the token are 0 and leave a running xor as it
// is.
inline int64_t stored_words(int64_t w) { return (w + 63) / 64 * kLanes64; }

// The running xor of the words of a row.
inline void xor_words(const uint8_t* row, int64_t w, uint64_t* words) {
  uint64_t running = 0;
  int64_t i = 0;
  for (; i + 8 <= w; i += 8) *words++ = running ^= load_word(row + i, 8);
  if (i < w) *words++ = running ^= load_word(row + i, w - i);
  for (i = (w + 7) / 8; i % kStep; ++i) *words++ = running;
}

// 8x8 transposition of 64-bit words.
inline void transpose_words(__m512i r[8]) {
  __m512i s[8], t[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    s[i] = _mm512_unpacklo_epi64(r[i], r[i + 1]);
    s[i + 1] = _mm512_unpackhi_epi64(r[i], r[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const int at = i / 2 * 4 + i % 2;
    t[at] = _mm512_shuffle_i32x4(s[at], s[at + 2], 0x88);
    t[at + 2] = _mm512_shuffle_i32x4(s[at], s[at + 2], 0xdd);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 4], 0x88);
    r[i + 4] = _mm512_shuffle_i32x4(t[i], t[i + 4], 0xdd);
  }
}

// words[i][row]: the running xors of `count` <= 64 rows of b, 0 for those that are missing in a register.
inline void transpose_block(const Rows& b, int64_t first, int64_t count, int64_t w, uint64_t* words) {
  for (int64_t row = 0; row < count; row += kLanes64) {
    __m512i running = _mm512_setzero_si512();
    uint64_t* to = words + row;
    for (int64_t i = 0; i < w; i += 64) {
      const __mmask64 held = w - i < 64 ? (__mmask64(1) << (w - i)) - 1 : ~__mmask64(0);
      __m512i r[8];
#pragma GCC unroll 8
      for (int k = 0; k < 8; ++k)
        r[k] = row + k < count ? _mm512_maskz_loadu_epi8(held, b.row(first + row + k) + i) : _mm512_setzero_si512();
      transpose_words(r);
#pragma GCC unroll 8
      for (int k = 0; k < 8; ++k, to += kBlockRows) _mm512_store_si512(to, running = _mm512_xor_si512(running, r[k]));
    }
  }
}

// The compiler would rather read memory again for every row of a: loads would then take longer than all else.
inline void keep_in_register(__m512i& v) {
#ifndef BTR_EMULATE_AVX512
  asm("" : "+v"(v));
#else
  (void)v;
#endif
}

// Distances of two rows of a to 8 * kRegisters rows of a block.
template <int kRegisters>
inline void count_block(const uint64_t* const a[kRowsAtOnce], const uint64_t* words, int64_t count,
                        int32_t* const out[kRowsAtOnce]) {
  __m512i parity[kRegisters][kRowsAtOnce], carries[kRegisters][kRowsAtOnce];
#pragma GCC unroll 4
  for (int r = 0; r < kRegisters; ++r)
#pragma GCC unroll 2
    for (int row = 0; row < kRowsAtOnce; ++row) parity[r][row] = carries[r][row] = _mm512_setzero_si512();
  for (int64_t i = 0; i < count; i += kStep, words += kStep * kBlockRows)
#pragma GCC unroll 4
    for (int r = 0; r < kRegisters; ++r)
#pragma GCC unroll 2
      for (int k = 0; k < kStep; k += 2) {
        __m512i first = _mm512_load_si512(words + k * kBlockRows + r * kLanes64);
        __m512i second = _mm512_load_si512(words + (k + 1) * kBlockRows + r * kLanes64);
        keep_in_register(first);
        keep_in_register(second);
#pragma GCC unroll 2
        for (int row = 0; row < kRowsAtOnce; ++row) {
          const __m512i x = _mm512_xor_si512(first, _mm512_set1_epi64(int64_t(a[row][i + k])));
          const __m512i y = _mm512_xor_si512(second, _mm512_set1_epi64(int64_t(a[row][i + k + 1])));
          // The majority of s, s ^ x and x ^ y, where s is the parity; x goes first since it is not needed any more.
          const __m512i carry = _mm512_ternarylogic_epi64(x, parity[r][row], y, 0x5c);
          parity[r][row] = y;
          carries[r][row] = _mm512_add_epi64(carries[r][row], _mm512_popcnt_epi64(carry));
        }
      }
#pragma GCC unroll 4
  for (int r = 0; r < kRegisters; ++r)
#pragma GCC unroll 2
    for (int row = 0; row < kRowsAtOnce; ++row) {
      const __m512i twice = _mm512_add_epi64(carries[r][row], carries[r][row]);
      const __m512i sum = _mm512_add_epi64(twice, _mm512_popcnt_epi64(parity[r][row]));
      _mm256_store_si256(reinterpret_cast<__m256i*>(out[row] + r * kLanes64), _mm512_maskz_cvtepi64_epi32(0xff, sum));
    }
}

// The first `count` of the 16 distances from `first` on.
inline __mmask16 held_of(int64_t count, int64_t first) {
  const int64_t held = count - first;
  return held >= 16 ? __mmask16(0xffff) : held <= 0 ? __mmask16(0) : __mmask16((1u << held) - 1);
}

// Bit j: block[j] < bound, for j < count <= 64; the block has room for 64.
inline uint64_t below(const int32_t* block, int64_t count, int64_t bound) {
  const __m512i limit = _mm512_set1_epi32(int32_t(bound));
  uint64_t bits = 0;
#pragma GCC unroll 4
  for (int j = 0; j < kBlockRows; j += 16)
    bits |= uint64_t(_mm512_mask_cmplt_epi32_mask(held_of(count, j), _mm512_load_si512(block + j), limit)) << j;
  return bits;
}

inline int64_t least_of(const int32_t* block, int64_t count) {
  __m512i least = _mm512_set1_epi32(INT32_MAX);
#pragma GCC unroll 4
  for (int j = 0; j < kBlockRows; j += 16)
    least = _mm512_mask_min_epi32(least, held_of(count, j), least, _mm512_load_si512(block + j));
  return _mm512_reduce_min_epi32(least);
}

// Writes `count` <= 64 distances to `to`; whole blocks past the caches, if `streaming`.
inline void write_distances(const int32_t* block, int64_t count, int32_t* to, bool streaming) {
  if (count < kBlockRows) {
    for (int64_t j = 0; j < count; ++j) to[j] = block[j];
    return;
  }
  const bool lines = streaming && reinterpret_cast<uintptr_t>(to) % 64 == 0;
#pragma GCC unroll 4
  for (int64_t j = 0; j < kBlockRows; j += 16) {
    const __m512i distances = _mm512_load_si512(block + j);
    if (lines)
      _mm512_stream_si512(reinterpret_cast<__m512i*>(to + j), distances);
    else
      _mm512_storeu_si512(to + j, distances);
  }
}

// for_each_block (block.inl).
template <class Use>
inline void distances_by_blocks(const Rows& a, const Rows& b, int64_t w, Use&& use) {
  constexpr int64_t kMostRows = 512, kLeastRows = 16, kRowBytes = 256 * 1024;
  const int64_t stored = stored_words(w), count = (w + 8 * kStep - 1) / (8 * kStep) * kStep;
  int64_t at_once = kRowBytes / (stored * int64_t(sizeof(uint64_t))) / kRowsAtOnce * kRowsAtOnce;
  at_once = at_once < kLeastRows ? kLeastRows : at_once < kMostRows ? at_once : kMostRows;
  if (at_once > a.count) at_once = a.count;
  Scratch scratch;
  uint64_t* words = scratch.get<uint64_t>(stored * kBlockRows);
  uint64_t* rows_of_a = scratch.get<uint64_t>(at_once * stored);
  alignas(64) int32_t distances[kRowsAtOnce][kBlockRows] = {};
  for (int64_t i = 0; i < a.count; i += at_once) {
    const int64_t rows = a.count - i < at_once ? a.count - i : at_once;
    for (int64_t row = 0; row < rows; ++row) xor_words(a.row(i + row), w, rows_of_a + row * stored);
    for (int64_t j = 0; j < b.count; j += kBlockRows) {
      const int64_t held = b.count - j < kBlockRows ? b.count - j : kBlockRows;
      transpose_block(b, j, held, w, words);
      for (int64_t row = 0; row < rows; row += kRowsAtOnce) {
        const uint64_t* const first = rows_of_a + row * stored;
        const uint64_t* const two[] = {first, row + 1 < rows ? first + stored : first};
        for (int64_t c = 0; c < held; c += 4 * kLanes64) {
          const auto block = held - c > 3 * kLanes64   ? count_block<4>
                             : held - c > 2 * kLanes64 ? count_block<3>
                             : held - c > kLanes64     ? count_block<2>
                                                       : count_block<1>;
          int32_t* const out[] = {distances[0] + c, distances[1] + c};
          block(two, words + c, count, out);
        }
        for (int64_t k = 0; k < kRowsAtOnce && row + k < rows; ++k)
          use(i + row + k, j, held, static_cast<const int32_t*>(distances[k]));
      }
    }
  }
}

}  // namespace btr::BTR_ISA_NAMESPACE
