// Kernels of hamming.h, compiled once for each instruction set.

#include "hamming/block.inl"
#include "hamming/hamming.h"
#include "hamming/select.inl"

namespace btr::BTR_ISA_NAMESPACE {

inline void distance_matrix(const uint8_t* a, int64_t m, const uint8_t* b, int64_t n, int64_t w, int32_t* out,
                            bool streaming) {
  for_each_block({a, m, w}, {b, n, w}, w, [&](int64_t i, int64_t j, int64_t count, const auto* distances) {
    write_distances(distances, count, out + i * n + j, streaming);
  });
#ifdef __AVX2__
  if (streaming) _mm_sfence();
#endif
}

struct Candidate {
  int64_t index;
  int32_t distance;
};

// Keeps the k nearest of `size` candidates in their order; returns the distance of the worst.
inline int32_t keep_nearest(Candidate* candidates, int64_t size, int64_t k, int32_t farthest) {
  Cut cut = cut_of_least(size, k, farthest, [&](int64_t t) { return candidates[t].distance; });
  for (int64_t t = 0, kept = 0; kept < k; ++t) {
    const int32_t d = candidates[t].distance;
    if (d > cut.limit || (d == cut.limit && cut.at_limit-- <= 0)) continue;
    candidates[kept++] = candidates[t];
  }
  return cut.limit;
}

// Writes k candidates by increasing distance, those at equal distances in their order.
inline void write_sorted(Candidate* from, Candidate* spare, int64_t k, int32_t farthest, int32_t* distances,
                         int64_t* indices) {
  for (int shift = 0; shift == 0 || farthest >> shift > 0; shift += kDigitBits) {
    int64_t start[kDigits];
    const int bins = farthest >> shift < kDigits ? (farthest >> shift) + 1 : kDigits;
    for (int digit = 0; digit < bins; ++digit) start[digit] = 0;
    const auto digit_of = [&](const Candidate& c) { return c.distance >> shift & (kDigits - 1); };
    for (int64_t t = 0; t < k; ++t) ++start[digit_of(from[t])];
    for (int64_t digit = 0, sum = 0; digit < bins; ++digit) {
      const int64_t found = start[digit];
      start[digit] = sum;
      sum += found;
    }
    for (int64_t t = 0; t < k; ++t) spare[start[digit_of(from[t])]++] = from[t];
    Candidate* const sorted = spare;
    spare = from;
    from = sorted;
  }
  for (int64_t t = 0; t < k; ++t) {
    distances[t] = from[t].distance;
    indices[t] = from[t].index;
  }
}

// Every row of a collects what is nearer than its bound; when its room is full, the k nearest stay, and the worst of
// them is the new bound: equal distances that come later lose, as their index is higher.
inline void topk(const uint8_t* a, int64_t m, const uint8_t* b, int64_t n, int64_t w, int64_t k, int32_t* distances,
                 int64_t* indices) {
  constexpr int64_t kSpare = 64, kBytes = 1024 * 1024, kMostRows = 256;
  const int64_t twice = k + (k > kSpare ? k : kSpare), room = twice < n ? twice : n;
  const int64_t fit = kBytes / (room * int64_t(sizeof(Candidate))) / 2 * 2;
  int64_t at_once = fit < 2 ? 2 : fit < kMostRows ? fit : kMostRows;
  if (at_once > m) at_once = m;
  const int32_t farthest = int32_t(8 * w);

  Scratch scratch;
  Candidate* candidates = scratch.get<Candidate>(at_once * room);
  Candidate* spare = scratch.get<Candidate>(k);
  int64_t* size = scratch.get<int64_t>(at_once);
  int32_t* bound = scratch.get<int32_t>(at_once);
  for (int64_t start = 0; start < m; start += at_once) {
    const int64_t rows = m - start < at_once ? m - start : at_once;
    for (int64_t i = 0; i < rows; ++i) size[i] = 0, bound[i] = farthest + 1;
    for_each_block({a + start * w, rows, w}, {b, n, w}, w,
                   [&](int64_t i, int64_t j, int64_t count, const auto* block) {
                     Candidate* mine = candidates + i * room;
                     for (uint64_t near = below(block, count, bound[i]); near; near &= near - 1) {
                       const int at = __builtin_ctzll(near);
                       if (block[at] >= bound[i]) continue;
                       if (size[i] == room) {
                         bound[i] = keep_nearest(mine, room, k, farthest);
                         size[i] = k;
                         if (block[at] >= bound[i]) continue;
                       }
                       mine[size[i]++] = {j + at, block[at]};
                     }
                   });
    for (int64_t i = 0; i < rows; ++i) {
      Candidate* mine = candidates + i * room;
      if (size[i] > k) keep_nearest(mine, size[i], k, farthest);
      write_sorted(mine, spare, k, farthest, distances + (start + i) * k, indices + (start + i) * k);
    }
  }
}

}  // namespace btr::BTR_ISA_NAMESPACE
