// Hamming distances between packed tokens of w bytes: population counts of the exclusive or.
//
// All 8 * w channels count, so pad bits must be 0. Distances are exact int32 (w < 2^28). Cost with a POPCNT
// instruction: a load, an xor, a count and an add for every 8 bytes of a pair.
#pragma once

#include <cstdint>

#include "core/isa.h"

namespace btr {

struct HammingKernels {
  // out[i, j] = distance(a[i], b[j]), (m, n) row-major. streaming: write past the caches.
  void (*distance)(const uint8_t* a, int64_t m, const uint8_t* b, int64_t n, int64_t w, int32_t* out, bool streaming);

  // The k <= n nearest rows of b for each of m rows of a: (m, k) by increasing distance, ties to the lowest index.
  void (*topk)(const uint8_t* a, int64_t m, const uint8_t* b, int64_t n, int64_t w, int64_t k, int32_t* distances,
               int64_t* indices);
};

BTR_EXPORT const HammingKernels& hamming_kernels();

}  // namespace btr
