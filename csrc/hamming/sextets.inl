// Distances of rows of a to 256 rows of b at once by 64-entry lookup tables, for AVX-512 with VBMI.
//
// What is summed. Cut both tokens into sextets v of a and x of b (6 channels), and let odd() be the parity of one. Then
//   f(v, x) = (popcount(v ^ x) + odd(v) - odd(x)) / 2   is 0, 1, 2 or 3,
//   distance(a, b) = 2 * sum of f - sum of odd(v) + sum of odd(x),
// and the last two sums belong to one token each. For two rows of a the bytes f(v0, x) + 16 * f(v1, x), as a table over
// x, fill a register, the sum of one of 64 tables for each row; a byte permutation (vpermb) then looks up 6 channels of
// 128 pairs.
//
// Widths. The halves of a byte hold 5 lookups (15 of 15); their sum s is added to `low` as it is and to `high` after a
// 16-bit shift by 4, both modulo 256. The odd byte of `high` is then the second row's exact sum, which from there on
// gives the other three of its 16-bit lane one by one. 13 such steps (195 of 255) are a part of 48 bytes, widened to 16
// bits; a distance is below 65536 as long as w <= kTableBytes.
//
// Cost. For 5 sextets of 128 pairs 12 vector operations (6 of them on the two ports for permutations and shifts), and
// 10 to build tables for four registers of b: 290 pairs of channels an operation, where an xor, a VPOPCNTDQ and an add
// do 171. Two pairs of rows of a share the loads of b: 8 loads for 8 lookups. Cutting and transposing b costs as much
// as about 8 rows of a and is paid once for up to 1024.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "core/scratch.h"

namespace btr::BTR_ISA_NAMESPACE {

constexpr int64_t kTableColumns = 256;  // rows of b in a block
constexpr int64_t kTableBytes = 8191;   // widest token
constexpr int64_t kColumns = 64;        // rows of b in a register
constexpr int kRowsAtOnce = 4;          // rows of a: two pairs

// A token is cut into parts of 48 bytes, a register of sextets each.
constexpr int64_t kPartBytes = 48, kSextets = 64;
constexpr int kStep = 5;
constexpr int64_t kPartEntries = (kSextets + kStep - 1) / kStep * kStep;

inline int64_t parts_of(int64_t w) { return (w + kPartBytes - 1) / kPartBytes; }

inline int64_t bytes_of(int64_t part, int64_t w) {
  const int64_t left = w - part * kPartBytes;
  return left < kPartBytes ? left : kPartBytes;
}

inline int64_t steps_of(int64_t bytes) { return ((8 * bytes + 5) / 6 + kStep - 1) / kStep; }

// first[v][x] = f(v, x); second[v][x] = 16 * f(v, x).
struct SextetTables {
  alignas(64) uint8_t first[64][64], second[64][64];
};

constexpr int ones(int sextet) {
  int count = 0;
  for (int k = 0; k < 6; ++k) count += sextet >> k & 1;
  return count;
}

constexpr SextetTables make_sextet_tables() {
  SextetTables tables{};
  for (int v = 0; v < 64; ++v)
    for (int x = 0; x < 64; ++x) {
      const int f = (ones(v ^ x) + ones(v) % 2 - ones(x) % 2) / 2;
      tables.first[v][x] = uint8_t(f);
      tables.second[v][x] = uint8_t(16 * f);
    }
  return tables;
}

static constexpr SextetTables kSextetTables = make_sextet_tables();

// The sextets of up to 48 bytes; those behind them are 0.
inline __m512i sextets_of(const uint8_t* from, int64_t bytes) {
  // Every 64-bit lane gets six bytes, and every byte of it the eight bits from a multiple of 6 on.
  const __m512i six = _mm512_set_epi64(0x2f2f2f2e2d2c2b2a, 0x2b2a292827262524, 0x2524232221201f1e, 0x1f1e1d1c1b1a1918,
                                       0x1918171615141312, 0x131211100f0e0d0c, 0x0d0c0b0a09080706, 0x0706050403020100);
  const __m512i shifts = _mm512_set1_epi64(0x2a241e18120c0600);
  const __m512i x = _mm512_maskz_loadu_epi8((__mmask64(1) << bytes) - 1, from);
  const __m512i fields = _mm512_multishift_epi64_epi8(shifts, _mm512_permutexvar_epi8(six, x));
  return _mm512_and_si512(fields, _mm512_set1_epi8(0x3f));
}

inline uint16_t odd_sextets(__m512i x) {
  const __mmask64 odd = _mm512_test_epi8_mask(_mm512_popcnt_epi8(x), _mm512_set1_epi8(1));
  return uint16_t(__builtin_popcountll(odd));
}

// Four rows of a as offsets into the tables, those of one place side by side: index[part][entry][row].
inline void index_rows(const uint8_t* const rows[kRowsAtOnce], int64_t w, uint16_t* index, uint16_t* odd) {
  // Unpacking works in lanes of 16 bytes: places 8j + 2l and 8j + 2l + 1 are brought to bytes 2j and 2j + 1 of lane l.
  const __m512i order = _mm512_set_epi64(0x3f3e37362f2e2726, 0x1f1e17160f0e0706, 0x3d3c35342d2c2524, 0x1d1c15140d0c0504,
                                         0x3b3a33322b2a2322, 0x1b1a13120b0a0302, 0x3938313029282120, 0x1918111009080100);
  const __m512i zero = _mm512_setzero_si512();
  for (int row = 0; row < kRowsAtOnce; ++row) odd[row] = 0;
  for (int64_t part = 0; part < parts_of(w); ++part, index += kPartEntries * kRowsAtOnce) {
    __m512i x[kRowsAtOnce];
#pragma GCC unroll 4
    for (int row = 0; row < kRowsAtOnce; ++row) {
      const __m512i sextets = sextets_of(rows[row] + part * kPartBytes, bytes_of(part, w));
      odd[row] = uint16_t(odd[row] + odd_sextets(sextets));
      x[row] = _mm512_permutexvar_epi8(order, sextets);
    }
    const __m512i front[2] = {_mm512_unpacklo_epi8(x[0], x[1]), _mm512_unpackhi_epi8(x[0], x[1])};
    const __m512i back[2] = {_mm512_unpacklo_epi8(x[2], x[3]), _mm512_unpackhi_epi8(x[2], x[3])};
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m512i four = i % 2 ? _mm512_unpackhi_epi16(front[i / 2], back[i / 2])
                                 : _mm512_unpacklo_epi16(front[i / 2], back[i / 2]);
      _mm512_storeu_si512(index + 64 * i, _mm512_slli_epi16(_mm512_unpacklo_epi8(four, zero), 6));
      _mm512_storeu_si512(index + 64 * i + 32, _mm512_slli_epi16(_mm512_unpackhi_epi8(four, zero), 6));
    }
    for (int64_t i = kSextets * kRowsAtOnce; i < kPartEntries * kRowsAtOnce; ++i) index[i] = 0;
  }
}

// Transposes the sextets of 64 rows of b, as many as `steps` need: those of one place at out[place * stride]. Row k lies
// in byte 2k and row 32 + k in byte 2k + 1, so that the sums of a register come out in order.
inline void transpose_sextets(const uint8_t (*sextets)[kSextets], int64_t steps, uint8_t* out, int64_t stride) {
  const auto load = [](const uint8_t* from) { return _mm_load_si128(reinterpret_cast<const __m128i*>(from)); };
  for (int64_t first = 0; first < steps * kStep && first < kSextets; first += 16) {
    __m512i r[16], s[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
      const uint8_t* from = sextets[i % 2 * 32 + i / 2] + first;
      __m512i lanes = _mm512_castsi128_si512(load(from));
      lanes = _mm512_inserti32x4(lanes, load(from + 8 * kSextets), 1);
      lanes = _mm512_inserti32x4(lanes, load(from + 16 * kSextets), 2);
      r[i] = _mm512_inserti32x4(lanes, load(from + 24 * kSextets), 3);
    }
    // Each pass rotates the bits of (register, byte of the lane) by one; four exchange the two.
#pragma GCC unroll 2
    for (int pass = 0; pass < 2; ++pass) {
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) {
        s[2 * i] = _mm512_unpacklo_epi8(r[i], r[i + 8]);
        s[2 * i + 1] = _mm512_unpackhi_epi8(r[i], r[i + 8]);
      }
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) {
        r[2 * i] = _mm512_unpacklo_epi8(s[i], s[i + 8]);
        r[2 * i + 1] = _mm512_unpackhi_epi8(s[i], s[i + 8]);
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) _mm512_store_si512(out + (first + i) * stride, r[i]);
  }
  for (int64_t i = kSextets; i < kPartEntries; ++i) _mm512_store_si512(out + i * stride, _mm512_setzero_si512());
}

// Transposes one part of `count` rows of b into as many registers a place as they need and adds to odd[256].
inline void transpose_block(const uint8_t* b, int64_t stride, int64_t count, int64_t bytes, uint8_t* block,
                            uint16_t* odd) {
  const int64_t registers = (count + kColumns - 1) / kColumns;
  alignas(64) uint8_t sextets[kColumns][kSextets];
  for (int64_t r = 0; r < registers; ++r) {
    for (int64_t row = 0; row < kColumns; ++row) {
      const int64_t column = r * kColumns + row;
      const __m512i x = column < count ? sextets_of(b + column * stride, bytes) : _mm512_setzero_si512();
      _mm512_store_si512(sextets[row], x);
      odd[column] = uint16_t(odd[column] + odd_sextets(x));
    }
    transpose_sextets(sextets, steps_of(bytes), block + r * kColumns, registers * kColumns);
  }
}

// What the sums of a part add to the distances of a pair of rows of a and 64 rows of b: first row's to columns 0..31,
// to 32..63, second row's likewise.
struct Sums {
  __m512i of[4];
};

inline Sums sums_of(__m512i low, __m512i high) {
  const __m512i byte = _mm512_set1_epi16(0xff);
  const auto rest = [&](__m512i all, __m512i known) {
    return _mm512_and_si512(_mm512_sub_epi16(all, _mm512_slli_epi16(known, 4)), byte);
  };
  // Row and byte of the lane: second odd, first odd, second even, first even.
  const __m512i s1 = _mm512_srli_epi16(high, 8), f1 = rest(_mm512_srli_epi16(low, 8), s1);
  const __m512i s0 = rest(high, f1), f0 = rest(low, s0);
  return {{f0, f1, s0, s1}};
}

// Adds twice the sums of a part of four rows of a to out[4][256], which the first part writes, and with the last part
// what the odd sextets of both tokens contribute.
template <int kRegisters>
inline void add_part(const uint16_t* index, const uint8_t* block, int64_t steps, bool first, bool last,
                     const uint16_t* odd_a, const uint16_t* odd_b, uint16_t* out) {
  constexpr int kPairs = kRowsAtOnce / 2;
  __m512i low[kPairs][kRegisters], high[kPairs][kRegisters];
  for (int p = 0; p < kPairs; ++p)
    for (int r = 0; r < kRegisters; ++r) low[p][r] = high[p][r] = _mm512_setzero_si512();
  for (int64_t at = 0; at < steps * kStep; at += kStep) {
    __m512i sum[kPairs][kRegisters];
#pragma GCC unroll 5
    for (int g = 0; g < kStep; ++g) {
      uint64_t offsets;  // one load for all four
      std::memcpy(&offsets, index + (at + g) * kRowsAtOnce, sizeof offsets);
      __m512i table[kPairs];
#pragma GCC unroll 2
      for (int p = 0; p < kPairs; ++p) {
        table[p] = _mm512_or_si512(_mm512_load_si512(kSextetTables.first[0] + uint16_t(offsets >> 32 * p)),
                                   _mm512_load_si512(kSextetTables.second[0] + uint16_t(offsets >> (32 * p + 16))));
      }
#pragma GCC unroll 4
      for (int r = 0; r < kRegisters; ++r) {
        __m512i x = _mm512_load_si512(block + ((at + g) * kRegisters + r) * kColumns);
        asm("" : "+v"(x));  // once: the compiler would load it again for the second pair
#pragma GCC unroll 2
        for (int p = 0; p < kPairs; ++p) {
          const __m512i found = _mm512_permutexvar_epi8(x, table[p]);
          sum[p][r] = g ? _mm512_add_epi8(sum[p][r], found) : found;
          asm("" : "+v"(sum[p][r]));  // one chain: the compiler would add in a tree and spill its leaves
        }
      }
    }
#pragma GCC unroll 2
    for (int p = 0; p < kPairs; ++p)
#pragma GCC unroll 4
      for (int r = 0; r < kRegisters; ++r) {
        low[p][r] = _mm512_add_epi8(low[p][r], sum[p][r]);
        high[p][r] = _mm512_add_epi8(high[p][r], _mm512_srli_epi16(sum[p][r], 4));
      }
  }
#pragma GCC unroll 2
  for (int p = 0; p < kPairs; ++p)
#pragma GCC unroll 4
    for (int r = 0; r < kRegisters; ++r) {
      const Sums sums = sums_of(low[p][r], high[p][r]);
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) {
        const int row = 2 * p + k / 2, column = r * int(kColumns) + k % 2 * 32;
        uint16_t* to = out + row * kTableColumns + column;
        __m512i sum = _mm512_add_epi16(sums.of[k], sums.of[k]);
        if (!first) sum = _mm512_add_epi16(sum, _mm512_load_si512(to));
        if (last) {
          const __m512i odd = _mm512_set1_epi16(int16_t(odd_a[row]));
          sum = _mm512_add_epi16(sum, _mm512_sub_epi16(_mm512_load_si512(odd_b + column), odd));
        }
        _mm512_store_si512(to, sum);
      }
    }
}

// The first `count` of the 32 distances from `first` on.
inline __mmask32 held_of(int64_t count, int64_t first) {
  const int64_t held = count - first;
  return held >= 32 ? __mmask32(~0u) : held <= 0 ? __mmask32(0) : __mmask32((1u << held) - 1);
}

// Bit j: block[j] < bound, for j < count <= 64.
inline uint64_t below(const uint16_t* block, int64_t count, int64_t bound) {
  const __m512i limit = _mm512_set1_epi16(int16_t(bound < 0xffff ? bound : 0xffff));
  const uint64_t first = _mm512_mask_cmplt_epu16_mask(held_of(count, 0), _mm512_load_si512(block), limit);
  const uint64_t second = _mm512_mask_cmplt_epu16_mask(held_of(count, 32), _mm512_load_si512(block + 32), limit);
  return first | second << 32;
}

// The least of `count` <= 64 distances.
inline int64_t least_of(const uint16_t* block, int64_t count) {
  const __m512i most = _mm512_set1_epi16(-1);
  const __m512i least = _mm512_min_epu16(_mm512_mask_mov_epi16(most, held_of(count, 0), _mm512_load_si512(block)),
                                         _mm512_mask_mov_epi16(most, held_of(count, 32), _mm512_load_si512(block + 32)));
  const __m256i half = _mm256_min_epu16(_mm512_castsi512_si256(least), _mm512_extracti64x4_epi64(least, 1));
  const __m128i quarter = _mm_min_epu16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  return uint16_t(_mm_extract_epi16(_mm_minpos_epu16(quarter), 0));
}

// Writes `count` <= 64 distances to `to`; whole lines past the caches, if `streaming`.
inline void write_distances(const uint16_t* block, int64_t count, int32_t* to, bool streaming) {
  if (count < kColumns) {
    for (int64_t j = 0; j < count; ++j) to[j] = block[j];
    return;
  }
  const bool lines = streaming && reinterpret_cast<uintptr_t>(to) % 64 == 0;
#pragma GCC unroll 4
  for (int64_t j = 0; j < kColumns; j += 16) {
    const auto* from = reinterpret_cast<const __m256i*>(block + j);
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_load_si256(from));
    if (lines)
      _mm512_stream_si512(reinterpret_cast<__m512i*>(to + j), wide);
    else
      _mm512_storeu_si512(to + j, wide);
  }
}

// use(i, j, count, block) for every row i of a and 64 of b's rows from j on: `count` <= 64 distances. For one i, j
// ascends.
template <class Use>
inline void distances_by_tables(const Rows& a, const Rows& b, int64_t w, Use&& use) {
  // Parts of b that are kept at once, transposed, beside 8 KB of tables: 33 KB.
  constexpr int64_t kMostParts = 2;
  constexpr int64_t kMostRows = 1024, kLeastRows = 32, kIndexBytes = 256 * 1024;
  const int64_t parts = parts_of(w), index_size = parts * kRowsAtOnce * kPartEntries;
  int64_t at_once = kIndexBytes / int64_t(sizeof(uint16_t)) / index_size * kRowsAtOnce;
  at_once = at_once < kLeastRows ? kLeastRows : at_once < kMostRows ? at_once : kMostRows;
  const int64_t quads = ((at_once < a.count ? at_once : a.count) + kRowsAtOnce - 1) / kRowsAtOnce;
  at_once = quads * kRowsAtOnce;

  // On the stack what always fits: allocations count when a passage takes microseconds.
  constexpr int64_t kPartBlock = kPartEntries * kTableColumns;
  alignas(64) uint8_t block[kMostParts * kPartBlock];
  alignas(64) uint16_t odd_b[kTableColumns], odd_a[kMostRows], quad_distances[kRowsAtOnce * kTableColumns];
  Scratch scratch;
  uint16_t* index = scratch.get<uint16_t>(quads * index_size);
  uint16_t* distances = parts > kMostParts ? scratch.get<uint16_t>(at_once * kTableColumns) : quad_distances;
  for (int64_t i = 0; i < a.count; i += at_once) {
    const int64_t rows = a.count - i < at_once ? a.count - i : at_once;
    for (int64_t q = 0; q < rows; q += kRowsAtOnce) {
      const uint8_t* four[kRowsAtOnce];
      for (int64_t row = 0; row < kRowsAtOnce; ++row) four[row] = a.row(i + (q + row < rows ? q + row : q));
      index_rows(four, w, index + q / kRowsAtOnce * index_size, odd_a + q);
    }
    for (int64_t j = 0; j < b.count; j += kTableColumns) {
      const int64_t count = b.count - j < kTableColumns ? b.count - j : kTableColumns;
      const auto add = count > 3 * kColumns   ? add_part<4>
                       : count > 2 * kColumns ? add_part<3>
                       : count > kColumns     ? add_part<2>
                                              : add_part<1>;
      for (int64_t c = 0; c < kTableColumns; ++c) odd_b[c] = 0;
      for (int64_t part = 0; part < parts; part += kMostParts) {
        const int64_t stop = part + kMostParts < parts ? part + kMostParts : parts;
        for (int64_t p = part; p < stop; ++p)
          transpose_block(b.row(j) + p * kPartBytes, b.stride, count, bytes_of(p, w), block + (p - part) * kPartBlock,
                          odd_b);
        for (int64_t q = 0; q < rows; q += kRowsAtOnce) {
          uint16_t* out = parts > kMostParts ? distances + q * kTableColumns : distances;
          for (int64_t p = part; p < stop; ++p)
            add(index + q / kRowsAtOnce * index_size + p * kRowsAtOnce * kPartEntries, block + (p - part) * kPartBlock,
                steps_of(bytes_of(p, w)), p == 0, p + 1 == parts, odd_a + q, odd_b, out);
          if (stop < parts) continue;
          for (int64_t row = q; row < rows && row < q + kRowsAtOnce; ++row)
            for (int64_t c = 0; c < count; c += kColumns)
              use(i + row, j + c, count - c < kColumns ? count - c : kColumns, out + (row - q) * kTableColumns + c);
        }
      }
    }
  }
}

}  // namespace btr::BTR_ISA_NAMESPACE
