// Attention of few tokens to many keys, as a decoder's step has it:
//   out[t, h] = sum_s softmax_s(query[t, h] . keys[s, h] + bias[h, t, s]) * values[s, h]
//
// query, out: (batch, tokens, heads, head_size); keys, values: (batch, keys, heads, head_size); all of one float type and
// contiguous. Sums are float32. A token all of whose keys have a bias of -infinity gets 0.
//
// Limit: the bandwidth at which keys and values arrive. Every piece of work is all heads of one token over some of the
// keys, which are one stretch of memory; pieces by heads would share rows, and each would fetch ahead into the others'.
#pragma once

#include <cstdint>

#include "core/isa.h"
#include "core/types.h"

namespace btr {

struct AttentionArgs {
  const void *query, *keys, *values;
  void* out;
  DType type;         // f32, f16, bf16
  const float* bias;  // or null for 0; keys next to each other
  int64_t bias_of_batch, bias_of_head, bias_of_token;  // strides, 0 where it is the same for all
  int64_t batch, tokens, count, heads, head_size;      // count: keys
};

// How many parts the keys of a token are split into: by their number alone, so that threads do not change results.
inline int64_t attention_parts(const AttentionArgs& args) {
  constexpr int64_t kKeys = 256;
  return args.count <= kKeys ? 1 : (args.count + kKeys - 1) / kKeys;
}

// Floats of the result of a piece: of each head the largest logit, the sum of weights, and the weighted values.
inline int64_t attention_room(const AttentionArgs& args) { return args.heads * (2 + args.head_size); }

struct AttentionKernels {
  // Pieces [begin, end) of batch * tokens * parts: piece i is part i % parts of the keys of token i / parts. Piece i
  // writes attention_room floats at partial + i * attention_room.
  void (*run)(const AttentionArgs& args, int64_t parts, int64_t begin, int64_t end, float* partial);
  // From those of all parts the result of tokens [begin, end).
  void (*combine)(const AttentionArgs& args, int64_t parts, int64_t begin, int64_t end, const float* partial);
};

BTR_EXPORT const AttentionKernels& attention_kernels();

}  // namespace btr
