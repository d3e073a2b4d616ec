// Bipartite matching of the tokens of a passage by Hamming distance, and merging of matched tokens.
//
// A passage is `length` consecutive rows; passages are independent, so threads split them. The meaning is that of
// `btr_kernels.match_tokens`: even positions are matched to odd ones, the closest pairs merge, and further rounds run
// on the majority of the tokens merged so far. Matching costs (length / 2)^2 distances a round, and the distance
// matrix is never stored.
//
// Merging gathers: each result row is written once from the tokens of its slot. Sizes are int32 and callers see to it
// that they are not negative and sum to less than 2^31; whatever slots and sizes hold, no kernel leaves its arrays.
// - Votes: rows of one token or two are copies. Others cost 5 + 2p operations for two votes of 256 channels, where p =
//   log2 of half the votes, or 8p for one vote with a size. The last 32 bytes of a row may be written twice, so rows
//   must not overlap inputs.
// - Means: float32 sums in token order, one division (or an exact inverse). Bound by memory: each token is read once
//   and each row written once.
#pragma once

#include <cstdint>

#include "core/isa.h"
#include "core/types.h"

namespace btr {

struct MergingKernels {
  // slot: result row of every token; returns how many rows are left: max(min(keep, length), 0).
  int64_t (*match)(const uint8_t* bits, int64_t length, int64_t w, int64_t keep, int32_t* slot);

  // Majority of the tokens of each slot: the tokens t of `length` with slot[t] in [0, rows), weighted by sizes (null:
  // 1). Writes all `rows` rows of out and new_sizes, those without tokens or with sizes that sum to 0 as 0.
  void (*merge_bits)(const uint8_t* bits, int64_t length, int64_t w, const int32_t* slot, const int32_t* sizes,
                     int64_t rows, uint8_t* out, int32_t* new_sizes);

  // Mean of the tokens of each slot, weighted by sizes, of `dtype` (f32, f16, bf16). streaming: write past the caches.
  void (*merge_floats)(const void* x, DType dtype, int64_t length, int64_t d, const int32_t* slot,
                       const int32_t* sizes, int64_t rows, void* out, int32_t* new_sizes, bool streaming);

  // Its gradient: the row of grad that each token went to, times the token's share of that row; 0 without a row.
  void (*merge_floats_backward)(const void* grad, DType dtype, int64_t length, int64_t d, const int32_t* slot,
                                const int32_t* sizes, int64_t rows, const int32_t* new_sizes, void* grad_x,
                                bool streaming);
};

BTR_EXPORT const MergingKernels& merging_kernels();

}  // namespace btr
