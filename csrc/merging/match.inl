// Bipartite matching of the tokens of a passage, compiled once for each instruction set.

#include "core/scratch.h"
#include "hamming/block.inl"
#include "hamming/select.inl"
#include "merging/merge.inl"

namespace btr::BTR_ISA_NAMESPACE {

// One round on m tokens: slots of the `m` tokens among the m - merges that stay. Meanwhile m tokens at `following` are
// prefetched.
inline void match_round(const uint8_t* bits, int64_t m, int64_t w, int64_t merges, int32_t* slot,
                        const uint8_t* following) {
  const int64_t pairs = (m + 1) / 2;
  Scratch scratch;
  int32_t* best = scratch.get<int32_t>(2 * pairs);
  int32_t* distance = best + pairs;
  for (int64_t a = 0; a < pairs; ++a) distance[a] = INT32_MAX;
  for_each_block({bits, pairs, 2 * w}, {bits + w, m / 2, 2 * w}, w,
                 [&](int64_t a, int64_t b, int64_t count, const auto* block) {
                   if (b == 0)
                     for (int64_t i = 0; i < 2 * w; i += kLineBytes) prefetch(following + 2 * a * w + i);
                   const int64_t least = least_of(block, count);
                   if (least >= distance[a]) return;
                   distance[a] = int32_t(least);
                   best[a] = int32_t(b + __builtin_ctzll(below(block, count, least + 1)));
                 });

  const Cut cut = cut_of_least(pairs, merges, int32_t(8 * w), [&](int64_t a) { return distance[a]; });
  int64_t at_limit = cut.at_limit;
  int32_t next = 0;
  for (int64_t a = 0; a < pairs; ++a) {
    const bool equal = distance[a] == cut.limit, merged = distance[a] < cut.limit || (equal && at_limit > 0);
    at_limit -= equal;
    slot[2 * a] = merged ? -1 : next;
    next += !merged;
    if (2 * a + 1 < m) slot[2 * a + 1] = next++;
  }
  for (int64_t a = 0; a < pairs; ++a)
    if (slot[2 * a] < 0) slot[2 * a] = slot[2 * best[a] + 1];
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
    // The next passage usually follows in memory; a prefetch of anything else does nothing.
    match_round(tokens, m, w, merges, round_slot, bits + length * w);
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
