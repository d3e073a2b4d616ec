// Fused binary-to-float projection: out[m, n] = token_scale[m] * sum_c +-scale[c] * weight[n, c] + bias[n]
//
// bits: rows of ceil(d / 8) bytes, pad bits ignored; out: (m, n) row-major; all contiguous. The weight is either
// row-major (n, d), floats as users hold them, or channel-major (d, n), as `prepare_weight` stores it: floats, int16
// (times factors[c / 64][n]; the absolute values of 64 channels of a column sum to at most 32767) or int8 (times
// factors[0][n]).
//
// Two ways, by the number of tokens m; which one from how many on is in core/tuning.h:
//
// lookup (many tokens). Activations are 1 bit, so g multiply-adds become one load and one add: for a tile of columns
//   and each g channels a table holds the 2^g signed sums of the g weights, and a token adds the entry that its g bits
//   name. An entry is a cache line: 16 columns of float32 or 32 of int16. Tables of 64 channels (16 KB at g = 4,
//   25 KB at g = 5) stay in L1 while a block of tokens passes over them; they are built on the fly and never stored.
//   Limit: two 32-byte loads a cycle on AVX2 = 64 (g = 4) or 80 (g = 5) multiply-adds in float32, twice that in int16;
//   FMA does 16. g = 5 needs 1.6 times as many stores to build: for larger m.
//   Sums: float32, in another order than a plain matmul's. int16 sums are exact: 64 channels of an int16 weight, or
//   256 of an int8 one (127 * 256 < 2^15), cannot overflow; then they are added to float32 totals.
// few tokens. Tables would cost more than they save, so tokens are expanded to +-scale. Row-major: dot products, each
//   weight row read once for all tokens. Channel-major: the channels are added up in four streams.
//   Limit: the bandwidth at which the weight arrives.
//
// Gated, for T5's feed-forward: the weight has 2n columns (n rows of the gate, then n of the linear part), and
//   out[m, n] = gelu(column n) * column n + N, each with its bias; both are computed in the same pass and never written.
//
// Float tokens (`LinearArgs`): the products of decoding, one or few tokens at a time, with what stands before and after
//   them in a T5 block: x normalised by its root mean square, the weight row-major, the gate, the residual added.
//   Limit: the bandwidth at which the weight arrives.
//
// Work is split by token blocks and stripes of columns; see `MatmulPlan`.
#pragma once

#include <cstdint>

#include "core/isa.h"
#include "core/types.h"

namespace btr {

struct MatmulArgs {
  const uint8_t* bits;
  const void* weight;
  DType weight_type;   // f32, f16, bf16; channel-major also i16, i8
  bool channel_major;  // (d, n) instead of (n, d)
  const float* scale;     // (d,) or null for 1; null for a channel-major weight, which has it folded in
  const float* factors;   // (factor_blocks, weight columns) with i16 and i8
  int64_t factor_blocks;  // ceil(d / 64) with i16, 1 with i8
  const float* bias;         // (weight columns,) or null for 0
  const float* token_scale;  // (m,) or null for 1
  void* out;
  DType out_type;  // f32, f16, bf16
  int64_t m, n, d;  // n: columns of out
  bool gated;

  int64_t weight_columns() const { return gated ? 2 * n : n; }
};

struct LinearArgs {
  const void* x;  // (m, d)
  DType x_type;   // f32, f16, bf16, as the other types
  const float* norm;  // (d,) or null: x as it is
  float eps;
  const void* weight;  // (weight columns, d)
  DType weight_type;
  const float* residual;  // (m, n) or null
  void* out;              // (m, n)
  DType out_type;
  int64_t m, n, d;
  bool gated;
};

inline int64_t groups_for(int64_t channels) { return (channels + 63) / 64; }

// Independent pieces of one product: piece i covers token block i / column_parts and column part i % column_parts.
struct MatmulPlan {
  int table_bits;        // channels a table, or 0 for the way of few tokens
  int64_t block;         // tokens a block
  int64_t blocks;        // ceil(m / block)
  bool streaming;        // write results past the caches
  int64_t column_parts;  // parts into which the columns are split, at stripes
  int64_t pieces() const { return blocks * column_parts; }
};

// What one of them computes: columns [first, last) of tokens [token, token + tokens).
struct MatmulPiece {
  int64_t token, tokens, first, last;
};

struct MatmulKernels {
  static constexpr int kGroup = 64;                     // channels a set of tables: a word of bits
  static constexpr int64_t kByteChannels = 4 * kGroup;  // channels of int8 that int16 sums hold
  static constexpr int64_t kFloatChannels = 32 * kGroup;  // that float32 adds up in one sum: errors grow with its length
  static constexpr int kStripe = 64;                    // columns written at once
  static constexpr int64_t kFewTokens = 16;             // tokens that are expanded at once, to stay near L1

  // Pieces [begin, end) of the plan.
  void (*run)(const MatmulArgs& args, const MatmulPlan& plan, int64_t begin, int64_t end);
  void (*run_linear)(const LinearArgs& args, const MatmulPlan& plan, int64_t begin, int64_t end);
};

BTR_EXPORT MatmulPlan plan_matmul(const MatmulArgs& args, int threads);
BTR_EXPORT MatmulPlan plan_linear(const LinearArgs& args, int threads);
BTR_EXPORT MatmulPiece piece_of(const MatmulPlan& plan, int64_t m, int64_t n, int64_t piece);
BTR_EXPORT const MatmulKernels& matmul_kernels();

}  // namespace btr
