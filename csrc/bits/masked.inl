// Masked bits (bits.h), a word of 64 channels at a time: BMI2 has instructions that deposit bits where a mask is set
// (pdep) and extract them (pext); elsewhere tables do it for 8 channels. How many bits of its code a token has used
// before a word is the sum of the popcounts before it, all that words pass on to each other.
//
// Zen 5 deposits two words a cycle, and a word takes 15 instructions. Rows of the tables are fetched ahead. What else
// was tried is in benchmarks/notes/bits.md.

#include "bits/bits.h"
#include "bits/byte_tables.h"
#include "bits/streams.inl"
#include "core/scratch.h"

#ifdef __BMI2__
#include <immintrin.h>
#endif

namespace btr::BTR_ISA_NAMESPACE {

// Tokens between a prefetch and its use. Zen 5, tables in main memory: 12 to 48 are within 15% of each other, 8 take a
// third more time, no prefetch 8 times as much; in the last-level cache 2 to 16 are as fast as each other.
constexpr int64_t kTokensAhead = 16;
// Words are read and written whole, at most this far past the bytes of a row.
constexpr int64_t kSlack = 16;

BTR_INLINE uint64_t load_word(const uint8_t* bytes, int64_t count) {
  uint64_t word = 0;
  std::memcpy(&word, bytes, size_t(count));
  return word;
}

BTR_INLINE void store_word(uint64_t word, uint8_t* bytes, int64_t count) { std::memcpy(bytes, &word, size_t(count)); }

#ifdef __BMI2__
struct ByInstruction {
  static BTR_INLINE int64_t count(uint64_t mask) { return __builtin_popcountll(mask); }
  static BTR_INLINE uint64_t deposit(uint64_t bits, uint64_t mask) { return _pdep_u64(bits, mask); }
  static BTR_INLINE uint64_t extract(uint64_t bits, uint64_t mask) { return _pext_u64(bits, mask); }
};
#endif

struct ByTables {
  // Byte j: how many bits of bytes 0 to j are set.
  static BTR_INLINE uint64_t counts(uint64_t mask) {
    mask -= (mask >> 1) & 0x5555555555555555;
    mask = (mask & 0x3333333333333333) + ((mask >> 2) & 0x3333333333333333);
    return ((mask + (mask >> 4)) & 0x0f0f0f0f0f0f0f0f) * 0x0101010101010101;
  }
  static BTR_INLINE int64_t count(uint64_t mask) { return int64_t(counts(mask) >> 56); }

  static BTR_INLINE uint64_t deposit(uint64_t bits, uint64_t mask) {
    const uint64_t before = counts(mask) << 8;
    uint64_t result = 0;
#pragma GCC unroll 8
    for (int i = 0; i < 64; i += 8) {
      const uint64_t of_byte = bits >> (before >> i & 63) & 255;
      result |= uint64_t(byte_tables.deposit[mask >> i & 255][of_byte]) << i;
    }
    return result;
  }

  static BTR_INLINE uint64_t extract(uint64_t bits, uint64_t mask) {
    const uint64_t before = counts(mask) << 8;
    uint64_t result = 0;
#pragma GCC unroll 8
    for (int i = 0; i < 64; i += 8)
      result |= uint64_t(byte_tables.extract[mask >> i & 255][bits >> i & 255]) << (before >> i & 63);
    return result;
  }
};

// f(first byte, number of bytes) for each word of a row; whole words have a number that the compiler knows. `w` is
// int64_t or Channels, of bytes.
template <typename Bytes, typename F>
BTR_INLINE void for_each_word(Bytes w, F&& f) {
  int64_t i = 0;
#pragma GCC unroll 16
  for (; i + 8 <= w; i += 8) f(i, Channels<8>());
  if (i < w) f(i, w - i);
}

// The bits of a code that a row has used, and whether all of its words had few enough of them for a narrow step.
struct Used {
  uint64_t bits = 0, counts = 0;

  // Narrow steps take a word of the code from a whole byte on, so that its first 7 bits may be used already.
  static constexpr uint64_t kNarrow = 56;
  BTR_INLINE void add(uint64_t count) {
    bits += count;
    counts |= count + (63 - kNarrow);  // bit 6: more than kNarrow
  }
  BTR_INLINE bool all_narrow() const { return !(counts & 64); }
};

// `code` is readable for w + kSlack bytes.
template <typename Way, bool kWide, typename Bytes>
BTR_INLINE Used expand_row(const uint8_t* code, const uint8_t* mask, const uint8_t* fill, Bytes w, uint8_t* out) {
  Used used;
  for_each_word(w, [&](int64_t i, auto count) __attribute__((always_inline)) {
    const uint64_t m = load_word(mask + i, count), f = load_word(fill + i, count);
    const uint8_t* from = code + used.bits / 8;
    uint64_t bits = load_word(from, 8) >> used.bits % 8;
    if (kWide) bits |= uint64_t(from[8]) << 1 << (63 - used.bits % 8);
    store_word(Way::deposit(bits, m) | (f & ~m), out + i, count);
    used.add(uint64_t(Way::count(m)));
  });
  return used;
}

// `code` is writable for w + kSlack bytes; bits of it past the last one that is written are 0 up to a whole word.
template <typename Way, bool kWide, typename Bytes>
BTR_INLINE Used compress_row(const uint8_t* bits, const uint8_t* mask, Bytes w, uint8_t* code) {
  Used used;
  uint64_t begun = 0;  // the bits of the byte that is not full yet
  for_each_word(w, [&](int64_t i, auto count) __attribute__((always_inline)) {
    const uint64_t m = load_word(mask + i, count), taken = Way::extract(load_word(bits + i, count), m);
    const uint64_t byte = used.bits / 8, shift = used.bits % 8;
    const uint64_t low = begun | taken << shift, high = kWide ? taken >> 1 >> (63 - shift) : 0;
    store_word(low, code + byte, 8);
    if (kWide) code[byte + 8] = uint8_t(high);
    used.add(uint64_t(Way::count(m)));
    const uint64_t full = used.bits / 8 - byte;
    begun = kWide && full == 8 ? high : low >> (8 * full & 63);  // 64 only where the row is done again
  });
  return used;
}

// Where the row of the token's id begins, whatever its id is.
template <typename Bytes>
BTR_INLINE int64_t row_of_id(int64_t id, int64_t count, Bytes w) {
  if (__builtin_expect(uint64_t(id) >= uint64_t(count), 0)) id = id < 0 ? 0 : count - 1;
  return id * w;
}

// All lines of a row, wherever in a line it begins.
template <typename Bytes>
BTR_INLINE void fetch_row(const uint8_t* row, Bytes w) {
  for (int64_t i = 0; i < w; i += 64) __builtin_prefetch(row + i);
  __builtin_prefetch(row + w - 1);
}

// How many rows, from the first on, have w + kSlack bytes or more of codes from their own code on.
BTR_INLINE int64_t rows_with_slack(int64_t rows, int64_t code_bytes, int64_t w) {
  return rows - (w + kSlack - 1) / code_bytes;
}

template <typename Way, typename Bytes>
void expand_tokens(const uint8_t* codes, int64_t code_bytes, const int64_t* ids, int64_t rows, const Masks& masks,
                   const uint8_t* fill, Bytes w, uint8_t* out) {
  Scratch scratch;
  uint8_t* padded = scratch.get<uint8_t>(w + kSlack);
  std::memset(padded, 0, size_t(w + kSlack));
  const int64_t roomy = rows_with_slack(rows, code_bytes, w);
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t next = row_of_id(ids[r + kTokensAhead < rows ? r + kTokensAhead : r], masks.count, w);
    fetch_row(masks.mask + next, w);
    fetch_row(fill + next, w);
    const int64_t row = row_of_id(ids[r], masks.count, w);
    const uint8_t* code = codes + r * code_bytes;
    uint8_t* result = out + r * w;
    if (r < roomy) {
      const Used used = expand_row<Way, false>(code, masks.mask + row, fill + row, w, result);
      if (used.all_narrow() && used.bits <= uint64_t(8 * code_bytes)) continue;
    }
    std::memcpy(padded, code, size_t(code_bytes));
    expand_row<Way, true>(padded, masks.mask + row, fill + row, int64_t(w), result);
  }
}

template <typename Way, typename Bytes>
void compress_tokens(const uint8_t* bits, const int64_t* ids, int64_t rows, const Masks& masks, int64_t k, Bytes w,
                     uint8_t* codes) {
  Scratch scratch;
  uint8_t* padded = scratch.get<uint8_t>(w + kSlack);
  const int64_t code_bytes = bytes_for(k), roomy = rows_with_slack(rows, code_bytes, w);
  for (int64_t r = 0; r < rows; ++r) {
    fetch_row(masks.mask + row_of_id(ids[r + kTokensAhead < rows ? r + kTokensAhead : r], masks.count, w), w);
    const uint8_t* mask = masks.mask + row_of_id(ids[r], masks.count, w);
    uint8_t* code = codes + r * code_bytes;
    if (r < roomy) {
      // What is written past the code belongs to the tokens that come next.
      const Used used = compress_row<Way, false>(bits + r * w, mask, w, code);
      if (used.all_narrow() && used.bits == uint64_t(k)) continue;
    }
    std::memset(padded, 0, size_t(code_bytes));
    compress_row<Way, true>(bits + r * w, mask, int64_t(w), padded);
    if (k % 8) padded[k / 8] &= uint8_t((1 << k % 8) - 1);
    std::memcpy(code, padded, size_t(code_bytes));
  }
}

// f(way, w): the fastest way of this CPU, with w as a constant where it is that of T5 base or large.
template <typename F>
BTR_INLINE void with_way(int64_t w, F&& f) {
#ifdef __BMI2__
  if (!deposits_slowly()) {
    if (w == 96) return f(ByInstruction(), Channels<96>());
    if (w == 128) return f(ByInstruction(), Channels<128>());
    return f(ByInstruction(), w);
  }
#endif
  f(ByTables(), w);
}

inline void compress(const uint8_t* bits, const int64_t* ids, int64_t rows, const Masks& masks, int64_t k,
                     uint8_t* codes) {
  with_way(masks.w, [&](auto way, auto w) { compress_tokens<decltype(way)>(bits, ids, rows, masks, k, w, codes); });
}

inline void expand(const uint8_t* codes, int64_t code_bytes, const int64_t* ids, int64_t rows, const Masks& masks,
                   const uint8_t* fill, uint8_t* bits) {
  with_way(masks.w, [&](auto way, auto w) {
    expand_tokens<decltype(way)>(codes, code_bytes, ids, rows, masks, fill, w, bits);
  });
}

inline bool masks_hold(const Masks& masks, const int64_t* ids, int64_t rows, int64_t k) {
#ifdef __BMI2__
  using Way = ByInstruction;
#else
  using Way = ByTables;
#endif
  const int64_t w = masks.w;
  bool hold = true;
  for (int64_t r = 0; r < rows; ++r) {
    fetch_row(masks.mask + row_of_id(ids[r + kTokensAhead < rows ? r + kTokensAhead : r], masks.count, w), w);
    const uint8_t* mask = masks.mask + row_of_id(ids[r], masks.count, w);
    int64_t set = 0;
    for_each_word(w, [&](int64_t i, auto count) { set += Way::count(load_word(mask + i, count)); });
    hold &= set == k && ids[r] >= 0 && ids[r] < masks.count;
  }
  return hold;
}

}  // namespace btr::BTR_ISA_NAMESPACE
