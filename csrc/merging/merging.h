// Bipartite matching of the tokens of a passage by Hamming distance, and merging of matched tokens.
//
// A passage is `length` consecutive rows; passages are independent, so threads split them. The meaning is that of
// `btr_kernels.match_tokens`: even positions are matched to odd ones, the closest pairs merge, and further rounds run
// on the majority of the tokens merged so far. Votes and sizes are int32 (their sum is below 2^31); float means are
// summed in float32. Matching costs (length / 2)^2 distances a round, and the distance matrix is never
// stored. Voting costs about two operations a vote and 64 channels.
#pragma once

#include <cstdint>

#include "core/isa.h"
#include "core/types.h"

namespace btr {

struct MergingKernels {
  // slot: result row of every token; returns how many rows are left: max(min(keep, length), 0).
  int64_t (*match)(const uint8_t* bits, int64_t length, int64_t w, int64_t keep, int32_t* slot);

  // Majority of the tokens of each slot. Tokens: `length` rows with slot in [-1, rows) and sizes (null: 1). Writes
  // all `rows` rows of out and new_sizes, those without tokens as 0.
  void (*merge_bits)(const uint8_t* bits, int64_t length, int64_t w, const int32_t* slot, const int32_t* sizes,
                     int64_t rows, uint8_t* out, int32_t* new_sizes);

  // Mean of the tokens of each slot, weighted by sizes, of `dtype` (f32, f16, bf16).
  void (*merge_floats)(const void* x, DType dtype, int64_t length, int64_t d, const int32_t* slot,
                       const int32_t* sizes, int64_t rows, void* out, int32_t* new_sizes);
};

BTR_EXPORT const MergingKernels& merging_kernels();

}  // namespace btr
