// The k least of a sequence of distances by counting them: no comparison depends on another, and the order of the
// sequence, which breaks ties, is kept. A distance of more than 12 bits takes a pass for every 12.
#pragma once

#include <cstdint>

namespace btr::BTR_ISA_NAMESPACE {

constexpr int kDigitBits = 12, kDigits = 1 << kDigitBits;

// Where the k least end: they are all distances below `limit` and the first `at_limit` of those equal to it.
struct Cut {
  int32_t limit;
  int64_t at_limit;
};

// distance(t) for 0 <= t < count is at most `most`; 1 <= k <= count.
template <class Distance>
inline Cut cut_of_least(int64_t count, int64_t k, int32_t most, Distance&& distance) {
  int64_t found[kDigits];
  int shift = 0, bins = most + 1;
  for (; most >> shift >= kDigits; shift += kDigitBits) bins = (most >> shift >> kDigitBits) + 1;
  for (int32_t limit = 0;; shift -= kDigitBits, bins = kDigits) {
    for (int digit = 0; digit < bins; ++digit) found[digit] = 0;
    for (int64_t t = 0; t < count; ++t) {
      const int32_t d = distance(t) >> shift;
      if (d >> kDigitBits == limit) ++found[d & (kDigits - 1)];
    }
    int32_t digit = 0;
    while (k > found[digit]) k -= found[digit++];
    limit = limit << kDigitBits | digit;
    if (shift == 0) return {limit, k};
  }
}

}  // namespace btr::BTR_ISA_NAMESPACE
