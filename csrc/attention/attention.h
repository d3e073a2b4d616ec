// Attention of few tokens to many keys, as a decoder's step has it:
//   out[t, h] = sum_s softmax_s(query[t, h] . keys[s, h] + bias[h, t, s]) * values[s, h]
//
// query, out: (batch, tokens, heads, head_size); keys, values: (batch, keys, heads, head_size); all of one float type and
// contiguous. Sums are float32. A token all of whose keys have a bias of -infinity gets 0.
//
// Limit: the bandwidth at which keys and values arrive. Every piece of work is some heads of one token, which reads each
// row's part of these heads in one stretch.
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

struct AttentionKernels {
  // Pieces [begin, end) of batch * tokens * parts: piece i is part i % parts of the heads of token i / parts.
  void (*run)(const AttentionArgs& args, int64_t parts, int64_t begin, int64_t end);
};

BTR_EXPORT const AttentionKernels& attention_kernels();

}  // namespace btr
