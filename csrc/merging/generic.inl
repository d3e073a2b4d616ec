// Kernels of merging.h, compiled once for each instruction set.

#include <cstring>
#include <type_traits>

#include "core/rows.h"
#include "core/scratch.h"
#include "hamming/pair.inl"
#include "merging/merging.h"

namespace btr::BTR_ISA_NAMESPACE {

// The tokens of each slot as linked lists in token order: first[slot] and next[token], -1 at the end.
struct SlotLists {
  int32_t *first, *next;

  SlotLists(const int32_t* slot, int64_t length, int64_t rows, Scratch& scratch)
      : first(scratch.get<int32_t>(rows)), next(scratch.get<int32_t>(length)) {
    for (int64_t r = 0; r < rows; ++r) first[r] = -1;
    for (int64_t t = length - 1; t >= 0; --t) {
      if (slot[t] < 0) continue;
      next[t] = first[slot[t]];
      first[slot[t]] = int32_t(t);
    }
  }
};

// The bit that most of the `total` votes of a slot have, 64 channels at a time. Counts are kept bit-sliced (plane p
// holds bit p of the counts of all 64 channels), so a vote is a ripple of ands and xors, and so is the comparison.
inline void vote(const uint8_t* bits, int64_t w, const int32_t* sizes, int32_t first, const int32_t* next,
                 int64_t total, uint8_t* out) {
  constexpr int kPlanes = 32;
  int planes = 0;
  while (total >> planes) ++planes;
  const uint64_t half = uint64_t(total) / 2;
  for (int64_t i = 0; i < w; i += 8) {
    uint64_t count[kPlanes] = {};
    for (int32_t token = first; token >= 0; token = next[token]) {
      const uint64_t ones = load_word(bits + token * w + i, w - i);
      const uint32_t size = sizes ? uint32_t(sizes[token]) : 1;
      for (int k = 0; size >> k; ++k) {
        if (!(size >> k & 1)) continue;
        uint64_t carry = ones;
        for (int p = k; carry; ++p) {
          const uint64_t both = count[p] & carry;
          count[p] ^= carry;
          carry = both;
        }
      }
    }
    uint64_t more = 0, equal = ~uint64_t(0);
    for (int p = planes - 1; p >= 0; --p) {
      const uint64_t bound = half >> p & 1 ? ~uint64_t(0) : 0;
      more |= equal & count[p] & ~bound;
      equal &= ~(count[p] ^ bound);
    }
    if (total % 2 == 0) more |= equal & load_word(bits + first * w + i, w - i);
    std::memcpy(out + i, &more, size_t(w - i < 8 ? w - i : 8));
  }
}

inline void merge_bits(const uint8_t* bits, int64_t length, int64_t w, const int32_t* slot, const int32_t* sizes,
                       int64_t rows, uint8_t* out, int32_t* new_sizes) {
  Scratch scratch;
  const SlotLists lists(slot, length, rows, scratch);
  for (int64_t r = 0; r < rows; ++r) {
    const int32_t token = lists.first[r];
    int64_t total = 0, tokens = 0;
    for (int32_t t = token; t >= 0; t = lists.next[t], ++tokens) total += sizes ? sizes[t] : 1;
    new_sizes[r] = int32_t(total);
    if (total == 0) {
      std::memset(out + r * w, 0, size_t(w));
    } else if (tokens == 1 || (tokens == 2 && total == 2 && (!sizes || sizes[token] == 1))) {
      // Two equal votes agree or tie, and a tie takes the earliest token's bit.
      std::memcpy(out + r * w, bits + token * w, size_t(w));
    } else {
      vote(bits, w, sizes, token, lists.next, total, out + r * w);
    }
  }
}

inline void merge_floats(const void* x, DType dtype, int64_t length, int64_t d, const int32_t* slot,
                         const int32_t* sizes, int64_t rows, void* out, int32_t* new_sizes) {
  Scratch scratch;
  const SlotLists lists(slot, length, rows, scratch);
  float *buffer = scratch.get<float>(d), *staging = scratch.get<float>(d);
  with_float_type(dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T* tokens = static_cast<const T*>(x);
    for (int64_t r = 0; r < rows; ++r) {
      T* result = static_cast<T*>(out) + r * d;
      const int32_t first = lists.first[r];
      int64_t total = 0;
      for (int32_t t = first; t >= 0; t = lists.next[t]) total += sizes ? sizes[t] : 1;
      new_sizes[r] = int32_t(total);
      if (first >= 0 && lists.next[first] < 0 && total == 1) {
        std::memcpy(result, tokens + first * d, sizeof(T) * size_t(d));
        continue;
      }
      float* y = staging_row(result, staging);
      if (total == 0) std::memset(y, 0, sizeof(float) * size_t(d));
      for (int32_t t = first; t >= 0; t = lists.next[t]) {
        const float size = float(sizes ? sizes[t] : 1);
        const float* row = load_row(tokens + t * d, d, buffer);
        if (t == first)
          for (int64_t c = 0; c < d; ++c) y[c] = row[c] * size;
        else
          for (int64_t c = 0; c < d; ++c) y[c] += row[c] * size;
      }
      const float divisor = float(total > 0 ? total : 1);
      for (int64_t c = 0; c < d; ++c) y[c] /= divisor;
      store_row(y, result, d);
    }
  });
}

// One round on m tokens: slots of the `m` tokens among the m - merges that stay.
inline void match_round(const uint8_t* bits, int64_t m, int64_t w, int64_t merges, int32_t* slot, Scratch& scratch) {
  const int64_t pairs = (m + 1) / 2, others = m / 2, farthest = 8 * w;
  uint8_t* odd = scratch.get<uint8_t>(others * w);  // B, contiguous
  int32_t* best = scratch.get<int32_t>(pairs);
  int32_t* distance = scratch.get<int32_t>(pairs);
  int32_t* row = scratch.get<int32_t>(others);
  int64_t* found = scratch.get<int64_t>(farthest + 1);  // number of pairs at each distance
  for (int64_t b = 0; b < others; ++b) std::memcpy(odd + b * w, bits + (2 * b + 1) * w, size_t(w));
  for (int64_t i = 0; i <= farthest; ++i) found[i] = 0;
  for (int64_t a = 0; a < pairs; ++a) {
    distances_of(bits + 2 * a * w, odd, others, w, row);
    int32_t least = row[0], where = 0;
    for (int64_t b = 1; b < others; ++b)
      if (row[b] < least) least = row[b], where = int32_t(b);
    best[a] = where;
    distance[a] = least;
    ++found[least];
  }
  // All pairs below `limit` merge, and as many of those at it, lowest a first, as are still wanted.
  int64_t limit = 0, at_limit = merges;
  while (at_limit > found[limit]) at_limit -= found[limit++];
  bool* merged = scratch.get<bool>(pairs);
  for (int64_t a = 0; a < pairs; ++a) {
    merged[a] = distance[a] < limit || (distance[a] == limit && at_limit > 0);
    if (distance[a] == limit && merged[a]) --at_limit;
  }
  int32_t next = 0;
  for (int64_t t = 0; t < m; ++t)
    if (t % 2 || !merged[t / 2]) slot[t] = next++;
  for (int64_t a = 0; a < pairs; ++a)
    if (merged[a]) slot[2 * a] = slot[2 * best[a] + 1];
}

inline int64_t match(const uint8_t* bits, int64_t length, int64_t w, int64_t keep, int32_t* slot) {
  const int64_t target = keep < 1 ? 1 : keep;
  for (int64_t t = 0; t < length; ++t) slot[t] = int32_t(t);
  if (length <= target) return length;

  Scratch scratch;
  int32_t* round_slot = scratch.get<int32_t>(length);
  uint8_t* merged_bits = nullptr;
  int32_t* sizes = nullptr;
  const uint8_t* tokens = bits;
  int64_t m = length;
  for (;;) {
    const int64_t half = (m + 1) / 2, merges = m - target < half ? m - target : half;
    {
      Scratch round;
      match_round(tokens, m, w, merges, round_slot, round);
    }
    for (int64_t t = 0; t < length; ++t) slot[t] = round_slot[slot[t]];
    m -= merges;
    if (m <= target) return m;
    if (!merged_bits) {
      merged_bits = scratch.get<uint8_t>(m * w);
      sizes = scratch.get<int32_t>(m);
    }
    merge_bits(bits, length, w, slot, nullptr, m, merged_bits, sizes);
    tokens = merged_bits;
  }
}

}  // namespace btr::BTR_ISA_NAMESPACE
