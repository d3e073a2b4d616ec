// Distances of rows of a to 128 rows of b at once by 16-entry lookup tables, for instruction sets with AVX2.
//
// What is summed. Cut both tokens into nibbles v of a and x of b, and let odd() be the parity of a nibble. Then
//   f(v, x) = (popcount(v ^ x) + odd(v) - odd(x)) / 2   is 0, 1 or 2,
//   distance(a, b) = 2 * sum of f - sum of odd(v) + sum of odd(x),
// and the last two sums belong to one token each. For two rows of a the byte f(v0, x) + 16 * f(v1, x), as a table over
// x, is one of 256 tables of 16 bytes: one byte shuffle of a register of 32 x's looks up 4 channels of 64 pairs.
//
// Widths. The halves of a byte hold 7 lookups (14 of 15); their sum s is added to `low` as it is and to `high` after a
// 16-bit shift by 4, both modulo 256. The odd byte of `high` is then the second row's exact sum, which from there on
// gives the other three of its 16-bit lane one by one. 18 such steps (252 of 255) are widened to 16 bits; a
// distance is below 65536 as long as w <= kBlockBytes.
//
// Cost. 16 vector operations, of which 8 on the two shuffle ports, for 7 nibbles of 64 pairs, so at best 448 pairs of
// channels a cycle on four vector ports and 410 with the two loads a cycle that fetch 5 vectors for 4 lookups; POPCNT
// takes an xor, a count and an add for 64. Transposing b into nibbles costs about 15 cycles a row of 96 bytes, paid
// once for up to 256 rows of a.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "core/scratch.h"

namespace btr::BTR_ISA_NAMESPACE {

constexpr int64_t kTableColumns = 128;  // rows of b in a block
constexpr int64_t kBlockBytes = 8191;   // widest token
constexpr int kStep = 7, kStepsWidened = 18;

struct PairTables {
  alignas(64) uint8_t entry[256][16];
};

constexpr int odd(int nibble) { return 0x6996 >> nibble & 1; }

constexpr int half_distance(int v, int x) {
  int ones = 0;
  for (int k = 0; k < 4; ++k) ones += (v ^ x) >> k & 1;
  return (ones + odd(v) - odd(x)) / 2;
}

constexpr PairTables make_pair_tables() {
  PairTables tables{};
  for (int v = 0; v < 256; ++v)
    for (int x = 0; x < 16; ++x)
      tables.entry[v][x] = uint8_t(half_distance(v & 15, x) + 16 * half_distance(v >> 4, x));
  return tables;
}

static constexpr PairTables kPairTables = make_pair_tables();

// Tokens are taken in chunks of bytes whose transposed block of b stays in L1.
struct TableChunks {
  static constexpr int64_t kMost = 128;
  int64_t bytes, count;

  explicit TableChunks(int64_t w) {
    constexpr int64_t kColumn = 32;
    count = (w + kMost - 1) / kMost;
    bytes = ((w + count - 1) / count + kColumn - 1) / kColumn * kColumn;
    count = (w + bytes - 1) / bytes;
  }
  int64_t bytes_of(int64_t chunk, int64_t w) const { return chunk + 1 < count ? bytes : w - chunk * bytes; }
  static int64_t steps(int64_t bytes) { return (2 * bytes + kStep - 1) / kStep; }
};

// Number of nibbles of a row that have an odd number of ones.
inline int64_t odd_nibbles(const uint8_t* row, int64_t w) {
  const __m256i low = _mm256_set1_epi8(0x0f), zero = _mm256_setzero_si256();
  __m256i total = zero;
  for (int64_t i = 0; i < w;) {
    __m256i counts = zero;  // of both nibbles of a byte, up to 15
    for (int n = 0; n < 15 && i < w; ++n, i += 32) {
      __m256i x = zero;
      if (i + 32 <= w)
        x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + i));
      else
        std::memcpy(&x, row + i, size_t(w - i));
      x = _mm256_xor_si256(x, _mm256_srli_epi16(x, 2));
      x = _mm256_xor_si256(x, _mm256_srli_epi16(x, 1));
      counts = _mm256_add_epi8(counts, _mm256_and_si256(x, _mm256_set1_epi8(0x11)));
    }
    const __m256i both = _mm256_add_epi8(_mm256_and_si256(counts, low),
                                         _mm256_and_si256(_mm256_srli_epi16(counts, 4), low));
    total = _mm256_add_epi64(total, _mm256_sad_epu8(both, zero));
  }
  const __m128i half = _mm_add_epi64(_mm256_castsi256_si128(total), _mm256_extracti128_si256(total, 1));
  return _mm_cvtsi128_si64(half) + _mm_extract_epi64(half, 1);
}

// Byte offsets into kPairTables of the nibbles of rows a0 and a1, with zeros up to a whole step.
inline void index_pair(const uint8_t* a0, const uint8_t* a1, int64_t bytes, uint16_t* index) {
  const __m256i low = _mm256_set1_epi8(0x0f), zero = _mm256_setzero_si256();
  int64_t i = 0;
  for (; i + 32 <= bytes; i += 32) {
    const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a0 + i));
    const __m256i y = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a1 + i));
    const __m256i first = _mm256_or_si256(_mm256_and_si256(x, low), _mm256_slli_epi16(_mm256_and_si256(y, low), 4));
    const __m256i second = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(x, 4), low), _mm256_andnot_si256(low, y));
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const __m256i v = half ? _mm256_unpackhi_epi8(first, second) : _mm256_unpacklo_epi8(first, second);
      const __m256i front = _mm256_srli_epi16(_mm256_unpacklo_epi8(zero, v), 4);
      const __m256i back = _mm256_srli_epi16(_mm256_unpackhi_epi8(zero, v), 4);
      auto* to = reinterpret_cast<__m256i*>(index + 2 * i + 16 * half);
      _mm256_storeu_si256(to, _mm256_permute2x128_si256(front, back, 0x20));
      _mm256_storeu_si256(to + 2, _mm256_permute2x128_si256(front, back, 0x31));
    }
  }
  for (; i < bytes; ++i) {
    index[2 * i] = uint16_t((a0[i] & 0x0f) << 4 | (a1[i] & 0x0f) << 8);
    index[2 * i + 1] = uint16_t((a0[i] & 0xf0) | (a1[i] & 0xf0) << 4);
  }
  for (i = 2 * bytes; i < TableChunks::steps(bytes) * kStep; ++i) index[i] = 0;
}

// 8x8 transposition of 16-bit values in each half of the registers.
inline void transpose_halves(__m256i r[8]) {
  __m256i s[8], t[8];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    s[2 * i] = _mm256_unpacklo_epi16(r[2 * i], r[2 * i + 1]);
    s[2 * i + 1] = _mm256_unpackhi_epi16(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const int at = i / 2 * 4 + i % 2;
    t[i / 2 * 4 + i % 2 * 2] = _mm256_unpacklo_epi32(s[at], s[at + 2]);
    t[i / 2 * 4 + i % 2 * 2 + 1] = _mm256_unpackhi_epi32(s[at], s[at + 2]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[2 * i] = _mm256_unpacklo_epi64(t[i], t[i + 4]);
    r[2 * i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 4]);
  }
}

// The nibbles of 32 rows x 32 bytes, of which `bytes` are wanted: byte i's low ones at out[2 * i * step] and its high
// ones a step later, 32 bytes each. Rows r and 16 + r lie in the halves of a 16-bit lane.
inline void transpose_nibbles(const uint8_t* rows, int64_t stride, int64_t bytes, uint8_t* out, int64_t step) {
  const __m256i low = _mm256_set1_epi8(0x0f);
  const auto load = [&](int r) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows + r * stride)); };
  const auto store = [&](int64_t i, __m256i v) {
    if (i >= bytes) return;
    uint8_t* at = out + 2 * i * step;
    _mm256_store_si256(reinterpret_cast<__m256i*>(at), _mm256_and_si256(v, low));
    _mm256_store_si256(reinterpret_cast<__m256i*>(at + step), _mm256_and_si256(_mm256_srli_epi16(v, 4), low));
  };
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    __m256i r[2][8];
#pragma GCC unroll 2
    for (int set = 0; set < 2; ++set) {
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) {
        const __m256i x = load(8 * set + i), y = load(16 + 8 * set + i);
        r[set][i] = half ? _mm256_unpackhi_epi8(x, y) : _mm256_unpacklo_epi8(x, y);
      }
      transpose_halves(r[set]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      store(8 * half + i, _mm256_permute2x128_si256(r[0][i], r[1][i], 0x20));
      store(16 + 8 * half + i, _mm256_permute2x128_si256(r[0][i], r[1][i], 0x31));
    }
  }
}

// The nibbles of `count` rows of b, as transpose_nibbles leaves them, in one to four registers a nibble: rows
// that are missing and nibbles up to a whole step are 0.
inline void transpose_block(const uint8_t* b, int64_t stride, int64_t count, int64_t bytes, uint8_t* block) {
  const int64_t registers = (count + 31) / 32, step = 32 * registers;
  for (int64_t r = 0; r < registers; ++r)
    for (int64_t i = 0; i < bytes; i += 32) {
      const uint8_t* rows = b + 32 * r * stride + i;
      const int64_t held = count - 32 * r < 32 ? count - 32 * r : 32, wide = bytes - i < 32 ? bytes - i : 32;
      uint8_t* out = block + 2 * i * step + 32 * r;
      if (held == 32 && wide == 32) {
        transpose_nibbles(rows, stride, wide, out, step);
        continue;
      }
      alignas(32) uint8_t part[32][32] = {};
      for (int64_t row = 0; row < held; ++row) std::memcpy(part[row], rows + row * stride, size_t(wide));
      transpose_nibbles(part[0], 32, wide, out, step);
    }
  const int64_t used = 2 * bytes * step, all = TableChunks::steps(bytes) * kStep * step;
  std::memset(block + used, 0, size_t(all - used));
}

// Adds twice the sums of a chunk of a pair of rows to out[2][128], which starts (at the first chunk) with what the odd
// nibbles of both tokens contribute.
template <int kRegisters>
inline void add_distances(const uint16_t* index, const uint8_t* block, int64_t steps, bool first, const uint16_t* odd_a,
                          const uint16_t* odd_b, uint16_t* out) {
  const __m256i byte = _mm256_set1_epi16(0xff), zero = _mm256_setzero_si256();
  const int64_t parts = (steps + kStepsWidened - 1) / kStepsWidened;
  for (int64_t part = 0, at = 0; part < parts; ++part) {
    __m256i low[kRegisters], high[kRegisters];
    for (int r = 0; r < kRegisters; ++r) low[r] = high[r] = zero;
    for (const int64_t stop = steps * (part + 1) / parts; at < stop; ++at) {
      const uint8_t* nibbles = block + at * kStep * kRegisters * 32;
      __m256i sum[kRegisters];
#pragma GCC unroll 7
      for (int g = 0; g < kStep; ++g) {
        const uint8_t* entry = kPairTables.entry[0] + index[at * kStep + g];
        const __m256i table = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(entry)));
#pragma GCC unroll 4
        for (int r = 0; r < kRegisters; ++r) {
          const auto* x = reinterpret_cast<const __m256i*>(nibbles + (g * kRegisters + r) * 32);
          const __m256i found = _mm256_shuffle_epi8(table, _mm256_load_si256(x));
          sum[r] = g ? _mm256_add_epi8(sum[r], found) : found;
          asm("" : "+x"(sum[r]));  // one chain: the compiler would add in a tree and spill its leaves
        }
      }
#pragma GCC unroll 4
      for (int r = 0; r < kRegisters; ++r) {
        low[r] = _mm256_add_epi8(low[r], sum[r]);
        high[r] = _mm256_add_epi8(high[r], _mm256_srli_epi16(sum[r], 4));
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRegisters; ++r) {
      // Row and byte of the lane: second odd, first odd, second even, first even.
      const __m256i s1 = _mm256_srli_epi16(high[r], 8);
      const __m256i f1 = _mm256_and_si256(_mm256_sub_epi16(_mm256_srli_epi16(low[r], 8), _mm256_slli_epi16(s1, 4)), byte);
      const __m256i s0 = _mm256_and_si256(_mm256_sub_epi16(high[r], _mm256_slli_epi16(f1, 4)), byte);
      const __m256i f0 = _mm256_and_si256(_mm256_sub_epi16(low[r], _mm256_slli_epi16(s0, 4)), byte);
      const __m256i sums[4] = {f0, f1, s0, s1};
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) {
        const int64_t column = r * 32 + k % 2 * 16;
        auto* to = reinterpret_cast<__m256i*>(out + k / 2 * kTableColumns + column);
        const auto* odd = reinterpret_cast<const __m256i*>(odd_b + column);
        const __m256i so_far = first && part == 0
                                   ? _mm256_sub_epi16(_mm256_load_si256(odd), _mm256_set1_epi16(int16_t(odd_a[k / 2])))
                                   : _mm256_load_si256(to);
        _mm256_store_si256(to, _mm256_add_epi16(so_far, _mm256_add_epi16(sums[k], sums[k])));
      }
    }
  }
}

// Bit j: block[j] < bound, for all 64 distances.
inline uint64_t below(const uint16_t* block, int64_t, int64_t bound) {
  const __m256i limit = _mm256_set1_epi16(int16_t(bound < 0xffff ? bound : 0xffff)), zero = _mm256_setzero_si256();
  const auto* v = reinterpret_cast<const __m256i*>(block);
  uint64_t bits = 0;
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const __m256i first = _mm256_cmpeq_epi16(_mm256_subs_epu16(limit, _mm256_load_si256(v + 2 * i)), zero);
    const __m256i second = _mm256_cmpeq_epi16(_mm256_subs_epu16(limit, _mm256_load_si256(v + 2 * i + 1)), zero);
    const __m256i bytes = _mm256_permute4x64_epi64(_mm256_packs_epi16(first, second), 0xd8);
    bits |= uint64_t(uint32_t(~_mm256_movemask_epi8(bytes))) << 32 * i;
  }
  return bits;
}

// The least of 64 distances.
inline int64_t least_of(const uint16_t* block, int64_t) {
  const auto* v = reinterpret_cast<const __m256i*>(block);
  const __m256i least = _mm256_min_epu16(_mm256_min_epu16(_mm256_load_si256(v), _mm256_load_si256(v + 1)),
                                         _mm256_min_epu16(_mm256_load_si256(v + 2), _mm256_load_si256(v + 3)));
  const __m128i half = _mm_min_epu16(_mm256_castsi256_si128(least), _mm256_extracti128_si256(least, 1));
  return uint16_t(_mm_extract_epi16(_mm_minpos_epu16(half), 0));
}

// Writes `count` <= 64 distances to `to`; whole blocks past the caches, if `streaming`.
inline void write_distances(const uint16_t* block, int64_t count, int32_t* to, bool streaming) {
  constexpr int64_t kBlock = 64, kLanes = 8;
  if (count < kBlock) {
    for (int64_t j = 0; j < count; ++j) to[j] = block[j];
    return;
  }
  const bool lines = streaming && reinterpret_cast<uintptr_t>(to) % 32 == 0;
#pragma GCC unroll 8
  for (int64_t j = 0; j < kBlock; j += kLanes) {
    const auto* from = reinterpret_cast<const __m128i*>(block + j);
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_load_si128(from));
    if (lines)
      _mm256_stream_si256(reinterpret_cast<__m256i*>(to + j), wide);
    else
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + j), wide);
  }
}

// use(i, j, count, block) for every row i of a and 64 of b's rows from j on: `count` <= 64 distances, filled up with
// 0xffff. For one i, j ascends.
template <class Use>
inline void distances_by_blocks(const Rows& a, const Rows& b, int64_t w, Use&& use) {
  constexpr int64_t kMostRows = 256, kLeastRows = 16, kIndexBytes = 256 * 1024;
  const TableChunks chunks(w);
  const int64_t steps = TableChunks::steps(chunks.bytes), index_size = chunks.count * steps * kStep;
  int64_t at_once = kIndexBytes / index_size / 2 * 2;
  at_once = at_once < kLeastRows ? kLeastRows : at_once < kMostRows ? at_once : kMostRows;
  if (at_once > a.count) at_once = (a.count + 1) / 2 * 2;

  // On the stack what always fits: allocations count when a passage takes microseconds.
  constexpr int64_t kMostSteps = (2 * TableChunks::kMost + kStep - 1) / kStep;
  alignas(64) uint8_t block[kMostSteps * kStep * kTableColumns];
  alignas(64) uint16_t odd_b[kTableColumns], missing[kTableColumns], odd_a[kMostRows], pair_distances[2 * kTableColumns];
  Scratch scratch;
  uint16_t* index = scratch.get<uint16_t>(at_once / 2 * index_size);
  uint16_t* distances = chunks.count > 1 ? scratch.get<uint16_t>(at_once * kTableColumns) : pair_distances;
  for (int64_t i = 0; i < a.count; i += at_once) {
    const int64_t rows = a.count - i < at_once ? a.count - i : at_once, pairs = (rows + 1) / 2;
    for (int64_t p = 0; p < pairs; ++p) {
      const uint8_t* first = a.row(i + 2 * p);
      const uint8_t* second = 2 * p + 1 < rows ? a.row(i + 2 * p + 1) : first;
      odd_a[2 * p] = uint16_t(odd_nibbles(first, w));
      odd_a[2 * p + 1] = uint16_t(odd_nibbles(second, w));
      for (int64_t c = 0; c < chunks.count; ++c)
        index_pair(first + c * chunks.bytes, second + c * chunks.bytes, chunks.bytes_of(c, w),
                   index + p * index_size + c * steps * kStep);
    }
    for (int64_t j = 0; j < b.count; j += kTableColumns) {
      const int64_t count = b.count - j < kTableColumns ? b.count - j : kTableColumns;
      for (int64_t column = 0; column < kTableColumns; ++column) {
        odd_b[column] = column < count ? uint16_t(odd_nibbles(b.row(j + column), w)) : 0;
        missing[column] = column < count ? 0 : 0xffff;
      }
      for (int64_t c = 0; c < chunks.count; ++c) {
        const int64_t bytes = chunks.bytes_of(c, w), chunk_steps = TableChunks::steps(bytes);
        transpose_block(b.row(j) + c * chunks.bytes, b.stride, count, bytes, block);
        for (int64_t p = 0; p < pairs; ++p) {
          uint16_t* out = distances + (chunks.count > 1 ? p * 2 * kTableColumns : 0);
          const uint16_t* pair_index = index + p * index_size + c * steps * kStep;
          const auto add = count > 96   ? add_distances<4>
                           : count > 64 ? add_distances<3>
                           : count > 32 ? add_distances<2>
                                        : add_distances<1>;
          add(pair_index, block, chunk_steps, c == 0, odd_a + 2 * p, odd_b, out);
          if (c + 1 < chunks.count) continue;
          for (int64_t row = 0; row < 2 && 2 * p + row < rows; ++row) {
            uint16_t* found = out + row * kTableColumns;
            if (count % 64)
              for (int64_t column = count / 64 * 64, t = 0; t < 64; ++t) found[column + t] |= missing[column + t];
            for (int64_t half = 0; half < count; half += 64)
              use(i + 2 * p + row, j + half, count - half < 64 ? count - half : 64, found + half);
          }
        }
      }
    }
  }
}

}  // namespace btr::BTR_ISA_NAMESPACE
