// Fused binary-to-float projection: out[m, n] = row_scale[n] * token_scale[m] * sum_c +-scale[c] * weight[n, c] + bias[n]
//
// bits: rows of ceil(d / 8) bytes; weight: (n, d) row-major; out: (m, n) row-major; all contiguous. Products and sums
// are float32. Pad bits are ignored.
//
// Two kernels, by the number of tokens m:
//
// lookup (m above the threshold matmul.dot_max_tokens). Activations are 1 bit, so 4 multiply-adds become one load and one add: for a tile of
//   kTile columns and each group of 4 channels a table holds the 2^4 signed sums of the 4 weights, and a token adds
//   the entry that its 4 bits name. Tables of kGroup channels (16 KB) stay in L1 while a block of tokens passes over
//   them; they are built on the fly and never stored. Limit: one 32-byte load a (8 columns, 4 channels, token), two
//   loads a cycle = 64 multiply-adds a cycle, four times the rate of FMA.
// dot (few tokens). A table costs as much as about 12 tokens save, so tokens are expanded to +-scale and each weight row is
//   read once for all of them. Limit: the bandwidth at which the weight arrives.
//
// Work is split by token blocks and column tiles; see `MatmulPlan`.
#pragma once

#include <cstdint>

#include "core/isa.h"
#include "core/types.h"

namespace btr {

struct MatmulArgs {
  const uint8_t* bits;
  const void* weight;
  DType weight_type;         // f32, f16, bf16, i8
  const float* scale;        // (d,) or null for 1
  const float* row_scale;    // (n,) or null for 1
  const float* bias;         // (n,) or null for 0
  const float* token_scale;  // (m,) or null for 1
  void* out;
  DType out_type;  // f32, f16, bf16
  int64_t m, n, d;
};

// Independent pieces of one product: piece i covers token block i / column_parts and column part i % column_parts.
struct MatmulPlan {
  bool lookup;
  int64_t block;         // tokens a block
  int64_t blocks;        // ceil(m / block)
  int64_t column_parts;  // parts into which the columns are split, at tile boundaries
  int64_t pieces() const { return blocks * column_parts; }
};

struct MatmulKernels {
  static constexpr int kTile = 16;         // columns a table: one cache line of float32
  static constexpr int kGroup = 64;        // channels a set of tables: 16 groups of 4, 16 KB
  static constexpr int64_t kDotTokens = 12;  // tokens a block of the dot kernel

  // Pieces [begin, end) of the plan.
  void (*run)(const MatmulArgs& args, const MatmulPlan& plan, int64_t begin, int64_t end);
};

BTR_EXPORT MatmulPlan plan_matmul(const MatmulArgs& args, int threads);
BTR_EXPORT const MatmulKernels& matmul_kernels();

}  // namespace btr
