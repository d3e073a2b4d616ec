// Kernels of merging.h, compiled once for each instruction set.

#include <cstring>

#include "core/scratch.h"
#include "hamming/pair.inl"
#include "merging/merge.inl"
#include "merging/merging.h"

namespace btr::BTR_ISA_NAMESPACE {

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
