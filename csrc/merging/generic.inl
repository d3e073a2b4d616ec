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

// A byte's eight bits as eight bytes of 0 or 1, least significant first.
inline uint64_t spread(uint8_t byte) {
  const uint64_t copies = byte * uint64_t(0x0101010101010101) & 0x8040201008040201;
  return (copies + 0x7f7f7f7f7f7f7f7f) >> 7 & 0x0101010101010101;
}

// Votes of one slot counted in `Counter`s, eight a byte of the token. `total` is the sum of the sizes.
template <typename Counter>
void vote(const uint8_t* bits, int64_t w, const int32_t* sizes, int32_t token, const int32_t* next, int64_t total,
          Counter* counts, uint8_t* out) {
  std::memset(counts, 0, sizeof(Counter) * size_t(8 * w));
  const uint8_t* earliest = bits + token * w;
  for (; token >= 0; token = next[token]) {
    const Counter size = Counter(sizes ? sizes[token] : 1);
    const uint8_t* row = bits + token * w;
    for (int64_t i = 0; i < w; ++i) {
      const uint64_t ones = spread(row[i]);
      for (int j = 0; j < 8; ++j) counts[8 * i + j] += Counter(Counter(ones >> 8 * j & 1) * size);
    }
  }
  for (int64_t i = 0; i < w; ++i) {
    unsigned byte = 0;
    for (int j = 0; j < 8; ++j) {
      const int64_t twice = 2 * int64_t(counts[8 * i + j]);
      byte |= unsigned(twice > total || (twice == total && (earliest[i] >> j & 1))) << j;
    }
    out[i] = uint8_t(byte);
  }
}

inline void merge_bits(const uint8_t* bits, int64_t length, int64_t w, const int32_t* slot, const int32_t* sizes,
                       int64_t rows, uint8_t* out, int32_t* new_sizes) {
  Scratch scratch;
  const SlotLists lists(slot, length, rows, scratch);
  int32_t* counts = nullptr;
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
      if (!counts) counts = scratch.get<int32_t>(8 * w);
      vote(bits, w, sizes, token, lists.next, total, counts, out + r * w);
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
      for (int64_t c = 0; c < d; ++c) y[c] = 0;
      for (int32_t t = first; t >= 0; t = lists.next[t]) {
        const float size = float(sizes ? sizes[t] : 1);
        const float* row = load_row(tokens + t * d, d, buffer);
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
